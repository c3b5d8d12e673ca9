"""The command line. Data goes to stdout, talk to stderr; errors become one line and an exit code.

Only typer is imported at the top, so that `mmsearch --help` starts fast; each command imports what it needs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmsearch.retrieval.errors import IndexNotFound, MMSearchError, UsageError

if TYPE_CHECKING:
    from mmsearch.index import Index
    from mmsearch.progress import ProgressDisplay
    from mmsearch.retrieval.types import Report

_MODELS_LOG = "mmsearch.retrieval.encoders.models"

EXIT_ERROR, EXIT_USAGE, EXIT_NO_INDEX, EXIT_INTERRUPTED = 1, 2, 3, 130


class ModalityChoice(StrEnum):
    """Values of `--modality`."""

    image = "image"
    text = "text"
    all = "all"


def _show_version(wanted: bool) -> None:
    if wanted:
        from mmsearch import __version__

        typer.echo(f"mmsearch {__version__}")
        raise typer.Exit


def _be_verbose(wanted: bool) -> None:
    if wanted:
        logging.getLogger("mmsearch").setLevel(logging.DEBUG)


IndexOption = Annotated[
    Path | None,
    typer.Option("--index", envvar="MMSEARCH_INDEX", metavar="DIR", help="Index folder; yours by default."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str, typer.Option(metavar="NAME", help="Model: a preset of `mmsearch models`, or an open_clip tag.")
]
DeviceOption = Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda or mps; chosen by default.")]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Threads to decode and to compute with; chosen by default.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large download.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more on stderr.", callback=_be_verbose, is_eager=True)
]


class _Commands(TyperGroup):
    """Keeps typer from making a broken pipe exit code 1: `run` knows what to do."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _hushed():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _hushed():
            return super().invoke(ctx)


@contextmanager
def _hushed() -> Iterator[None]:
    """Ends quietly when the reader of our output has gone (`mmsearch query ... | head -1`)."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(_hush()) from None


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
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def index(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Folders, files, globs; all roots if none.")
    ] = None,
    index_path: IndexOption = None,
    model: ModelOption = "auto",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only files that match, in this run; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out what matches, in this run; repeatable."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Let missing files go even if their drive looks unmounted.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many files, how long.")] = False,
    device: DeviceOption = None,
    precision: Annotated[
        str | None, typer.Option(metavar="TYPE", help="fp32, bf16 or fp16; chosen by default.")
    ] = None,
    threads: ThreadsOption = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Pictures per model call; chosen by default.")
    ] = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add pictures and texts to the index, and keep it up to date.

    Only new and changed files are read. Ctrl-C keeps what is done; the same command continues. --include and
    --exclude are not remembered: a later `index` without PATH takes everything in its folders.
    """
    from mmsearch import output
    from mmsearch.index import Index

    with _display() as display:
        with Index(
            index_path,
            model=model,
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            offline=offline,
            confirm=_confirmation(display, yes=yes),
            download=display.on_download if display else None,
        ) as opened:
            if dry_run:
                estimate = opened.estimate(*paths or (), include=include or (), exclude=exclude or ())
            else:
                report = opened.add(
                    *paths or (),
                    include=include or (),
                    exclude=exclude or (),
                    prune=prune,
                    retry=retry,
                    progress=display.on_run if display else None,
                )
    if dry_run:
        if as_json:
            output.write_json(estimate)
        else:
            for line in output.estimate_lines(estimate):
                output.write(line)
        return
    _finish(report, opened, as_json=as_json)


def _finish(report: Report, opened: Index, *, as_json: bool) -> None:
    from mmsearch import output
    from mmsearch.index import Index

    for line in output.report_lines(report):
        output.say(line)
    if report.added and not report.interrupted and not as_json:
        where = f" --index {shlex.quote(str(opened.path))}" if opened.path != Index().path else ""
        output.say(output.safe(f'now try: mmsearch query "a dog on the beach"{where}'))
    if as_json:
        output.write_json(report)
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def query(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.", show_default=False)] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="PATH", help="A picture to look for, instead of words.")
    ] = None,
    k: Annotated[int, typer.Option("--top-k", "-k", metavar="K", help="How many hits at most.")] = 10,
    modality: Annotated[
        ModalityChoice | None,
        typer.Option(help="What to find; pictures by default, texts if there are no pictures."),
    ] = None,
    include_self: Annotated[
        bool, typer.Option("--include-self", help="Keep the picture of --image in its own answer.")
    ] = False,
    index_path: IndexOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    offline: OfflineOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per hit and line.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Search the index with words or with a picture.

    On a terminal: rank, score and path, for texts a snippet. Elsewhere the same separated by tabs (rank, score,
    path; for texts also the fragment and the text). Control characters in file names are shown as escapes.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if (text is None) == (image is None):
        raise UsageError('say what to look for: mmsearch query "a red car", or mmsearch query --image PATH')
    with Index(index_path, device=device, threads=threads, offline=offline) as opened:
        hits = opened.search(
            text, image=image, k=k, modality=modality.value if modality else None, include_self=include_self
        )
    if as_json:
        for hit in hits:
            output.write_json(hit)
        return
    output.write_hits(hits, people=output.is_terminal(sys.stdout))
    if not hits:
        output.say("nothing found")


@app.command()
def info(index_path: IndexOption = None, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Show what the index holds."""
    from mmsearch import output
    from mmsearch.index import Index

    with Index(index_path) as opened:
        found = opened.info()
    if as_json:
        output.write_json(found)
    else:
        output.write_info(found)


@app.command()
def models(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the model hub again, even if it did not answer today.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the bundled starter as an open_clip `local-dir:`."),
    ] = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the models that can be used here."""
    from mmsearch import output

    if export is not None:
        from mmsearch.retrieval.encoders.export import export_open_clip

        folder = export_open_clip(export)
        output.write(output.safe(f"local-dir:{folder}"))
        return
    from mmsearch.retrieval.encoders.models import list_models

    found = list_models(offline=offline, refresh=refresh)
    if as_json:
        for model in found:
            output.write_json(model)
    else:
        output.write_models(found, people=output.is_terminal(sys.stdout))


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to put the pictures.", show_default=False)
    ] = None,
    index_path: Annotated[
        Path | None,
        typer.Option("--index", metavar="DIR", help="Index folder; `index` in FOLDER by default, never your own."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Make a small folder of pictures, index it and search it. Works offline."""
    from mmsearch import output
    from mmsearch.demo import run

    run(folder, index_path=index_path, echo=output.write)


@contextmanager
def _display() -> Iterator[ProgressDisplay | None]:
    """Progress lines where a person watches stderr, else nothing."""
    from mmsearch import output

    if not output.is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        yield None
        return
    from mmsearch.progress import ProgressDisplay

    with ProgressDisplay() as display:
        talks = [handler for handler in logging.getLogger("mmsearch").handlers if isinstance(handler, _Talk)]
        for talk in talks:
            talk.before = display.pause
        yield display
        for talk in talks:
            talk.before = None


def _confirmation(display: ProgressDisplay | None, *, yes: bool) -> Callable[[str, int], bool] | None:
    """How to ask about a large download: not at all where nobody can answer."""
    from mmsearch import output

    if yes:
        return lambda name, size: True
    if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
        return None

    def ask(name: str, size: int) -> bool:
        if display is not None:
            display.pause()
        try:
            return typer.confirm(f"Download {name} ({size / 1e6:,.0f} MB)?", default=True, err=True)
        except typer.Abort:  # Ctrl-C, which typer would make an error
            output.say("")
            raise KeyboardInterrupt from None

    return ask


class _Talk(logging.Handler):
    """The library's log as lines on stderr: warnings and what the models say of themselves; all with -v."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], None] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        return (
            record.levelno >= logging.WARNING
            or record.name == _MODELS_LOG
            or logging.getLogger("mmsearch").level <= logging.DEBUG
        )

    def emit(self, record: logging.LogRecord) -> None:
        from mmsearch import output

        if self.before is not None:
            self.before()
        message = output.safe(record.getMessage())
        if record.exc_info:
            message = f"{message}\n{logging.Formatter().formatException(record.exc_info)}"
        output.say(f"mmsearch: {message}")


def main() -> None:
    """Entry point of the console script."""
    raise SystemExit(run())


def run(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; a traceback is shown with -v only."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("mmsearch")
    talk = _Talk()
    log.setLevel(logging.INFO)
    log.addHandler(talk)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _hush()
    finally:
        log.removeHandler(talk)
        log.setLevel(logging.NOTSET)


def _run(arguments: list[str] | None) -> int:
    from mmsearch import output

    try:
        app(arguments, prog_name="mmsearch")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except MMSearchError as error:
        logging.getLogger(__name__).debug("the error in full", exc_info=error)
        output.say(f"mmsearch: {output.safe(str(error))}")
        if isinstance(error, UsageError):
            return EXIT_USAGE
        return EXIT_NO_INDEX if isinstance(error, IndexNotFound) else EXIT_ERROR
    except Exception as error:
        logging.getLogger(__name__).debug("the error in full", exc_info=error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        named = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        line = output.safe(f"{type(error).__name__}: {reason}{named}")
        output.say(f"mmsearch: unexpected error: {line} (-v shows more)")
        return EXIT_ERROR
    return 0


def _hush() -> int:
    """Lets what nobody reads any more go nowhere; returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    return 0
