"""Contenders that take turns, and the figure that comes of it."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured ratio and what it ought to be.

    Attributes:
        name: the measurement; also what `--only` takes.
        what: what was divided by what.
        bound: on which side of `target` the value should lie.
        seconds: of every round, by contender (MiB for memory).
        notes: more about the run, not held to anything.
    """

    name: str
    what: str
    value: float
    bound: Literal[">=", "<="]
    target: float
    seconds: Mapping[str, list[float]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the value is on the right side."""
        return self.value >= self.target if self.bound == ">=" else self.value <= self.target


def alternate(rounds: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every contender's figure of every round; each second round goes backwards."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders.items())
    for number in range(rounds):
        for name, run in order if number % 2 == 0 else order[::-1]:
            figures[name].append(run())
    return figures


def ratio(above: list[float], below: list[float]) -> float:
    """Median over the rounds of one contender's figure by another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def python(*arguments: str | Path) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *map(str, arguments)]


def mmsearch(*arguments: str | Path) -> list[str]:
    """A command line for the installed program, or for the checkout if it is not installed."""
    script = Path(sys.executable).with_name("mmsearch")
    start = [str(script)] if script.exists() else python("-c", "from mmsearch.cli import main; main()")
    return [*start, *map(str, arguments)]


def child(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command that must succeed; it may write and use compiled bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done


def wall(command: list[str]) -> Callable[[], float]:
    """A contender: the wall-clock seconds of a whole process. It runs once now, to warm the disk cache."""

    def run() -> float:
        start = time.perf_counter()
        child(command)
        return time.perf_counter() - start

    run()
    return run


def index_once(folder: Path, index: Path, model: str) -> dict[str, float]:
    """An index run in its own process: seconds of `add`, peak bytes, counts."""
    found: dict[str, float] = json.loads(child(python(HERE / "index_once.py", folder, index, model)).stdout)
    return found
