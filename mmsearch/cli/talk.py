"""What the command line says to a person on stderr: the library's log, progress, questions."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mmsearch.progress import ProgressDisplay

_MODELS_LOG = "mmsearch.retrieval.encoders.models"


@contextmanager
def progress_display() -> Iterator[ProgressDisplay | None]:
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


def confirmation(display: ProgressDisplay | None, *, yes: bool) -> Callable[[str, int], bool] | None:
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


def hush() -> int:
    """Lets what nobody reads any more go nowhere; returns the exit code."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    return 0


def log_handler() -> _Talk:
    """What writes the library's log to stderr."""
    return _Talk()
