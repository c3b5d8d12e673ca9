"""Near-duplicates in a process of their own: `python benchmarks/dupes_once.py INDEX [EXACT_ROWS]`.

Prints one JSON object: `seconds`, `peak_bytes` beyond what the process took with the index open and its vectors read,
`groups` (item ids, the kept one first) and `typical`, the cosine of unlike pictures.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from mmsearch.index import Index
from mmsearch.retrieval import neighbours
from mmsearch.retrieval.duplicates import rule_of
from mmsearch.retrieval.store import Snapshot


def peak_bytes() -> int:
    """The most memory that this process has had; where Linux does not tell, 0."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main(index: Path, exact_rows: int | None) -> None:
    """Looks for near-duplicates once."""
    if exact_rows is not None:
        neighbours.EXACT_ROWS = exact_rows
    with Snapshot.open(index) as snapshot:
        embeddings = snapshot.embeddings("image")
        for start in range(0, len(embeddings), 1024):  # mapped pages of the index count as memory of the process
            embeddings.rows(np.arange(start, min(start + 1024, len(embeddings))))
        before = peak_bytes()
        typical = rule_of(embeddings).typical
        with Index(index) as opened:
            start_time = time.perf_counter()
            report = opened.duplicates()
            seconds = time.perf_counter() - start_time
    groups = [[group.keep.item_id, *(one.item_id for one in group.duplicates)] for group in report.groups]
    print(
        json.dumps(
            {"seconds": seconds, "peak_bytes": peak_bytes() - before, "typical": round(typical, 4), "groups": groups}
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
