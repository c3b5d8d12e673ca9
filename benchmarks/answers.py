"""What answers cost beside those of a plain query, encoding excluded: filters, words, shapes.

    python benchmarks/answers.py --cache index-200k --out benchmarks/results/answers.json
    python benchmarks/answers.py --cache index-200k --only filter-crossover

The collection is synthetic (`captioned.py`): pictures with dates, places, tags, and captions in English and Chinese.
With `--cache` its index is made once and kept. Each question takes turns with a plain one, in one process, so that
both meet the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from captioned import INDEXED, OTHERS, SHARES, Captioned, filter_of
from contest import Figure, first_line, write_result, write_table
from machine import describe

from mmsearch.retrieval.conditions import FUNCTIONS, compile_filter
from mmsearch.retrieval.filters import parse_filter
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store import LocalStore, Snapshot
from mmsearch.retrieval.store.records import Condition
from mmsearch.retrieval.store.selection import by_candidates, by_ids, count_where, search_where

CROSSING = (0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
K = 10

_QUESTIONS = 40
_WARM_UP = 2
_SCANS = 5
_CROSSING_ROUNDS = 5

Ask = Callable[[int], object]
"""Asks the question of a number: timed, and what it gives is thrown away."""


class Timed(NamedTuple):
    """Milliseconds of a question and of the plain ones that it took turns with.

    `scan` are those of a table scan that is not counted.
    """

    mine: list[float]
    plain: list[float]
    scan: float = 0.0

    @property
    def ratio(self) -> float:
        """Medians, one by the other, without the scan."""
        return (statistics.median(self.mine) - self.scan) / statistics.median(self.plain)

    def line(self) -> dict[str, float]:
        """What the result file says of it."""
        p95 = float(np.percentile(self.mine, 95))
        line = {"p50 ms": statistics.median(self.mine), "p95 ms": p95, "plain p50 ms": statistics.median(self.plain)}
        return {**line, **({"scan ms": self.scan} if self.scan else {}), "ratio": self.ratio}


class Workshop:
    """What measurements share: the collection, its index, and how questions are timed."""

    def __init__(self, index: Path, *, items: int, dim: int, rounds: int) -> None:
        self.collection = Captioned(items, dim)
        self.rounds = rounds
        if not index.exists():
            print(f"making {index} ...", file=sys.stderr, flush=True)
            self.collection.fill(index)
        self.snapshot: Snapshot = LocalStore.open(index).snapshot()
        if (self.snapshot.counts["image"], self.snapshot.dim) != (items, dim):
            raise SystemExit(f"{index} has other pictures than --items and --dim say")
        self.texts = [f"plain {number}" for number in range(3 * _QUESTIONS)]
        self.collection.prepare(self.texts)
        for texts in self.collection.questions.values():
            self.collection.prepare([text.replace('"', "") for text in texts])
        self.searcher = Searcher(self.snapshot, lambda: self.collection)  # type: ignore[arg-type, return-value]

    def ask(self, query: str, **options: Any) -> object:
        """One answer."""
        return self.searcher.search(query, k=K, **options)

    def plain(self, number: int) -> object:
        """A text of one clause, dense search, no filter."""
        return self.ask(self.texts[number % _QUESTIONS], mode="dense")

    def composed(self, number: int, **options: Any) -> object:
        """The same with two or three clauses."""
        first, second, third = (self.texts[part * _QUESTIONS + number % _QUESTIONS] for part in range(3))
        query = f"2:{first} + {second}" if number % 2 else f"{first} + {second} - 0.5:{third}"
        return self.ask(query, **{"mode": "dense", **options})

    def of_kind(self, kind: str, mode: str, number: int) -> object:
        """A question of the collection."""
        texts = self.collection.questions[kind]
        return self.ask(texts[number % len(texts)], mode=mode)

    def beside_plain(self, ask: Ask, scan: float = 0.0) -> Timed:
        """A question and the plain one by turns."""
        mine, plain = self.by_turns([ask, self.plain])
        return Timed(mine, plain, scan)

    def by_turns(self, asks: Sequence[Ask], rounds: int | None = None) -> list[list[float]]:
        """Milliseconds of several, each at each turn, every second round in the opposite order."""
        for ask in asks:
            for number in range(_WARM_UP):
                ask(number)
        found: list[list[float]] = [[] for _ in asks]
        for number in range(rounds or self.rounds):
            for at in range(len(asks)) if number % 2 == 0 else reversed(range(len(asks))):
                start = time.perf_counter()
                asks[at](number)
                found[at].append(1000 * (time.perf_counter() - start))
        return found

    def condition(self, text: str) -> Condition:
        """A filter on pictures, as the store takes it."""
        self.snapshot.register(FUNCTIONS)
        return compile_filter(parse_filter(text), self.snapshot.roots(), "image")

    def scan(self, text: str) -> float:
        """Milliseconds of looking at every picture for a filter, median."""
        condition = self.condition(text)
        (scans,) = self.by_turns([lambda _: count_where(self.snapshot, "image", condition)], rounds=_SCANS)
        return statistics.median(scans)

    def ways(self, condition: Condition, share: float) -> list[Ask]:
        """Both ways to answer a filter, for the same vectors of texts."""
        rows = self.collection.encode_texts(self.texts)

        def ids_first(number: int) -> object:
            return by_ids(self.snapshot, "image", rows[number % len(rows)], K, condition)

        def candidates(number: int) -> object:
            found = by_candidates(self.snapshot, "image", rows[number % len(rows)], K, condition, share)
            return found or by_ids(self.snapshot, "image", rows[number % len(rows)], K, condition)

        return [ids_first, candidates]

    @cached_property
    def half_ready(self) -> dict[str, Timed]:
        """Composed queries without a filter, and hybrid ones with one: not held to anything."""
        where = filter_of("taken", 0.1)
        return {
            "composed": self.beside_plain(self.composed),
            "composed, fusion both": self.beside_plain(partial(self.composed, fusion="both")),
            "hybrid, filtered": self.beside_plain(partial(self.composed, mode="hybrid", where=where)),
        }


def worst(timed: Mapping[str, Timed]) -> float:
    """The largest ratio."""
    return max(one.ratio for one in timed.values())


def lines(timed: Mapping[str, Timed]) -> dict[str, dict[str, float]]:
    """What is told of each."""
    return {name: {key: round(value, 2) for key, value in one.line().items()} for name, one in timed.items()}


# The measurements. Each takes the workshop and returns its figure; the first line says what it is.


def filtered_indexed(shop: Workshop) -> Figure:
    """Composed and filtered by an indexed field / a plain dense query, medians, the worst share."""
    timed = {
        f"{field} {share:.1%}": shop.beside_plain(partial(shop.composed, where=filter_of(field, share)))
        for field in INDEXED
        for share in SHARES
    }
    return Figure("filtered-indexed", first_line(filtered_indexed), worst(timed), "<=", 2.0, notes=lines(timed))


def filtered_others(shop: Workshop) -> Figure:
    """Composed and filtered by another field, less one table scan / a plain dense query, medians, the worst share."""
    timed = {}
    for field in OTHERS:
        for share in SHARES:
            where = filter_of(field, share)
            timed[f"{field} {share:.1%}"] = shop.beside_plain(partial(shop.composed, where=where), shop.scan(where))
    return Figure("filtered-others", first_line(filtered_others), worst(timed), "<=", 2.0, notes=lines(timed))


def hybrid(shop: Workshop) -> Figure:
    """A hybrid query / a plain dense one, medians, the worst kind of words."""
    timed = {kind: shop.beside_plain(partial(shop.of_kind, kind, "hybrid")) for kind in shop.collection.questions}
    return Figure("hybrid", first_line(hybrid), worst(timed), "<=", 2.0, notes=lines(timed))


def lexical(shop: Workshop) -> Figure:
    """A lexical query / a plain dense one, medians, the worst kind of words."""
    timed = {kind: shop.beside_plain(partial(shop.of_kind, kind, "lexical")) for kind in shop.collection.questions}
    return Figure("lexical", first_line(lexical), worst(timed), "<=", 2.0, notes=lines(timed))


def shaped(shop: Workshop) -> Figure:
    """Grouped, without near-duplicates, or diverse / a plain dense query, medians, the worst; for information."""
    options: dict[str, dict[str, Any]] = {
        "group": {"group": "folder"},
        "dedup": {"dedup": True},
        "diverse": {"diverse": 0.3},
        "all three": {"group": "folder", "dedup": True, "diverse": 0.3},
        "offset 1000": {"offset": 1000},
        "min_relevance": {"min_relevance": 0.5},
    }
    timed = {
        **{name: shop.beside_plain(partial(shop.composed, **each)) for name, each in options.items()},
        **shop.half_ready,
    }
    return Figure("shaped", first_line(shaped), worst(timed), "<=", float("inf"), notes=lines(timed))


def filter_crossover(shop: Workshop) -> Figure:
    """The way to answer a filter that is chosen / the cheaper one of ids first and candidates, medians, the worst."""
    notes: dict[str, Any] = {}
    crossings = {}
    chosen = []
    row = shop.collection.encode_texts(shop.texts[:1])[0]
    for field in (*INDEXED, "width", "meta.NAME"):
        costs: dict[float, tuple[float, float]] = {}
        for share in CROSSING if field != "tag" else SHARES:
            condition = shop.condition(filter_of(field, share))
            ids, checked = map(statistics.median, shop.by_turns(shop.ways(condition, share), rounds=_CROSSING_ROUNDS))
            costs[share] = ids, checked
            plan = search_where(shop.snapshot, "image", row, K, condition).plan
            chosen.append((ids if plan == "ids first" else checked) / min(ids, checked))
        crossings[field] = crossing(costs)
        notes[field] = {
            f"{share:.1%}": {"ids ms": round(ids, 2), "candidates ms": round(checked, 2)}
            for share, (ids, checked) in costs.items()
        }
    notes = {"candidates are cheaper from": crossings, **notes}
    return Figure("filter-crossover", first_line(filter_crossover), max(chosen), "<=", 2.0, notes=notes)


def crossing(costs: Mapping[float, tuple[float, float]]) -> float:
    """The smallest share from which on, of (ids first, candidates), the second is always the cheaper; 1 for none."""
    cheaper = 1.0
    for share in sorted(costs, reverse=True):
        ids, checked = costs[share]
        if checked >= ids:
            break
        cheaper = share
    return cheaper


MEASUREMENTS: dict[str, Callable[[Workshop], Figure]] = {
    "filtered-indexed": filtered_indexed,
    "filtered-others": filtered_others,
    "hybrid": hybrid,
    "lexical": lexical,
    "shaped": shaped,
    "filter-crossover": filter_crossover,
}


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--items", type=int, default=200_000, help="pictures in the index")
    parser.add_argument("--dim", type=int, default=512, help="length of a vector")
    parser.add_argument("--rounds", type=int, default=20, help="how often each question is asked")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the index here, for another time")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    where_it_ran = describe()
    with tempfile.TemporaryDirectory() as folder:
        index = arguments.cache or Path(folder) / "index"
        shop = Workshop(index, items=arguments.items, dim=arguments.dim, rounds=arguments.rounds)
        figures = []
        for name in arguments.only:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            figures.append(MEASUREMENTS[name](shop))
        shop.snapshot.close()
    write_table(figures)
    if arguments.out:
        command = ["benchmarks/answers.py", *(argv if argv is not None else sys.argv[1:])]
        about = {"items": arguments.items, "dim": arguments.dim, "rounds": arguments.rounds}
        write_result(arguments.out, "answers", command, where_it_ran, about, figures)


if __name__ == "__main__":
    main()
