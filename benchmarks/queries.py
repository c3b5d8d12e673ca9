"""What decides the defaults of searching: how clauses are put together, hybrid search, prompt templates.

    python benchmarks/queries.py --data ../shared/data --out benchmarks/results/queries.json

Everything is asked of the product, on real indexes of photos in a temporary folder: of 1,000 photos of Flickr8k
*train*, on which the choices were made and whose captions the starter has seen; of *val*; and of COCO, on which nothing
was chosen. Four tests:

- composed: two captions of a photo, each a clause, are to find it; and a caption with the middle of the photo.
- negative: "dog - beach" is to find photos with a dog and no beach, as their captions tell.
- hybrid: captions 2 to 5 lie beside photos as texts, caption 1 is to find the photo. All photos have them, every
  second has, or none. What is looked for and has none, among others that have, is reported on its own.
- templates: words that captions have are to find these photos, and names of classes those of Caltech-101.

Success@k is the share of queries whose photo is among the first k; MRR@10 counts 1 / rank, and 0 beyond rank 10.
Differences are to the first way of each table, with 95 % paired bootstrap intervals of queries; the pairs of words of
the negative test are resampled by the wanted word.

Each set is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from machine import describe

from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import index_sources
from mmsearch.indexers.train import data
from mmsearch.retrieval import ranking
from mmsearch.retrieval.clauses import prompts_of
from mmsearch.retrieval.evaluate import paired_bootstrap
from mmsearch.retrieval.query import Query, TextClause
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store import LocalStore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.types import Answer, FusionMethod

_POOL = 1000
"""Photos of train."""

_CUTS = (1, 5, 10)
_LEAST, _MOST = 4, 200
"""How many photos have a word that is asked for."""

_COMMON, _BOTH = 30, 8
"""How many photos have each word of the negative test; how many both, and how many the first only."""

_BATCH = 256

_CROP = 0.4
"""The middle of a photo: that share of its width and height."""

_FUNCTION_WORDS = frozenset(
    "a an and are as at be by for from has he her his in into is it its of on or she some that the their them there"
    " they this to was were while with two three one front top other another through up down over near next out off"
    " around behind something people's very large small big".split()
)
_CHINESE_WORDS = (
    "狗 男人 女人 男孩 女孩 水 雪 草地 沙滩 街道 沙子 树 田野 泳池 山 汽车 石头 红色 黑色 白色 蓝色 棕色 黄色 孩子 人"
    " 衬衫 帽子 衣服 球 足球 滑板 篮球 马 海滩 河 椅子 桌子 婴儿 观众 舞台 滑雪 冲浪 跑 跳 骑 海边 小孩"
).split()

Values = Mapping[str, "NDArray[np.float64]"]
"""What each query gave, by the name of the measure."""


@dataclass(frozen=True, slots=True)
class Photos:
    """Photos of which captions are known, by the number in their file names."""

    name: str
    captioned: data.Captioned

    def captions(self, language: str) -> list[list[str]]:
        """Of each photo; empty where the set has none of the language."""
        return self.captioned.english if language == "en" else self.captioned.chinese

    @property
    def languages(self) -> list[str]:
        """Those that it has captions in."""
        return [language for language in ("en", "zh") if all(len(own) > 1 for own in self.captions(language))]


class Remembering:
    """An encoder that embeds a text once. Under another name it is a model without prompt templates."""

    def __init__(self, encoder: Encoder, name: str, rows: dict[str, NDArray[np.float32]]) -> None:
        self._encoder = encoder
        self._rows = rows
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the encoder."""
        new = list(dict.fromkeys(text for text in texts if text not in self._rows))
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._rows.update(zip(batch, self._encoder.encode_texts(batch), strict=True))
        return np.stack([self._rows[text] for text in texts])


class Collection:
    """An index of photos whose captions come and go.

    Args:
        folder: where copies of the photos are, or will be, and the index.
        photos: in order; their files are named by number.
        encoder: of the index.
    """

    def __init__(self, folder: Path, photos: Sequence[Path], encoder: Remembering) -> None:
        self._photos = folder / "photos"
        self._encoder = encoder
        self._photos.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(photos):
            if not self._file(number).exists():
                shutil.copyfile(path, self._file(number))
        model = {"model": encoder.name, "identity": encoder.identity, "dim": encoder.dim}
        index = folder / "index"
        self._store = LocalStore.open(index) if index.exists() else LocalStore.create(index, **model)
        self.caption([])

    def caption(self, captions: Sequence[Sequence[str] | None]) -> None:
        """Indexes the photos, with these captions beside the first ones and no others."""
        for path in self._photos.glob("*.txt"):
            path.unlink()
        for number, own in enumerate(captions):
            if own is not None:
                self._file(number).with_suffix(".txt").write_text("\n".join(own), "utf-8")
        index_sources(open_sources([self._photos]), self._store, lambda: self._encoder)

    @contextmanager
    def searcher(self, encoder: Remembering | None = None) -> Iterator[Searcher]:
        """On what there is now."""
        with self._store.snapshot() as snapshot:
            yield Searcher(snapshot, lambda: encoder or self._encoder)

    def _file(self, number: int) -> Path:
        return self._photos / f"IMG_{number:05}.jpg"


def numbers(answer: Answer) -> list[int]:
    """The numbers of the photos that were found."""
    return [int(Path(hit.uri).stem.removeprefix("IMG_")) for hit in answer]


def known_item(answers: Sequence[Sequence[int]], wanted: Sequence[int]) -> Values:
    """Success and MRR of queries that one photo answers."""
    ranks = np.array(
        [found.index(photo) + 1 if photo in found else 0 for found, photo in zip(answers, wanted, strict=True)]
    )
    values = {f"success@{cut}": ((ranks > 0) & (ranks <= cut)).astype(np.float64) for cut in _CUTS}
    return values | {"mrr@10": np.where((ranks > 0) & (ranks <= 10), 1 / np.maximum(ranks, 1), 0.0)}


def many_items(answers: Sequence[Sequence[int]], relevant: NDArray[np.bool_]) -> Values:
    """Of queries that several photos answer, ranked in full: average precision, and the share of the first ten."""
    hits = [row[found] for found, row in zip(answers, relevant, strict=True)]
    average = [float((np.cumsum(row) / np.arange(1, len(row) + 1))[row].mean()) for row in hits]
    return {
        "average precision": np.array(average),
        "precision@10": np.array([float(row[:10].mean()) for row in hits]),
        **{f"success@{cut}": np.array([float(row[:cut].any()) for row in hits]) for cut in _CUTS},
    }


def table(ways: Mapping[str, Values], of: NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Means of each way, and differences to the first: (difference, low, high)."""
    first = next(iter(ways.values()))
    chosen = np.ones(len(next(iter(first.values()))), bool) if of is None else of
    rows: dict[str, Any] = {}
    for name, values in ways.items():
        rows[name] = {measure: round(float(each[chosen].mean()), 4) for measure, each in values.items()}
        if values is not first:
            rows[name]["difference"] = {
                measure: [round(value, 4) for value in (found.delta, found.low, found.high)]
                for measure, each in values.items()
                for found in [paired_bootstrap(first[measure][chosen], each[chosen])]
            }
    return {"queries": int(chosen.sum()), "ways": rows}


# The tests


def composed(photos: Photos, collection: Collection, encoder: Remembering) -> Iterator[dict[str, Any]]:
    """Two captions, or one and the middle of the photo."""
    count = len(photos.captioned.paths)
    pairs = [(one, other) for one in photos.languages for other in photos.languages if one <= other]
    with collection.searcher() as searcher:

        def find(ask: Callable[[int], Answer]) -> Values:
            return known_item([numbers(ask(number)) for number in range(count)], range(count))

        def found(query: Callable[[int], Query], **options: Any) -> Values:
            return find(lambda number: searcher.search(query(number), mode="dense", **options))

        for one, other in pairs:
            first = [own[0] for own in photos.captions(one)]
            second = [own[1 if one == other else 0] for own in photos.captions(other)]
            both = [Query((TextClause(a), TextClause(b))) for a, b in zip(first, second, strict=True)]
            plain = encoder.encode_texts(first) + encoder.encode_texts(second)
            ways = {
                "early": found(lambda number, both=both: both[number], fusion="early"),
                "late": found(lambda number, both=both: both[number], fusion="late"),
                "both": found(lambda number, both=both: both[number], fusion="both"),
                "plain sum": find(lambda number, plain=plain: searcher.search(vector=plain[number], mode="dense")),
                "first only": found(lambda number, first=first: Query.literal(first[number])),
                "second only": found(lambda number, second=second: Query.literal(second[number])),
            }
            yield {"test": "composed", "set": photos.name, "clauses": f"{one} + {other}", **table(ways)}

        middles = [middle_row(encoder, path) for path in photos.captioned.paths]
        for language in photos.languages:
            texts = [own[0] for own in photos.captions(language)]
            plain = encoder.encode_texts(texts) + np.stack(middles)

            def with_middle(fusion: str, texts: list[str] = texts) -> Values:
                return find(
                    lambda number: searcher.search(
                        Query.literal(texts[number]), vector=middles[number], mode="dense", fusion=fusion
                    )
                )

            ways = {
                "early": with_middle("early"),
                "late": with_middle("late"),
                "both": with_middle("both"),
                "plain sum": find(lambda number, plain=plain: searcher.search(vector=plain[number], mode="dense")),
                "text only": found(lambda number, texts=texts: Query.literal(texts[number])),
                "picture only": find(lambda number: searcher.search(vector=middles[number], mode="dense")),
            }
            yield {"test": "composed", "set": photos.name, "clauses": f"{language} + middle", **table(ways)}


def middle_row(encoder: Remembering, path: Path) -> NDArray[np.float32]:
    """The embedding of the middle of a photo."""
    from mmsearch.retrieval.media import load_image

    image = load_image(path.read_bytes(), target=encoder.image_size, name=path.name).image
    width, height = image.size
    rest = (1 - _CROP) / 2
    box = [round(part) for part in (rest * width, rest * height, (1 - rest) * width, (1 - rest) * height)]
    row: NDArray[np.float32] = encoder.encode_images([encoder.preprocess(image.crop(tuple(box)))])[0]
    return row


def negative(photos: Photos, collection: Collection) -> dict[str, Any] | None:
    """One word without another; None where the set is too small."""
    own = [_words(captions) for captions in photos.captions("en")]
    counts = Counter(word for has in own for word, number in has.items() if number > 1)
    words = [word for word, count in counts.items() if count >= _COMMON and word not in _FUNCTION_WORDS]
    times = {word: np.array([has[word] + has[f"{word}s"] for has in own]) for word in words}
    surely = {word: number > 1 for word, number in times.items()}
    perhaps = {word: number > 0 for word, number in times.items()}
    pairs = [
        (one, other)
        for one in words
        for other in words
        if one != other
        and (surely[one] & perhaps[other]).sum() >= _BOTH
        and (surely[one] & ~perhaps[other]).sum() >= _BOTH
    ]
    if not pairs:
        return None
    wanted = sorted({one for one, _ in pairs})

    def share(answers: Sequence[Sequence[int]], good: Callable[[str, str], NDArray[np.bool_]]) -> NDArray[np.float64]:
        """Of the first ten, averaged over the pairs of each wanted word."""
        each: dict[str, list[float]] = {word: [] for word in wanted}
        for (one, other), found in zip(pairs, answers, strict=True):
            each[one].append(float(good(one, other)[found].mean()))
        return np.array([np.mean(each[word]) for word in wanted])

    # In a composed vector negative clauses count half, so with twice the weight they count in full.
    asked: dict[str, tuple[float, float | None, FusionMethod]] = {
        "half": (1.0, -1.0, "early"),
        "without": (1.0, None, "early"),
        "a quarter": (2.0, -1.0, "early"),
        "in full": (1.0, -2.0, "early"),
        "late": (1.0, -1.0, "late"),
        "both": (1.0, -1.0, "both"),
    }
    ways: dict[str, Values] = {}
    with collection.searcher() as searcher:
        for name, (positive, minus, fusion) in asked.items():
            answers = []
            for one, other in pairs:
                clauses = [TextClause(one, positive)] + ([TextClause(other, minus)] if minus else [])
                answers.append(numbers(searcher.search(Query(tuple(clauses)), mode="dense", fusion=fusion)))
            ways[name] = {
                "as asked": share(answers, lambda one, other: surely[one] & ~perhaps[other]),
                "with the wanted": share(answers, lambda one, other: surely[one]),
                "with the unwanted": share(answers, lambda one, other: perhaps[other]),
            }
    return {"test": "negative", "set": photos.name, "pairs": len(pairs), **table(ways)}


def hybrid(photos: Photos, collection: Collection) -> Iterator[dict[str, Any]]:
    """Captions beside all photos, every second, or none."""
    count = len(photos.captioned.paths)
    even = np.arange(count) % 2 == 0
    everywhere = np.ones(count, bool)
    for language in photos.languages:
        captions = photos.captions(language)
        for beside, has in (("all", everywhere), ("half", even), ("none", ~everywhere)):
            collection.caption([own[1:] if has[number] else None for number, own in enumerate(captions)])
            ways: dict[str, Values] = {}
            with collection.searcher() as searcher:
                for name, mode, as_was in (
                    ("dense", "dense", nullcontext()),
                    ("lexical", "lexical", nullcontext()),
                    ("plain RRF, 60", "hybrid", plain_fusion()),
                    ("hybrid", "hybrid", nullcontext()),
                ):
                    with as_was:
                        answers = [numbers(searcher.search(Query.literal(own[0]), mode=mode)) for own in captions]
                    ways[name] = known_item(answers, range(count))
            parts = {"those with": has, "those without": ~has} if beside == "half" else {"": everywhere}
            for part, of in parts.items():
                about = {"test": "hybrid", "set": photos.name, "language": language, "captions": beside}
                yield {**about, **({"targets": part} if part else {}), **table(ways, of)}


def plain_fusion() -> ExitStack:
    """Hybrid search as reciprocal rank fusion has it: 60, equal weights, any word as good as all."""
    stack = ExitStack()
    plain = {"HYBRID_CONSTANT": 60, "WORDS_WEIGHT": 1.0, "WORDS_DEPTH": 1000}
    stack.enter_context(mock.patch.multiple(ranking, **plain))
    stack.enter_context(mock.patch.object(ranking, "word_shares", lambda _, query, ids: dict.fromkeys(ids, 1.0)))
    return stack


def templates(photos: Photos, collection: Collection, bare: Remembering) -> Iterator[dict[str, Any]]:
    """Words, pairs of words, and whole captions."""
    own = photos.captions("en")
    counts = [_words(captions) for captions in own]
    surely = Counter(word for has in counts for word, times in has.items() if times > 1)
    words = [word for word, found in surely.items() if _LEAST <= found <= _MOST and word not in _FUNCTION_WORDS]
    with_word = np.array([[has[word] > 1 for has in counts] for word in words])
    found_pairs = [set().union(*map(_pairs, captions)) for captions in own]
    pair_counts = Counter(pair for has in found_pairs for pair in has)
    pairs = [pair for pair, found in pair_counts.items() if _LEAST <= found <= _MOST]
    with_pair = np.array([[pair in has for has in found_pairs] for pair in pairs])
    asked = {"words": (words, with_word), "pairs of words": (pairs, with_pair)}
    if "zh" in photos.languages:
        texts = ["\n".join(own) for own in photos.captions("zh")]
        chinese = {word: np.array([word in text for text in texts]) for word in _CHINESE_WORDS}
        enough = [word for word, found in chinese.items() if found.sum() >= _LEAST]
        asked["Chinese words"] = (enough, np.array([chinese[word] for word in enough]))
    for name, (queries, relevant) in asked.items():
        if queries:
            about = {"test": "templates", "set": photos.name, "queries are": name}
            yield about | with_and_without(queries, relevant, collection, bare)
    captions = [text for language in photos.languages for texts in photos.captions(language) for text in texts]
    changed = sum(prompts_of(bare.name.partition(" ")[0], text) != (text,) for text in captions)
    about = {"test": "templates", "set": photos.name, "queries are": "captions"}
    yield about | {"queries": len(captions), "changed": changed}


def with_and_without(
    queries: Sequence[str], relevant: NDArray[np.bool_], collection: Collection, bare: Remembering
) -> dict[str, Any]:
    """The product, and a model without templates."""
    ways: dict[str, Values] = {}
    for name, encoder in (("none", bare), ("templates", None)):
        with collection.searcher(encoder) as searcher:
            search = partial(searcher.search, mode="dense", k=relevant.shape[1])
            ways[name] = many_items([numbers(search(Query.literal(text))) for text in queries], relevant)
    return table(ways)


def _words(captions: Sequence[str]) -> Counter[str]:
    """In how many captions of a photo each word is."""
    return Counter(word for text in captions for word in set(_split(text)))


def _pairs(caption: str) -> Iterator[str]:
    return (f"{one} {other}" for one, other in pairwise(_split(caption)) if not _FUNCTION_WORDS & {one, other})


def _split(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


# The run


def some(captioned: data.Captioned, count: int) -> data.Captioned:
    """`count` photos at random, always the same."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(captioned.paths))[:count])
    return data.Captioned(
        [captioned.paths[number] for number in chosen],
        [captioned.english[number] for number in chosen],
        [captioned.chinese[number] for number in chosen],
    )


def figures_of(folder: Path, kept: Path, model: str, name: str) -> list[dict[str, Any]]:
    """The figures of a set, for a process of its own."""
    from mmsearch.retrieval.encoders.models import load_encoder

    return list(run(folder, kept, [name], load_encoder(model)))


def run(folder: Path, kept: Path, sets: Sequence[str], encoder: Encoder) -> Iterator[dict[str, Any]]:
    """The figures of some sets."""
    rows: dict[str, NDArray[np.float32]] = {}
    remembering = Remembering(encoder, encoder.name, rows)
    bare = Remembering(encoder, f"{encoder.name} without templates", rows)
    for name in sets:
        if name == "caltech":
            labelled = data.read_class_folders(folder / "caltech101_train")
            collection = Collection(kept / name, labelled.paths, remembering)
            short = [number for number, text in enumerate(labelled.names) if len(text.split()) <= 2]
            names = [labelled.names[number] for number in short]
            relevant = np.array([labelled.labels == number for number in short])
            about = {"test": "templates", "set": name, "queries are": "names of classes"}
            yield about | with_and_without(names, relevant, collection, bare)
            continue
        source = (folder / "coco_dev", None) if name == "coco" else (folder / "flickr8k", name)
        photos = Photos(name, some(data.read_captioned(*source), _POOL))
        collection = Collection(kept / name, photos.captioned.paths, remembering)
        for language in photos.languages:  # in one go, which is quicker than one by one
            remembering.encode_texts([text for own in photos.captions(language) for text in own[:2]])
        yield from composed(photos, collection, remembering)
        if found := negative(photos, collection):
            yield found
        yield from templates(photos, collection, bare)
        yield from hybrid(photos, collection)


def say(figure: dict[str, Any]) -> None:
    """Prints a table."""
    print(", ".join(f"{name} {value}" for name, value in figure.items() if name not in ("ways", "test")), flush=True)
    for way, values in figure.get("ways", {}).items():
        differences = values.get("difference", {})
        cells = [
            f"{measure} {value:.3f}"
            + (" ({:+.3f}, {:+.3f} to {:+.3f})".format(*differences[measure]) if differences else "")
            for measure, value in values.items()
            if measure != "difference"
        ]
        print(f"  {way:14} {'  '.join(cells)}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=["train", "val", "coco", "caltech"], help="%(default)s")
    parser.add_argument("--model", default="starter", metavar="NAME", help="the model to measure (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the indexes here, for another time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    command = shlex.join(["python", "benchmarks/queries.py", *(argv if argv is not None else sys.argv[1:])])
    figures: list[dict[str, Any]] = []
    result = {"benchmark": "queries", "command": command, "machine": describe(), "figures": figures}
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small, and each process has a processor
    with TemporaryDirectory() as temporary, ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        kept = arguments.keep or Path(temporary)
        for some_figures in pool.map(partial(figures_of, arguments.data, kept, arguments.model), arguments.sets):
            for figure in some_figures:
                say(figure)
            figures += some_figures
            if arguments.out:  # after each set, because all of them take long
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
