"""Measures random embeddings once, in a process of its own: seconds and peak memory, as a line of JSON.

python benchmarks/measures_once.py CAPTIONS PICTURES DIM text_to_image
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from dupes_once import peak_bytes
from numpy.typing import NDArray

from mmsearch.retrieval.evaluate import measure_embeddings


def captioned(
    captions: int, pictures: int, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors of captions and pictures, and the picture of each caption."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((pictures, dim), np.float32)
    owners = np.arange(captions) * pictures // captions
    texts = rng.standard_normal((captions, dim), np.float32)
    texts *= 6
    for start in range(0, captions, 1000):
        texts[start : start + 1000] += images[owners[start : start + 1000]]
    for rows in (images, texts):
        rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]  # no copy, which would hide a later peak
    return texts, images, owners


def main(captions: int, pictures: int, dim: int, way: str) -> None:
    """Measures once."""
    texts, images, owners = captioned(captions, pictures, dim)
    of_text = owners[:, None].tolist()
    ends = np.searchsorted(owners, np.arange(pictures + 1))
    of_image = [list(range(*pair)) for pair in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    measure_embeddings(texts[:8], images[:8], [[0]] * 8)  # so that libraries are loaded
    before, start = peak_bytes(), time.perf_counter()
    if way == "text_to_image":
        found = measure_embeddings(texts, images, of_text)
    else:
        found = measure_embeddings(images, texts, of_image)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes() - before, **found.summary()}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
