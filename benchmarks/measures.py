"""What measuring embeddings costs: beside sorting all scores, beside trec_eval, and at the size of COCO.

    python benchmarks/measures.py --out benchmarks/results/measures.json
    python benchmarks/measures.py --only large-seconds --large 25000 5000

The embeddings are random: five captions around each picture. pytrec_eval is in the `dev` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytrec_eval
from contest import HERE, Figure, alternate, child, first_line, python, ratio, write_result, write_table
from machine import describe
from measures_once import captioned
from numpy.typing import NDArray

from mmsearch.retrieval.evaluate import measure_embeddings

KS = (1, 5, 10)


class Workshop:
    """What measurements share: embeddings, and how often each contender has its turn."""

    def __init__(self, captions: int, pictures: int, large: tuple[int, int], *, dim: int, rounds: int) -> None:
        self.texts, self.images, self.owners = captioned(captions, pictures, dim)
        self.large = large
        self.dim = dim
        self.rounds = rounds

    def ours(self) -> float:
        """Seconds of `measure_embeddings`."""
        start = time.perf_counter()
        measure_embeddings(self.texts, self.images, self.owners[:, None].tolist(), ks=KS)
        return time.perf_counter() - start

    def sorting(self) -> float:
        """Seconds of all scores at once, sorted whole, for success@k and MRR only."""
        start = time.perf_counter()
        order = np.argsort(-(self.texts @ self.images.T), axis=1, kind="stable")
        ranks: NDArray[np.int64] = 1 + np.argmax(order == self.owners[:, None], axis=1)
        _ = [np.mean(ranks <= k) for k in KS], np.mean(1 / ranks)
        return time.perf_counter() - start

    def trec_eval(self, *, evaluator_only: bool = False) -> float:
        """Seconds of pytrec_eval with the same measures, from scores or from a run that is made already."""
        start = time.perf_counter()
        names = [str(row) for row in range(len(self.images))]
        scores = self.texts @ self.images.T
        run = {str(row): dict(zip(names, line.tolist(), strict=True)) for row, line in enumerate(scores)}
        qrels = {str(row): {str(owner): 1} for row, owner in enumerate(self.owners.tolist())}
        if evaluator_only:
            start = time.perf_counter()
        cut = ",".join(map(str, KS))
        measures = {"map", "recip_rank", f"success.{cut}", f"recall.{cut}", f"ndcg_cut.{cut}"}
        pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
        return time.perf_counter() - start

    @cached_property
    def once(self) -> list[dict[str, float]]:
        """The large size, in both directions, in fresh processes: seconds and peak memory."""
        return [
            json.loads(child(python(HERE / "measures_once.py", *map(str, (*self.large, self.dim)), way)).stdout)
            for way in ("text_to_image", "image_to_text")
        ]


def by_sorting(shop: Workshop) -> Figure:
    """`measure_embeddings` / all scores at once, sorted by `argsort`, for success@k and MRR only."""
    seconds = alternate(shop.rounds, {"measure_embeddings": shop.ours, "argsort": shop.sorting})
    value = ratio(seconds["measure_embeddings"], seconds["argsort"])
    return Figure("by-sorting", first_line(by_sorting), value, "<=", 1.0, seconds)


def by_trec_eval(shop: Workshop) -> Figure:
    """`measure_embeddings` / pytrec_eval, the run made of the scores included."""
    seconds = alternate(
        shop.rounds,
        {
            "measure_embeddings": shop.ours,
            "pytrec_eval": shop.trec_eval,
            "pytrec_eval, run made before": partial(shop.trec_eval, evaluator_only=True),
        },
    )
    value = ratio(seconds["measure_embeddings"], seconds["pytrec_eval"])
    return Figure("by-trec-eval", first_line(by_trec_eval), value, "<=", 0.5, seconds)


def large_seconds(shop: Workshop) -> Figure:
    """Seconds of the large size, the worse of both directions."""
    value = max(each["seconds"] for each in shop.once)
    return Figure("large-seconds", first_line(large_seconds), value, "<=", 10.0, notes=_of_both(shop))


def large_memory(shop: Workshop) -> Figure:
    """Peak memory beyond that of the embeddings / the bytes of a matrix of all scores, the worse of both directions."""
    matrix = 4 * shop.large[0] * shop.large[1]
    value = max(each["peak_bytes"] for each in shop.once) / matrix
    return Figure("large-memory", first_line(large_memory), value, "<=", 0.5, notes=_of_both(shop))


def _of_both(shop: Workshop) -> dict[str, dict[str, float]]:
    return {
        way: {"seconds": each["seconds"], "peak MiB": each["peak_bytes"] / 2**20}
        for way, each in zip(("text_to_image", "image_to_text"), shop.once, strict=True)
    }


MEASUREMENTS: dict[str, Callable[[Workshop], Figure]] = {
    "by-sorting": by_sorting,
    "by-trec-eval": by_trec_eval,
    "large-seconds": large_seconds,
    "large-memory": large_memory,
}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--size", nargs=2, type=int, default=(5000, 1000), help="captions and pictures %(default)s")
    parser.add_argument("--large", nargs=2, type=int, default=(25_000, 5000), help="the same, large %(default)s")
    parser.add_argument("--dim", type=int, default=512, help="of the vectors (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (%(default)s)")
    arguments = parser.parse_args(argv)
    if min(*arguments.size, *arguments.large, arguments.dim, arguments.rounds) < 1:
        parser.error("--size, --large, --dim and --rounds want 1 or more")
    where_it_ran = describe()
    shop = Workshop(*arguments.size, tuple(arguments.large), dim=arguments.dim, rounds=arguments.rounds)
    figures = [
        measure(shop) for name, measure in MEASUREMENTS.items() if name in (arguments.only or list(MEASUREMENTS))
    ]
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/measures.py", *(argv if argv is not None else sys.argv[1:])]
        about = {
            "size": list(arguments.size),
            "large": list(arguments.large),
            "dim": arguments.dim,
            "rounds": arguments.rounds,
        }
        write_result(arguments.out, "measures", command, where_it_ran, about, figures)


if __name__ == "__main__":
    main()
