"""Progress on a terminal: stage, files, files/s, time left, failures so far. Imported only where it is shown."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

if TYPE_CHECKING:
    from mmsearch.indexers.ingest import Progress, Stage
    from mmsearch.indexers.train.engine import Progress as Training

_WORDS: dict[Stage, str] = {
    "scan": "looking for files",
    "load": "loading the model",
    "index": "indexing",
    "tokens": "reading pictures again for reranking",
    "merge": "tidying up",
}
_SECONDS_BETWEEN = 0.1
_TRAINING = "training"


class _PerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "files")
        return Text("" if not speed else f"{speed:.0f} {unit}/s" if speed >= 10 else f"{speed:.1f} {unit}/s")


class ProgressDisplay:
    """Draws a run and the downloads that it needs on stderr; a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._files = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _PerSecond(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failures]}"),
            console=console,
            transient=True,
        )
        self._downloads = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._steps = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            transient=True,
        )
        self._updates: TaskID | None = None
        self._task: TaskID | None = None
        self._doing = ""
        self._stage: Stage | None = None
        self._drawn = 0.0
        self._download_tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Clears the lines, so that something else can be written or asked; the next call draws again."""
        self._files.stop()
        self._steps.stop()
        self._downloads.stop()

    def on_run(self, progress: Progress) -> None:
        """Shows the state of an index run."""
        now = time.monotonic()
        if progress.stage == self._stage and now - self._drawn < _SECONDS_BETWEEN:
            return
        self._drawn = now
        if self._task is None or progress.stage != self._stage:
            if self._task is not None:
                self._files.remove_task(self._task)
            self._stage = progress.stage
            self._task = self._files.add_task(_WORDS[progress.stage], total=progress.total, failures="")
        if not self._downloads.live.is_started:
            self._files.start()
        failures = f"{progress.failed} failed" if progress.failed else ""
        self._files.update(self._task, completed=progress.done, total=progress.total, failures=failures)

    def on_compare(self, done: int, total: int) -> None:
        """Shows how many pictures were compared with all others."""
        self._on_pictures("comparing", done, total)

    def on_tag(self, done: int, total: int) -> None:
        """Shows how many pictures were looked at for tags."""
        self._on_pictures("tagging", done, total)

    def on_eval(self, what: str, done: int, total: int) -> None:
        """Shows how many pictures and captions of a set were embedded, or how many queries were asked."""
        if self._doing != what:
            self._steps.stop()
            if self._task is not None:
                self._files.remove_task(self._task)
            self._task, self._doing = None, what
        self._on_pictures(what, done, total, unit="queries" if what.startswith("queries") else "files")

    def on_train(self, progress: Training) -> None:
        """Shows how far training is, how fast, its loss, and how well the held-out part was found last."""
        now = time.monotonic()
        if self._doing == _TRAINING and progress.step < progress.steps and now - self._drawn < _SECONDS_BETWEEN:
            return
        self._drawn = now
        if self._doing != _TRAINING:
            self._files.stop()
            if self._task is not None:
                self._files.remove_task(self._task)
            self._task, self._doing = None, _TRAINING
        said = [f"{progress.rate:.2f} steps/s", *(f"{name} {value:.3f}" for name, value in progress.losses.items())]
        mrrs = [value for name, value in progress.figures.items() if name.endswith("mrr")]
        if mrrs:
            said.append(f"held-out MRR {sum(mrrs) / len(mrrs):.3f}")
        if self._updates is None:
            self._updates = self._steps.add_task(_TRAINING, total=progress.steps, said="")
        self._steps.start()
        self._steps.update(self._updates, completed=progress.step, said="  ".join(said))

    def _on_pictures(self, doing: str, done: int, total: int, unit: str = "files") -> None:
        now = time.monotonic()
        if self._task is not None and done < total and now - self._drawn < _SECONDS_BETWEEN:
            return
        self._drawn = now
        if self._task is None:
            self._task = self._files.add_task(doing, total=total, failures="", unit=unit)
            self._files.start()
        self._files.update(self._task, completed=done, total=total)

    def on_check(self, done: int, total: int) -> None:
        """Shows how much of an index was checked; in a thread of its own."""
        self.on_download("checking", done, total)

    def on_download(self, name: str, done: int, total: int) -> None:
        """Shows the state of a download."""
        self._files.stop()
        if name not in self._download_tasks:
            self._download_tasks[name] = self._downloads.add_task(name, total=total)
        self._downloads.start()
        self._downloads.update(self._download_tasks[name], completed=done, total=total)
        if done >= total and all(task.finished for task in self._downloads.tasks):
            self._downloads.stop()
