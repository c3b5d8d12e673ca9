"""Whether heat-maps point at the right place: the photo of a 2 x 2 collage that a caption is of.

    python benchmarks/pointing.py --data ../shared/data --out benchmarks/results/pointing.json

Each case is a collage of four random photos and one caption of one of them; it is right if the hottest place of the
heat-map lies in that photo. Chance is 0.25. The photos are Flickr8k's, which are squashed to squares and used whole.
What there was to choose was chosen on photos of *train*, which the starter has seen; the floor is for those of *val*.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe

from mmsearch.indexers.train import data
from mmsearch.retrieval.evaluate import paired_bootstrap
from mmsearch.retrieval.explain import heat_map_of

if TYPE_CHECKING:
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder

FLOOR = 0.60
"""Share of the cases of val, in English, that the heat's maximum has to be right in."""

SEEDS = {"train": 1, "val": 20261126}
_TILE = 224


@dataclass(frozen=True, slots=True)
class Case:
    """Four photos, left to right and top to bottom, and a caption of the one in `place`, in two languages."""

    photos: tuple[Path, ...]
    place: int
    captions: dict[str, str]


def cases(captioned: data.Captioned, count: int, seed: int) -> list[Case]:
    """Random cases; the four photos of one are different."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        chosen = rng.choice(len(captioned.paths), 4, replace=False)
        place = int(rng.integers(4))
        owner = chosen[place]
        captions = {
            language: texts[owner][int(rng.integers(len(texts[owner])))]
            for language, texts in (("en", captioned.english), ("zh", captioned.chinese))
            if texts[owner]
        }
        found.append(Case(tuple(captioned.paths[i] for i in chosen), place, captions))
    return found


def collage(photos: Sequence[Path]) -> Image.Image:
    """Four photos in two rows."""
    from PIL import Image

    from mmsearch.retrieval.media import load_image

    whole = Image.new("RGB", (2 * _TILE, 2 * _TILE))
    for place, path in enumerate(photos):
        photo = load_image(path.read_bytes(), target=(_TILE, _TILE), name=path.name).image
        whole.paste(photo.resize((_TILE, _TILE)), (place % 2 * _TILE, place // 2 * _TILE))
    return whole


def place_of(hottest: tuple[float, float]) -> int:
    """Which photo of a collage a place, in shares of its width and height, lies in."""
    return 2 * int(hottest[1] >= 0.5) + int(hottest[0] >= 0.5)


def measure(encoder: Encoder, asked: Sequence[Case], language: str, title: str) -> dict[str, Any]:
    """The figure of one set of cases."""
    right, methods = [], set()
    rows = encoder.encode_texts([case.captions[language] for case in asked])
    for case, row in _counted(list(zip(asked, rows, strict=True)), title):
        found = heat_map_of(encoder, collage(case.photos), row)
        right.append(float(place_of(found.hottest) == case.place))
        methods.add(found.method)
    bounds = paired_bootstrap(np.zeros(len(right)), np.array(right))
    return {
        "name": title,
        "value": round(float(np.mean(right)), 4),
        "interval": [round(bounds.low, 4), round(bounds.high, 4)],
        "cases": len(right),
        "methods": sorted(methods),
    }


def _counted(things: Sequence[Any], title: str) -> Iterator[Any]:
    for number, thing in enumerate(things):
        if sys.stderr.isatty():
            print(f"\r{title}: {number}/{len(things)}   ", end="", file=sys.stderr, flush=True)
        yield thing
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Measures, prints a line per figure, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data sets")
    parser.add_argument("--model", default="starter", metavar="NAME", help="the model to measure (%(default)s)")
    parser.add_argument("--cases", type=int, default=500, metavar="N", help="how many of val (%(default)s)")
    parser.add_argument("--train", type=int, default=200, metavar="N", help="how many of train (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
    arguments = parser.parse_args(argv)

    from mmsearch.retrieval.encoders.models import load_encoder

    where_it_ran = describe()
    encoder = load_encoder(arguments.model, threads=arguments.threads)
    figures = []
    for split, count, languages in (("train", arguments.train, ("en",)), ("val", arguments.cases, ("en", "zh"))):
        if not count:
            continue
        asked = cases(data.read_captioned(arguments.data / "flickr8k", split), count, SEEDS[split])
        for language in languages:
            figure = measure(encoder, asked, language, f"{split} {language}")
            if (split, language) == ("val", "en"):
                figure |= {"floor": FLOOR, "met": figure["value"] >= FLOOR}
            figures.append(figure)
            low, high = figure["interval"]
            verdict = {True: f"floor {FLOOR:g}: met", False: f"floor {FLOOR:g}: MISSED"}.get(figure.get("met"), "")
            print(f"{figure['name']:<10}{figure['value']:.3f}  ({low:.3f} - {high:.3f})  {verdict}".rstrip())
    if arguments.out:
        result = {
            "benchmark": "pointing",
            "command": shlex.join(["python", "benchmarks/pointing.py", *(argv if argv is not None else sys.argv[1:])]),
            "machine": where_it_ran,
            "model": {"name": encoder.name, "identity": encoder.identity, "backend": encoder.backend},
            "chance": 0.25,
            "seeds": SEEDS,
            "figures": figures,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
