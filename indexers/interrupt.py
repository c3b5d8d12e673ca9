"""Ctrl-C as a question that a long run asks between two steps, not as an exception in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run was asked to end, and nothing is half-done."""


class Interrupt:
    """Turns the first SIGINT into a flag for the time of a `with` block.

    Only where that is safe to do: in the main thread, and if nobody else has taken the signal over. The second
    Ctrl-C is an ordinary KeyboardInterrupt, so that a person is never locked in.
    """

    def __init__(self) -> None:
        self._asked = False
        self._immediate = 0
        self._installed = False

    def check(self) -> None:
        """Raises Stopped once somebody wants the run to end."""
        if self._asked:
            raise Stopped

    def __enter__(self) -> Interrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Inside, Ctrl-C raises Stopped at once: for long calls that leave nothing half-done (a download)."""
        self.check()
        self._immediate += 1
        try:
            yield
        except KeyboardInterrupt:
            raise Stopped from None
        finally:
            self._immediate -= 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()
        if self._immediate:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
