"""Contenders that take turns, the figure that comes of it, and how figures are told."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


def child(command: list[str], *, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a command that must succeed; it may write and use compiled bytecode. `without`: hidden variables."""
    hidden = {"PYTHONDONTWRITEBYTECODE", *without}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
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


def first_line(measurement: Callable[..., Figure]) -> str:
    """What a measurement says that it is."""
    return (measurement.__doc__ or "").splitlines()[0].rstrip(".")


def write_table(figures: list[Figure]) -> None:
    """Prints a line per figure, and below it its contenders and notes."""
    print(f"{'measurement':<18}{'value':>8}   {'target':<9}{'':<8}what")
    for figure in figures:
        verdict = "met" if figure.met else "MISSED"
        print(f"{figure.name:<18}{figure.value:>8.2f}   {figure.bound} {figure.target:<6g}{verdict:<8}{figure.what}")
        for name, values in figure.seconds.items():
            unit = figure.notes.get("unit", "s")
            print(f"{'':<29}{name}: median {statistics.median(values):.3f} {unit} of {len(values)}")
        for name, note in figure.notes.items():
            if name not in ("unit", "loaded"):
                print(f"{'':<29}{name}: {note}")


def write_result(
    path: Path,
    benchmark: str,
    command: Sequence[str],
    machine: Mapping[str, Any],
    about: Mapping[str, Any],
    figures: Sequence[Figure],
) -> None:
    """Writes the figures as JSON, with the command, the machine and what else is to be said of the run."""
    result = {
        "benchmark": benchmark,
        "command": shlex.join(["python", *command]),
        "machine": machine,
        **about,
        "figures": [{**_rounded(asdict(figure)), "met": figure.met} for figure in figures],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
