"""What `store.doctor` finds: problems of an index, in words for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

INFORMATION = frozenset(
    {
        "file-changed",
        "file-missing",
        "file-waiting",
        "leftover",
        "old-format",
        "orphan",
        "salvaged-waiting",
        "staged-model",
    }
)
"""Kinds of problems that are no damage: nothing is lost by them, and searches are right."""

_SOME = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be.

    Attributes:
        kind: what it is, one of a few words such as `segment-missing`.
        where: the file of the index, or the root, that it is about.
        message: what is wrong; after a repair also what became of it.
        remedy: what to do now.
        repaired: a repair has dealt with it.
        lost_items: items that are gone, until their files are indexed again.
    """

    kind: str
    where: str
    message: str
    remedy: str
    repaired: bool = False
    lost_items: int = 0

    @property
    def damage(self) -> bool:
        """Whether searches may be wrong or incomplete because of it."""
        return self.kind not in INFORMATION


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of an index.

    Attributes:
        path: the index folder.
        problems: damage first.
        segments: files of vectors that are sound.
        items: what can be found; 0 where the catalog cannot be read.
        bytes_checked: of segments and catalog.
    """

    path: Path
    problems: tuple[Problem, ...]
    segments: int
    items: int
    bytes_checked: int

    @property
    def sound(self) -> bool:
        """Whether there is no damage, or none any more."""
        return not any(problem.damage and not problem.repaired for problem in self.problems)


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 item, 2,000 items."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(names: Iterable[str], total: int) -> str:
    """The first few of many names."""
    shown = [name for name, _ in zip(names, range(_SOME), strict=False)]
    return ", ".join(shown) + (f" and {total - len(shown):,} more" if total > len(shown) else "")
