"""Success@k as curves, a picture for each direction and language; and the curves of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mmsearch.retrieval.evaluate.report import EvalReport

_KINDS = (".png", ".svg", ".pdf")
_DEEPEST = 100
_TITLES = {
    "text_to_image": "text to image",
    "image_to_text": "image to text",
    "text_to_text": "text to text",
    "topics": "topics",
}


def require(path: Path) -> None:
    """Raises where curves cannot be drawn to a file of this name.

    Raises:
        UsageError: its ending is of no kind of picture that is drawn.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() not in _KINDS:
        raise UsageError(f"{path.name}: curves are drawn as {', '.join(_KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("drawing curves needs matplotlib: pip install 'mmsearch[plot]'") from error


def draw(report: EvalReport, path: Path) -> None:
    """Draws success@k of every system over k, from 1 to 100, a panel for each direction and language."""
    require(path)
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((one.direction, one.language) for system in report.systems for one in system.outcomes))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (direction, language) in zip(axes, panels, strict=False):
        for system in report.systems:
            for outcome in system.outcomes:
                if (outcome.direction, outcome.language) == (direction, language):
                    ks, shares = _curve(outcome.first_ranks)
                    axis.plot(ks, shares, marker="o" if len(ks) == 1 else None, label=system.name)
        axis.set_title(_TITLES[direction] + (f" ({language})" if language else ""))
        axis.set_xscale("log")
        axis.set_xlim(1, _DEEPEST)
        axis.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_ylim(0, 1)
        axis.set_xlabel("k")
        axis.set_ylabel("success@k")
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=150)


def draw_training(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws the loss of each step, and the MRR of the held-out part where it was measured.

    Args:
        curve: what `mmsearch train` writes to curves.json.
        path: a .png, .svg or .pdf.
    """
    require(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axis = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in curve if "loss" in row]
    axis.plot(*zip(*losses, strict=True), color="tab:grey", label="loss")
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    for way, words in _TITLES.items():
        found = [(row["step"], row[f"{way} mrr"]) for row in curve if f"{way} mrr" in row]
        if found:
            other.plot(*zip(*found, strict=True), marker="o", label=f"{words}, held out")
    other.set_ylim(0, 1)
    other.set_ylabel("MRR")
    lines = [*axis.get_lines(), *other.get_lines()]
    axis.legend(lines, [str(line.get_label()) for line in lines], frameon=False)
    figure.savefig(path, dpi=150)


def _curve(ranks: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """Each k from 1 to 100, and the share of queries whose first right answer is among the first k."""
    ks = list(range(1, _DEEPEST + 1))
    return ks, [float(np.mean(ranks <= k)) for k in ks]
