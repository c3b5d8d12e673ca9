"""The command line. Data goes to stdout, talk to stderr; errors become one line and an exit code.

Only typer is imported at the top, so that `mmsearch --help` starts fast; each command imports what it needs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from typing import NoReturn

from mmsearch.cli import commands as commands

# The help lists commands in the order of these imports.
# isort: split
from mmsearch.cli import explanation as explanation

# isort: split
from mmsearch.cli import collection as collection

# isort: split
from mmsearch.cli import tagging as tagging

# isort: split
from mmsearch.cli import evaluation as evaluation

# isort: split
from mmsearch.cli import training as training

# isort: split
from mmsearch.cli import upkeep as upkeep
from mmsearch.cli.app import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_NO_INDEX, EXIT_USAGE, app
from mmsearch.cli.talk import hush, log_handler
from mmsearch.retrieval.errors import IndexNotFound, MMSearchError, QuerySyntaxError, UsageError


def main() -> None:
    """Entry point of the console script."""
    _open_streams()
    code = run()
    if threading.active_count() > 1:
        from mmsearch.retrieval.rerank import THREAD

        if any(thread.name == THREAD for thread in threading.enumerate()):
            _leave(code)
    raise SystemExit(code)


def _leave(code: int) -> NoReturn:
    """Ends the process at once, whatever a reranker that was not waited for is doing: see `rerank.scoring`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def _open_streams() -> None:
    """Lets closed standard streams lead nowhere (`mmsearch ... >&-`), and no file of ours take their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code; a traceback is shown with -v only."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("mmsearch")
    talk = log_handler()
    log.setLevel(logging.INFO)
    log.addHandler(talk)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return hush()
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
        lines = str(error).split("\n") if isinstance(error, QuerySyntaxError) else [str(error)]
        said = "\n".join(map(output.safe, lines))
        output.say(f"mmsearch: {said}")
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
