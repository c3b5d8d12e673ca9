"""The typer application that the commands belong to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mmsearch.cli.options import VerboseOption, show_version
from mmsearch.cli.talk import hush

EXIT_ERROR, EXIT_USAGE, EXIT_NO_INDEX, EXIT_INTERRUPTED = 1, 2, 3, 130


class _Commands(TyperGroup):
    """Keeps typer from making a broken pipe exit code 1, and Ctrl-C an exit without a word."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _ended_early():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _ended_early():
            return super().invoke(ctx)


class SignedCommand(TyperCommand):
    """A command whose arguments may begin with a minus and a blank: `mmsearch query "- fruit"`.

    Its help shows options under the headings that they name, and its epilog line by line.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Splits these in two, or they would be options."""
        parts = [part for arg in args for part in (arg.split(maxsplit=1) if arg[:2].rstrip() == "-" != arg else [arg])]
        return super().parse_args(ctx, parts)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options under their headings, in the order in which these are first named."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = getattr(param, "rich_help_panel", None) or "Other options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes examples as they are: wrapped, a command line is none."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line.strip()}\n")


@contextmanager
def _ended_early() -> Iterator[None]:
    """Ends quietly when the reader of our output has gone (`mmsearch query ... | head -1`), with a word on Ctrl-C."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(hush()) from None
    except KeyboardInterrupt:
        from mmsearch import output

        output.say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    name="mmsearch",
    cls=_Commands,
    help="Find pictures and texts by what they show and mean.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    verbose: VerboseOption = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    pass
