"""What an examination has found, for telling and for repairing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.diagnosis import Problem
from mmsearch.retrieval.store.segment_check import SegmentCheck

REPAIR = "`mmsearch doctor --repair`"
INDEX = "`mmsearch index`"
REPAIR_AND_INDEX = f"{REPAIR}, then {INDEX}"

SALVAGE = frozenset({"catalog-damaged", "catalog-missing", "embedding-lost", "item-lost", "reference", "segment-ids"})
"""Kinds of damage after which the catalog is made anew, of what can be read of it and of the segments."""


@dataclass(slots=True)
class Findings:
    """What an examination found, for telling and for repairing.

    Attributes:
        path: the index folder.
        busy: a writer was at work.
        problems: in the order of finding.
        segments: all segment files that were read, and those that are missing, by name.
        named: those of them that the catalog names, to their ids.
        orphans: finished segment files that the catalog does not name.
        tokens: files of tokens that the catalog names, to their ids; they are in none of the three above.
        lost_tokens: those of them that cannot be used.
        orphan_tokens: finished files of tokens that the catalog does not name.
        leftovers: names of temporary files, relative to the index folder.
        items: as the catalog has them.
        bytes: what was read.
        format: the catalog's, by its first bytes.
    """

    path: Path
    busy: bool
    problems: list[Problem] = field(default_factory=list)
    segments: dict[str, SegmentCheck] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    lost_tokens: list[str] = field(default_factory=list)
    orphan_tokens: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    items: int = 0
    bytes: int = 0
    format: int = layout.FORMAT_VERSION

    @property
    def damage(self) -> list[Problem]:
        """The problems that are damage."""
        return [problem for problem in self.problems if problem.damage]

    @property
    def lost(self) -> list[str]:
        """Segments that the catalog names and that cannot be used."""
        return [name for name in self.named if name in self.segments and self.segments[name].kind is not None]

    @property
    def must_salvage(self) -> bool:
        """Whether the catalog has to be made anew. Segments it does not name may hold what is lost elsewhere."""
        return any(problem.kind in SALVAGE for problem in self.problems) or bool(self.lost and self.orphans)

    def distrust(self) -> None:
        """Forgets which files the catalog names, because nothing that it says can be relied on."""
        self.named.clear()
        self.tokens.clear()
        self.lost_tokens.clear()

    def add(self, kind: str, where: str, message: str, remedy: str = REPAIR, lost_items: int = 0) -> None:
        """Notes a problem."""
        self.problems.append(Problem(kind, where, message, remedy, lost_items=lost_items))
