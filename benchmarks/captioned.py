"""A synthetic collection: pictures with dates, places, tags and captions, filters of a known share, and questions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.store import LocalStore, NewItem
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Root, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.store.writer import Writer

SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
"""Shares of the pictures that filters let through."""

INDEXED = ("taken", "near", "tag")
OTHERS = ("width", "size", "modified", "path", "camera", "meta.NAME")

_FILL = 10_000
_TOPICS = 2000
_TEXT_VECTORS = 2000
_VOCABULARY = 20_000
_CHARACTERS = 2500
_LENGTH = 10
_CHINESE = 10
"""Every how many captions one is Chinese."""
_MOMENTS = 20 * 365 * 86_400
_FIRST_MOMENT = np.datetime64("2004-01-01T00:00:00")
_CENTRE = 48.1, 11.5
_DEGREES = 10.0
_KILOMETRES = 111.2
"""Of a degree of latitude."""
_ROLLS = 1000
_PATHS = {0.001: "*/roll-000/*", 0.01: "*/roll-00*", 0.1: "*/roll-0*", 0.5: "*/east/*", 1.0: "*/roll-*"}
_CAMERAS = {0.001: "*M000", 0.01: "*M00?", 0.1: "*M0*", 0.5: "Western*", 1.0: "*M*"}
_TAGS = {0.001: "very rare", 0.01: "rare", 0.1: "seldom", 0.5: "often", 1.0: "always"}
_SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u")]
_FUNCTION_WORDS = ("a", "is", "in", "the", "on")
_NAMES = 300
"""Words that Chinese questions are made of are among so many of the most frequent characters."""


class Captioned:
    """Pictures of which every second one has a caption, drawn with a seed: the same each time.

    Vectors lie around topics in a cone, as those of dual encoders do. Words are as frequent as in a language: the
    n-th of them has a share of about 1 / n. Captions are rows, items of their own that belong to their picture; they
    share few embeddings, because no question here is for them.

    It is an encoder too: one whose work was done beforehand, so that what is timed is everything else.
    """

    identity = "synthetic"
    name = "synthetic"
    max_tokens = 64

    def __init__(self, items: int, dim: int) -> None:
        self.items = items
        self.dim = dim
        chance = np.random.default_rng(11)
        self._common = np.float32(math.sqrt(0.46)) * directions(chance, 1, dim)
        self._topics = np.float32(math.sqrt(0.30)) * directions(chance, _TOPICS, dim)
        self.words = _vocabulary()
        self._texts: dict[str, NDArray[np.float32]] = {}

    # What is in it

    def fill(self, path: Path) -> None:
        """Makes the index: some two minutes for 200,000 pictures."""
        store = LocalStore.create(path, model=self.name, identity=self.identity, dim=self.dim)
        with store.writer() as writer:
            writer.root(Root(_photos(path), 0))
            writer.root(Root(Path("rows:"), 0, kind="rows"))
            writer.set_probes(self._rows(np.random.default_rng(7), 64))
            for first in range(0, self.items, _FILL):
                self._add(writer, _photos(path), range(first, min(first + _FILL, self.items)))
                writer.commit()
            writer.merge(all_segments=True)
            with store.snapshot() as snapshot:
                tags = {
                    item.asset_id: self._tags(item.item_id) for item in snapshot.all_items() if item.modality == "image"
                }
            writer.tag(tags)
            writer.commit()

    def _add(self, writer: Writer, photos: Path, numbers: range) -> None:
        chance = np.random.default_rng(numbers.start)
        count = len(numbers)
        moments = _FIRST_MOMENT + chance.integers(0, _MOMENTS, count).astype("timedelta64[s]")
        places = np.array(_CENTRE) + chance.uniform(-_DEGREES, _DEGREES, (count, 2))
        rolls, models = chance.integers(0, _ROLLS, (2, count))
        widths = chance.integers(1000, 5000, count)
        sizes = chance.integers(1_000_000, 9_000_000, count)
        ratings = chance.uniform(0, 1, count)
        captions = self._captions(chance, count)
        keys = [hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest() for number in numbers]
        for at, (number, key, caption) in enumerate(zip(numbers, keys, captions, strict=True)):
            half = "east" if rolls[at] % 2 else "west"
            uri = f"{half}/roll-{rolls[at]:03}/IMG_{number:06}.jpg"
            facts = AssetMetadata(
                width=int(widths[at]),
                height=3000,
                taken=str(moments[at]),
                camera=f"{'Eastern' if models[at] % 2 else 'Western'} M{models[at]:03}",
                orientation=1,
                latitude=float(places[at, 0]),
                longitude=float(places[at, 1]),
                phash=int.from_bytes(key[:8], "big", signed=True),
            )
            modified = int(moments[at].astype("datetime64[ns]").astype(np.int64))
            ref = ItemRef(str(photos), uri, f"{photos}/{uri}", "image", Stamp(int(sizes[at]), modified))
            writer.add(ref, content_hash=key, metadata=facts, items=[NewItem("image", key)])
            if number % 2 == 0:
                row = ItemRef("rows:", f"id={number}", "rows:", "text", Stamp(100, number), uri, str(photos))
                meta = json.dumps({"rating": round(float(ratings[at]), 6), "source": "synthetic"})
                text = NewItem("text", (number % _TEXT_VECTORS).to_bytes(32, "big"), text=caption)
                writer.add(row, content_hash=key, metadata=AssetMetadata(), items=[text], meta=meta)
        made = {"precision": "float32", "device": "cpu", "backend": "synthetic"}
        writer.embed("image", keys, self._rows(chance, count), **made)
        if numbers.start == 0:
            keys = [number.to_bytes(32, "big") for number in range(_TEXT_VECTORS)]
            writer.embed("text", keys, self._rows(chance, _TEXT_VECTORS), **made)

    def _captions(self, chance: np.random.Generator, count: int) -> Iterator[str]:
        words = chance.choice(len(self.words), (count, _LENGTH), p=_zipf(len(self.words)))
        characters = chance.choice(_CHARACTERS, (count, 2 * _LENGTH), p=_zipf(_CHARACTERS))
        for number in range(count):
            if number // 2 % _CHINESE == 0:
                yield "".join(_character(int(at)) for at in characters[number]) + "。"
            else:
                content = [self.words[at] for at in words[number]]
                for place, word in enumerate(_FUNCTION_WORDS):
                    content.insert(3 * place, word)
                yield " ".join(content).capitalize() + "."

    def _tags(self, number: int) -> dict[str, float]:
        drawn = np.random.default_rng(number).uniform(0, 1)
        return {tag: 0.9 for share, tag in _TAGS.items() if drawn < share}

    def _rows(self, chance: np.random.Generator, count: int) -> NDArray[np.float32]:
        rows = self._common + self._topics[chance.integers(0, _TOPICS, count)]
        rows += np.float32(math.sqrt(0.24)) * directions(chance, count, self.dim)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    # An encoder whose work was done beforehand

    def prepare(self, texts: Sequence[str]) -> None:
        """Draws the vectors of texts."""
        chance = np.random.default_rng(len(self._texts) + 5)
        self._texts.update(zip(texts, self._rows(chance, len(texts)), strict=True))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts that `prepare` has seen."""
        return np.stack([self._texts[text] for text in texts])

    def count_tokens(self, text: str) -> int:
        """Never too many."""
        return 1

    # Questions

    @cached_property
    def questions(self) -> Mapping[str, list[str]]:
        """Texts by what their words are like, 10 of each kind."""
        chance = np.random.default_rng(23)
        drawn = chance.choice(len(self.words), (10, 6), p=_zipf(len(self.words))).tolist()
        ordinary = [[self.words[at] for at in row] for row in drawn]
        pairs = chance.choice(_NAMES, (10, 4), p=_zipf(_NAMES)).tolist()
        return {
            "a rare word": [self.words[9000 + 400 * at] for at in range(10)],
            "a common word": [self.words[20 + 7 * at] for at in range(10)],
            "a very common word": [self.words[at] for at in range(10)],
            "several words": [f"a {' '.join(row[:3])} is on the {' '.join(row[3:])}" for row in ordinary],
            "very common words": [" ".join(self.words[at : at + 6]) for at in range(10)],
            "rare and common": [f"{self.words[9000 + 400 * at]} {self.words[at]}" for at in range(10)],
            "a word of all names": [f"jpg {self.words[at]}" for at in range(10)],
            "only a word of all names": ["jpg", "img", "IMG", "JPG", "jpg img", "Jpg", "Img", "img jpg", "JPg", "IMg"],
            "a phrase": [f'"{self.words[at]} {self.words[at + 1]}"' for at in range(10)],
            "a frequent phrase": [f'"is {self.words[at]}"' for at in range(10)],
            "Chinese": ["".join(_character(at) for at in row) for row in pairs],
            "a Chinese character": [_character(at) for at in range(10)],
            "no word that is there": [f"qqx{number}" for number in range(10)],
        }


def filter_of(field: str, share: float) -> str:
    """A filter on a field that about a share of the pictures passes."""
    if field in ("taken", "modified"):
        return f"{field} < {_FIRST_MOMENT + np.timedelta64(round(_MOMENTS * share), 's')}"
    if field == "near":
        box = (2 * _DEGREES * _KILOMETRES) ** 2 * math.cos(math.radians(_CENTRE[0]))
        reach = 3000 if share == 1 else _reach(share, box)
        return f"near({_CENTRE[0]}, {_CENTRE[1]}, {reach:.1f}km)"
    if field == "tag":
        return f'tag = "{_TAGS[share]}"'
    if field == "path":
        return f'path ~ "{_PATHS[share]}"'
    if field == "camera":
        return f'camera ~ "{_CAMERAS[share]}"'
    if field == "width":
        return f"width < {1000 + round(4000 * share)}"
    if field == "size":
        return f"size < {1_000_000 + round(8_000_000 * share)}"
    # Half of the pictures have a rating.
    return f"meta.rating <= {2 * share}" if share < 1 else "not meta.rating > 1"


def _reach(share: float, box: float) -> float:
    """Kilometres around the centre that hold a share of a box; a circle does not reach its corners."""
    return math.sqrt(share * box / math.pi)


def _photos(index: Path) -> Path:
    return index.absolute().parent / "photos"


def _character(rank: int) -> str:
    """The Chinese character that is the rank-th in frequency."""
    return chr(0x4E00 + rank)


def _zipf(count: int) -> NDArray[np.float64]:
    shares = 1.0 / (np.arange(count) + 2.7)
    return shares / shares.sum()


def _vocabulary() -> list[str]:
    """Words of syllables, the frequent ones short, in the order of their frequency."""
    chance = np.random.default_rng(17)
    words: dict[str, None] = {}
    while len(words) < _VOCABULARY:
        length = 2 + (len(words) > 1000) + (len(words) > 10_000)
        words["".join(_SYLLABLES[at] for at in chance.integers(0, len(_SYLLABLES), length))] = None
    return list(words)


def directions(chance: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Random vectors of length one."""
    rows = chance.standard_normal((count, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
