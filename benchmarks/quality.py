"""How well a model searches: the figures of the project's floors, through the public `Encoder` protocol.

    python benchmarks/quality.py --data ../shared/data --out benchmarks/results/quality.json
    python benchmarks/quality.py --data ../shared/data --model balanced --against starter

Success@k is what CLIP papers print as "R@k". Intervals are 95 % bootstrap intervals, resampling photos: the five
captions of a photo are not five independent queries.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe

from mmsearch.indexers.train import data
from mmsearch.indexers.train.figures import LANGUAGES, SENTENCES, retrieval_ranks
from mmsearch.retrieval.evaluate import overlap_at_k, paired_bootstrap, success_at_k, zero_shot_accuracy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

FLOORS = {
    "en t2i@10": 0.63,
    "zh t2i@10": 0.43,
    "en i2t@10": 0.68,
    "coco t2i@10": 0.70,
    "caltech top-1": 0.20,
    "top-10 shared": 4.0,
}
"""What the bundled starter has to reach. Nothing that is measured here is trained on."""

_CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Sets:
    """What is measured on, as `../shared/data/README.md` describes it."""

    val: data.Captioned
    coco: data.Captioned
    caltech: data.Labelled


@dataclass(frozen=True, slots=True)
class Quality:
    """A model's answers to the queries of all sets.

    Attributes:
        figures: by name; success@k and top-1 are shares, `top-10 shared` counts photos.
        values: per-photo values behind a figure, for comparing two models: a caption query counts for its photo.
    """

    figures: Mapping[str, float]
    values: Mapping[str, NDArray[np.float64]]


def read_sets(folder: Path) -> Sets:
    """Reads the lists of photos and captions; no picture yet."""
    return Sets(
        data.read_captioned(folder / "flickr8k", "val"),
        data.read_captioned(folder / "coco_dev"),
        data.read_class_folders(folder / "caltech101_train"),
    )


def embed_photos(encoder: Encoder, paths: Sequence[Path], title: str) -> NDArray[np.float32]:
    """(n, dim) rows of photos, read and decoded as `mmsearch index` does it."""
    from mmsearch.retrieval.media import load_image

    def ready(path: Path) -> NDArray[Any]:
        image = load_image(path.read_bytes(), target=encoder.image_size, name=path.name).image
        return encoder.preprocess(image)

    with ThreadPoolExecutor(2) as pool:
        rows = [
            encoder.encode_images(list(pool.map(ready, batch)))
            for batch in _batches(paths, encoder.batch_size, f"{title}, photos")
        ]
    return np.concatenate(rows)


def embed_texts(encoder: Encoder, texts: Sequence[str], title: str) -> NDArray[np.float32]:
    """(n, dim) rows of texts."""
    return np.concatenate([encoder.encode_texts(batch) for batch in _batches(texts, 256, f"{title}, texts")])


def measure(encoder: Encoder, sets: Sets) -> Quality:
    """Embeds all sets with a model and computes its figures."""
    figures: dict[str, float] = {}
    values: dict[str, NDArray[np.float64]] = {}
    photos = {
        name: embed_photos(encoder, each.paths, f"{encoder.name}: {name}")
        for name, each in (("val", sets.val), ("coco", sets.coco), ("caltech", sets.caltech))
    }
    for name, captioned, captions, images in (
        ("en", sets.val, sets.val.english, photos["val"]),
        ("zh", sets.val, sets.val.chinese, photos["val"]),
        ("coco", sets.coco, sets.coco.english, photos["coco"]),
    ):
        texts, owners = captioned.pairs(captions)
        ranks = retrieval_ranks(embed_texts(encoder, texts, f"{encoder.name}: {name}"), images, owners)
        for k in _CUTS:
            figures[f"{name} t2i@{k}"] = success_at_k(ranks[0], k)
            figures[f"{name} i2t@{k}"] = success_at_k(ranks[1], k)
            values[f"{name} t2i@{k}"] = _by_photo(ranks[0] <= k, owners)
            values[f"{name} i2t@{k}"] = (ranks[1] <= k).astype(np.float64)
    names = embed_texts(encoder, sets.caltech.names, f"{encoder.name}: caltech")
    figures["caltech top-1"] = zero_shot_accuracy(photos["caltech"], names, sets.caltech.labels)
    nearest = np.argmax(photos["caltech"] @ names.T, axis=1)
    values["caltech top-1"] = (nearest == sets.caltech.labels).astype(np.float64)

    ten = {
        language: embed_texts(encoder, [row[column] for row in SENTENCES], f"{encoder.name}: {language}")
        for column, language in enumerate(LANGUAGES)
    }
    for language in LANGUAGES[1:]:
        figures[f"top-10 shared {language}"] = overlap_at_k(ten["en"], ten[language], photos["val"], 10)
    figures["top-10 shared"] = float(np.mean([figures[f"top-10 shared {language}"] for language in LANGUAGES[1:]]))
    return Quality(figures, values)


def compare(mine: Quality, other: Quality) -> dict[str, dict[str, float]]:
    """Paired bootstrap of every figure that both have values for: `mine` minus `other`."""
    return {name: asdict(paired_bootstrap(other.values[name], values)) for name, values in mine.values.items()}


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of a mean of per-photo values."""
    found = paired_bootstrap(np.zeros_like(values), values)
    return found.low, found.high


def _by_photo(successes: NDArray[np.bool_], owners: Sequence[int]) -> NDArray[np.float64]:
    """Mean over the captions of each photo that has any."""
    count = np.bincount(owners)
    total = np.bincount(owners, weights=successes)
    return np.asarray(total[count > 0] / count[count > 0], np.float64)


def _batches(things: Sequence[Any], size: int, title: str) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), size):
        _say(f"{title} {start}/{len(things)}")
        yield things[start : start + size]


def _say(line: str) -> None:
    """One line of progress, overwritten by the next on a terminal and left out elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)


def _load(name: str, threads: int | None) -> Encoder:
    from mmsearch.retrieval.encoders.models import load_encoder

    return load_encoder(name, threads=threads)


def write_table(figures: list[dict[str, Any]], differences: Mapping[str, Mapping[str, float]], against: str) -> None:
    """Prints a line per figure."""
    heads = f"{'figure':<20}{'value':>8}  {'95 % interval':<16}{'floor':<8}{'':<8}"
    print(heads + (f"minus {against}" if against else ""))
    for figure in figures:
        low, high = figure.get("interval", (None, None))
        between = f"{low:.3f} - {high:.3f}" if low is not None else ""
        floor = f"{figure['floor']:g}" if "floor" in figure else ""
        verdict = {True: "met", False: "MISSED", None: ""}[figure.get("met")]
        line = f"{figure['name']:<20}{figure['value']:>8.4f}  {between:<16}{floor:<8}{verdict:<8}"
        if figure["name"] in differences:
            found = differences[figure["name"]]
            line += f"{found['delta']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}, p = {found['p']:.4f})"
        print(line.rstrip())


def main(argv: list[str] | None = None) -> None:
    """Measures, prints the table, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    parser.add_argument("--model", default="starter", metavar="NAME", help="the model to measure (%(default)s)")
    parser.add_argument("--against", metavar="NAME", help="another model, to compare with on the same queries")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    where_it_ran = describe()
    sets = read_sets(arguments.data)
    encoder = _load(arguments.model, arguments.threads)
    mine = measure(encoder, sets)
    differences: dict[str, dict[str, float]] = {}
    other_encoder = None
    if arguments.against:
        other_encoder = _load(arguments.against, arguments.threads)
        differences = compare(mine, measure(other_encoder, sets))
    _say("")
    figures: list[dict[str, Any]] = []
    for name, value in mine.figures.items():
        figure: dict[str, Any] = {"name": name, "value": round(value, 4)}
        if name in mine.values:
            figure["interval"] = [round(bound, 4) for bound in interval(mine.values[name])]
        if name in FLOORS:
            figure |= {"floor": FLOORS[name], "met": value >= FLOORS[name]}
        figures.append(figure)
    write_table(figures, differences, arguments.against or "")
    if arguments.out:
        result = {
            "benchmark": "quality",
            "command": shlex.join(["python", "benchmarks/quality.py", *(argv if argv is not None else sys.argv[1:])]),
            "machine": where_it_ran,
            "model": _described(encoder),
            "photos": {"val": len(sets.val.paths), "coco": len(sets.coco.paths), "caltech": len(sets.caltech.paths)},
            "figures": figures,
        }
        if other_encoder is not None:
            result["against"] = {"model": _described(other_encoder), "differences": differences}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _described(encoder: Encoder) -> dict[str, Any]:
    fields = ("name", "identity", "dim", "precision", "device", "backend")
    return {name: getattr(encoder, name) for name in fields}


if __name__ == "__main__":
    main()
