"""What a filter brings that the person who asks is right about: fewer pictures to be mistaken for.

    python benchmarks/filtered.py --data ../shared/data --out benchmarks/results/filtered.json

The 1,000 photos of Flickr8k *val* are indexed by the bundled model. For each filter, the first English caption of every
photo that passes it asks for that photo, without the filter and with it. How much that brings depends on what share
passes, and on nothing else about the filter.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

import mmsearch
from mmsearch.indexers.train import data
from mmsearch.retrieval.evaluate import paired_bootstrap
from mmsearch.retrieval.query import Query

CUTS = (1, 10)

FILTERS = ("3", "1", "34", "341")
"""How the names of the photos begin that a filter lets through: about half, a tenth and less of them."""


def main() -> int:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/")
    parser.add_argument("--photos", type=int, default=1000, help="only so many")
    parser.add_argument("--out", type=Path, help="write a JSON file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": f"python benchmarks/filtered.py {shlex.join(sys.argv[1:])}", **describe()}
    val = data.read_captioned(arguments.data / "flickr8k", "val")
    asked = dict(zip(val.paths[: arguments.photos], (texts[0] for texts in val.english), strict=False))
    result["figures"] = []
    with tempfile.TemporaryDirectory() as folder, mmsearch.open(Path(folder) / "index", model="starter") as index:
        index.add(*asked)

        def rank(path: Path, where: str | None) -> float:
            answer = index.search(Query.literal(asked[path]), k=max(CUTS), mode="dense", modality="image", where=where)
            return next(
                (hit.rank for hit in answer if hit.path is not None and Path(hit.path).name == path.name), np.inf
            )

        plain = {path: rank(path, None) for path in asked}
        for start in FILTERS:
            where, mine = f'path ~ "*/{start}*"', [path for path in asked if path.name.startswith(start)]
            if not mine:
                continue
            before, after = np.array([plain[path] for path in mine]), np.array([rank(path, where) for path in mine])
            figure: dict[str, Any] = {"filter": where, "pass": len(mine), "share": round(len(mine) / len(asked), 3)}
            for k in CUTS:
                found = paired_bootstrap((before <= k).astype(np.float64), (after <= k).astype(np.float64))
                values = {"without": float((before <= k).mean()), "with": float((after <= k).mean()), **asdict(found)}
                figure[f"success@{k}"] = {name: round(value, 4) for name, value in values.items()}
            result["figures"].append(figure)
            print(json.dumps(figure), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
