"""Exact searches in a process of their own: `python benchmarks/search_once.py HOW INDEX K QUERIES`.

HOW is `snapshot` (Snapshot.search) or `faiss` (a bare IndexFlatIP of the same rows). One query at a time. Prints one
JSON object: `seconds` (the median), `found` (ids of the best rows of every query, to compare) and the `kernels`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM_UP = 3
VARIABLES = re.compile(r"OPENBLAS|OMP_|MKL_|GOTO_|BLIS_")

Search = Callable[["NDArray[np.float32]"], list[int]]


def queries(count: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors; the same for everyone who asks."""
    rows = np.random.default_rng(1).standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def by_snapshot(index: Path, k: int) -> tuple[int, Search]:
    """Dimension, and a search through the store."""
    from mmsearch.retrieval.store.reader import Snapshot

    snapshot = Snapshot.open(index)
    return snapshot.dim, lambda query: [one.item_id for one in snapshot.search("image", query, k)[0]]


def by_faiss(index: Path, k: int) -> tuple[int, Search]:
    """Dimension, and a search of all rows in the memory of a flat FAISS index."""
    import faiss

    from mmsearch.retrieval.store import layout
    from mmsearch.retrieval.store.segments import Segment

    segments = [Segment(path) for path in sorted((index / layout.SEGMENTS).iterdir())]
    flat = faiss.IndexFlatIP(segments[0].dim)
    for segment in segments:
        flat.add(segment.rows)
    item_ids = np.concatenate([segment.item_ids for segment in segments])
    return flat.d, lambda query: item_ids[flat.search(query, k)[1][0]].tolist()


def kernels() -> dict[str, Any]:
    """What multiplies matrices here, with how many threads, and what in the environment has a say in it."""
    found: dict[str, Any] = {name: value for name, value in os.environ.items() if VARIABLES.match(name)}
    try:
        libraries = set(re.findall(r"/\S*openblas\S*", Path("/proc/self/maps").read_text()))
    except OSError:
        libraries = set()
    for path in sorted(libraries):
        library = ctypes.CDLL(path)
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            name = getattr(library, f"{prefix}openblas_get_corename{suffix}", None)
            threads = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            if name is not None and threads is not None:
                name.restype = ctypes.c_char_p
                package = Path(path).parent.name.removesuffix(".libs")
                found[f"OpenBLAS of {package}"] = f"{name().decode()}, {threads()} threads"
                break
    faiss = sys.modules.get("faiss")
    if faiss is not None:
        found["FAISS"] = f"{faiss.get_compile_options().strip()}, {faiss.omp_get_max_threads()} threads"
    return found


def main() -> None:
    """Runs it."""
    how, index, k, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    dim, search = {"snapshot": by_snapshot, "faiss": by_faiss}[how](index, k)
    asked = queries(count, dim)
    for query in asked[:WARM_UP]:
        search(query[np.newaxis])
    seconds, found = [], []
    for query in asked:
        start = time.perf_counter()
        best = search(query[np.newaxis])
        seconds.append(time.perf_counter() - start)
        found.append(sorted(best))
    print(json.dumps({"seconds": statistics.median(seconds), "found": found, "kernels": kernels()}))


if __name__ == "__main__":
    main()
