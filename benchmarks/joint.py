"""What `starter-joint` brings: the first 50 pictures of a caption in its order, and captions with one thing changed.

    python benchmarks/joint.py --data ../shared/data --out benchmarks/results/joint.json

Each caption of Flickr8k *val* and of COCO's 130 photos asks the bundled encoder for its 50 best photos; the reranker
orders them by their stored tokens. How much each of its three scores counts was chosen on *val* too, so the figures
with weights that were chosen on the other half of the photos (`cross-fitted`) are the ones to believe. Intervals
resample photos. A changed caption has one word exchanged for another of its kind, or two words exchanged for one
another (`indexers/train/joint/swaps.py`): how often does the photo prefer the true one? By chance, half of the time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import describe

from mmsearch.indexers.train import data
from mmsearch.indexers.train.joint.mixing import Candidates, cross_fitted
from mmsearch.indexers.train.joint.swaps import swaps
from mmsearch.retrieval.encoders.starter import StarterEncoder
from mmsearch.retrieval.evaluate import paired_bootstrap
from mmsearch.retrieval.media import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 50
CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reranker says of the first stage's best photos of each caption.

    Attributes:
        candidates: the three scores, and which photo is right.
        scores: their sum as it is shipped, (captions, DEPTH).
        seconds: that reranking took for each caption, its reading included.
    """

    candidates: Candidates
    scores: NDArray[np.float32]
    seconds: NDArray[np.float64]


class Photos:
    """Embeddings and tokens of photos, made as `mmsearch index` makes them."""

    def __init__(self, encoder: StarterEncoder, paths: Sequence[Path]) -> None:
        def ready(path: Path) -> NDArray[np.uint8]:
            return encoder.preprocess(load_image(path.read_bytes(), target=encoder.image_size, name=path.name).image)

        rows, tokens = [], []
        with ThreadPoolExecutor(2) as pool:
            for start in range(0, len(paths), encoder.batch_size):
                some = encoder.encode_image_tokens(list(pool.map(ready, paths[start : start + encoder.batch_size])))
                rows.append(some[0])
                tokens.append(some[1])
        self.embeddings, self.tokens = np.concatenate(rows), np.concatenate(tokens)


def score(encoder: StarterEncoder, photos: Photos, texts: Sequence[str], owners: Sequence[int]) -> Scored:
    """Reranks the first photos of every caption."""
    photo = np.array(owners)
    depth = min(DEPTH, len(photos.embeddings))
    parts = np.empty((len(texts), depth, 3), np.float32)
    scores = np.empty((len(texts), depth), np.float32)
    right = np.empty((len(texts), depth), bool)
    seconds = np.empty(len(texts))
    for row, text in enumerate(texts):
        began = time.perf_counter()
        embedding, states = encoder.encode_text_states(text)
        order = np.argsort(-(photos.embeddings @ embedding), kind="stable")[:depth]
        parts[row], scores[row] = encoder.joint.parts(states, embedding, photos.tokens[order])
        seconds[row] = time.perf_counter() - began
        right[row] = order == photo[row]
        if row % 500 == 499:
            print(f"{row + 1} of {len(texts)} captions", file=sys.stderr, flush=True)
    return Scored(Candidates(parts, right, photo), scores, seconds)


def by_photo(hits: NDArray[np.bool_], photo: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each photo's captions."""
    return np.bincount(photo, hits) / np.maximum(np.bincount(photo), 1)


def compare(found: Candidates, scores: NDArray[Any]) -> dict[str, Any]:
    """Success@k before and after, with intervals of the differences."""
    figures: dict[str, Any] = {}
    for k in CUTS:
        before, after = (by_photo(found.success(which, k), found.photo) for which in (None, scores))
        present = np.bincount(found.photo) > 0
        figures[f"success@{k}"] = {
            "before": round(float(found.success(None, k).mean()), 4),
            "after": round(float(found.success(scores, k).mean()), 4),
            **{
                name: round(value, 4)
                for name, value in asdict(paired_bootstrap(before[present], after[present])).items()
            },
        }
    return figures


def changed(
    encoder: StarterEncoder, photos: Photos, texts: Sequence[str], owners: Sequence[int], language: str
) -> dict[str, dict[str, float]]:
    """By kind of change: how often the true caption has the higher score, by the embeddings and by the reranker."""
    wins: dict[str, list[tuple[float, float]]] = {}
    for text, owner in zip(texts, owners, strict=True):
        made = swaps(text, language)
        if not made:
            continue
        tokens = photos.tokens[owner][None]

        def both(of: str, owner: int = owner, tokens: NDArray[np.int8] = tokens) -> tuple[float, float]:
            embedding, states = encoder.encode_text_states(of)
            return float(photos.embeddings[owner] @ embedding), float(encoder.joint.score(states, embedding, tokens)[0])

        true = both(text)
        for swap in made:
            false = both(swap.text)
            won = (float(true[0] > false[0]), float(true[1] > false[1]))
            for kind in (swap.kind, "all"):
                wins.setdefault(kind, []).append(won)
    return {
        kind: {"captions": len(won), "before": round(before, 4), "after": round(after, 4)}
        for kind, won in sorted(wins.items())
        for before, after in [np.mean(won, axis=0).tolist()]
    }


def main() -> int:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k/ and coco_dev/")
    parser.add_argument("--every", type=int, default=1, help="of so many captions one")
    parser.add_argument("--out", type=Path, help="write a JSON file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": f"python benchmarks/joint.py {shlex.join(sys.argv[1:])}", **describe()}
    encoder = StarterEncoder()
    result |= {"encoder": encoder.identity, "reranker": encoder.joint.identity, "depth": DEPTH}
    val, coco = (
        data.read_captioned(arguments.data / "flickr8k", "val"),
        data.read_captioned(arguments.data / "coco_dev"),
    )
    photos = {"val": Photos(encoder, val.paths), "coco": Photos(encoder, coco.paths)}
    asked = {
        "flickr8k val en": ("val", "en", *val.pairs(val.english)),
        "flickr8k val zh": ("val", "zh", *val.pairs(val.chinese)),
        "coco_dev en": ("coco", "en", *coco.pairs(coco.english)),
    }
    every = arguments.every
    scored = {
        name: score(encoder, photos[where], texts[::every], owners[::every])
        for name, (where, _, texts, owners) in asked.items()
    }
    chosen_on = [name for name in asked if name.startswith("flickr8k")]
    fitted = dict(zip(chosen_on, cross_fitted([scored[name].candidates for name in chosen_on])[0], strict=True))
    result["text to image"] = {name: compare(one.candidates, one.scores) for name, one in scored.items()}
    result["cross-fitted"] = {name: compare(scored[name].candidates, scores) for name, scores in fitted.items()}
    result["changed captions"] = {
        name: changed(encoder, photos[where], texts[::every], owners[::every], language)
        for name, (where, language, texts, owners) in asked.items()
        if where == "val"
    }
    milliseconds = 1000 * np.concatenate([one.seconds for one in scored.values()])
    gain = result["cross-fitted"]["flickr8k val en"]["success@1"]["delta"]
    median = float(np.median(milliseconds))
    result["time"] = {
        "ms per query": round(median, 1),
        "ms per candidate": round(median / DEPTH, 2),
        "points of success@1 per 100 ms": round(100 * gain / median * 100, 2),
        "bytes per picture": int(photos["val"].tokens[0].nbytes),
    }
    print(json.dumps({name: value for name, value in result.items() if isinstance(value, dict)}, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
