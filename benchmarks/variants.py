"""Photos as they come back from the internet: saved again, scaled, cut, toned, written on; and how alike they stay."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from mmsearch.retrieval.duplicates import DuplicateRule, hash_distances, is_near_duplicate
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.errors import MediaError
from mmsearch.retrieval.media import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

_SAMPLE = 1000
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to a photo before it is saved as JPEG; `light` edits are those that are held to a target."""

    change: Change
    quality: int = 90
    light: bool = True


def _same(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image


def _scaled(image: Image.Image, chance: np.random.Generator, *, by: float) -> Image.Image:
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, chance: np.random.Generator, *, by: float) -> Image.Image:
    width, height = round(image.width * (1 - by)), round(image.height * (1 - by))
    x, y = (int(chance.integers(0, most + 1)) for most in (image.width - width, image.height - height))
    return image.crop((x, y, x + width, y + height))


def _brighter(image: Image.Image, chance: np.random.Generator, *, by: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(by)


def _harder(image: Image.Image, chance: np.random.Generator, *, by: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(by)


def _grey(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image.convert("L").convert("RGB")


def _mirrored(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _written_on(image: Image.Image, chance: np.random.Generator, *, size: float, at: float) -> Image.Image:
    points = round(image.height * size)
    place = (image.width * 0.05, (image.height - points) * at)
    font = ImageFont.load_default(points)
    shown = image.copy()
    ImageDraw.Draw(shown).text(place, "sample photo 2024", "white", font, stroke_width=1, stroke_fill="black")
    return shown


def _watermarked(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    mask = Image.new("L", image.size, 0)
    font = ImageFont.load_default(image.width // 5)
    ImageDraw.Draw(mask).text((image.width * 0.05, image.height * 0.4), "PREVIEW", 110, font)
    return Image.composite(Image.new("RGB", image.size, "white"), image, mask)


def _halved_crop(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    return _scaled(_cropped(image, chance, by=0.05), chance, by=0.5)


KINDS = {
    "JPEG 30": Edit(_same, 30),
    "JPEG 60": Edit(_same, 60),
    "JPEG 90": Edit(_same, 90),
    "half size": Edit(partial(_scaled, by=0.5)),
    "size x 1.5": Edit(partial(_scaled, by=1.5)),
    "crop 2 %": Edit(partial(_cropped, by=0.02)),
    "crop 5 %": Edit(partial(_cropped, by=0.05)),
    "crop 10 %": Edit(partial(_cropped, by=0.10), light=False),
    "crop 20 %": Edit(partial(_cropped, by=0.20), light=False),
    "darker": Edit(partial(_brighter, by=0.75)),
    "brighter": Edit(partial(_brighter, by=1.3)),
    "softer": Edit(partial(_harder, by=0.75)),
    "harder": Edit(partial(_harder, by=1.3)),
    "grey": Edit(_grey),
    "caption": Edit(partial(_written_on, size=0.07, at=0.96)),
    "title": Edit(partial(_written_on, size=0.11, at=0.5)),
    "watermark": Edit(_watermarked),
    "crop 5 %, half size, JPEG 50": Edit(_halved_crop, 50, light=False),
    "mirror": Edit(_mirrored, light=False),
}
"""Edits by name."""


@dataclass(frozen=True, slots=True)
class Album:
    """Photos and edits of some of them, embedded.

    Attributes:
        photos: of each picture, which photo it shows; the unedited ones come first.
        kinds: of each picture, what was done to it; empty for the unedited.
        hashes: perceptual, int64 (n).
        rows: float64 (n, dim), of length one.
    """

    photos: NDArray[np.int64]
    kinds: NDArray[np.str_]
    hashes: NDArray[np.int64]
    rows: NDArray[np.float64]

    def rule(self) -> DuplicateRule:
        """The rule of an index of the unedited photos."""
        rows = self.rows[self.kinds == ""]
        sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)]
        return DuplicateRule.around(float(np.median((sample @ sample.T)[np.triu_indices(len(sample), 1)])))

    def near_their_photo(self, rule: DuplicateRule) -> NDArray[np.bool_]:
        """Of each picture whether the rule calls it a near-duplicate of its unedited photo."""
        cosines = (self.rows * self.rows[self.photos]).sum(axis=1)
        return is_near_duplicate(cosines, hash_distances(self.hashes, self.hashes[self.photos]), rule)

    def mistaken(self, rule: DuplicateRule, *, edits: bool) -> tuple[int, int]:
        """How many pairs of different photos the rule calls near-duplicates, and how many pairs there are."""
        count = len(self.rows) if edits else int((self.kinds == "").sum())
        wrong = pairs = 0
        for start in range(0, count, _BLOCK):
            some = np.arange(start, min(start + _BLOCK, count))[:, None]
            others = np.arange(count)
            different = (self.photos[some] != self.photos[others]) & (some < others)
            cosines = self.rows[some[:, 0]] @ self.rows[:count].T
            near = is_near_duplicate(cosines, hash_distances(self.hashes[some], self.hashes[:count]), rule)
            wrong += int((near & different).sum())
            pairs += int(different.sum())
        return wrong, pairs


def edited_album(folder: Path, split: str, edited: int) -> Album:
    """The photos of a split and all edits of some of them, embedded by the starter."""
    entries = json.loads((folder / "captions.json").read_text("utf-8"))
    names = sorted(entry["file_name"] for entry in entries if entry["split"] == split)
    encoder = load_encoder("starter")
    contents = []
    for name in names:
        content = (folder / "images" / name).read_bytes()
        try:
            load_image(content, target=encoder.image_size)
        except MediaError:
            continue  # a few are damaged
        contents.append(content)
    photos = list(range(len(contents)))
    kinds = [""] * len(contents)
    chance = np.random.default_rng(7)
    for photo in chance.permutation(len(contents))[:edited].tolist():
        with Image.open(io.BytesIO(contents[photo])) as opened:
            image = opened.convert("RGB")
        for kind, edit in KINDS.items():
            kinds.append(kind)
            photos.append(photo)
            contents.append(_jpeg(edit.change(image, chance), edit.quality))
    hashes, rows = _embedded(encoder, contents)
    return Album(np.array(photos), np.array(kinds), hashes, rows)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _embedded(encoder: Encoder, contents: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Perceptual hashes and embeddings of pictures."""
    hashes: list[int] = []
    rows = []
    for part in _parts(contents, encoder.batch_size):
        loaded = [load_image(content, target=encoder.image_size) for content in part]
        hashes += [one.metadata.phash or 0 for one in loaded]
        rows.append(encoder.encode_images([encoder.preprocess(one.image) for one in loaded]))
    return np.array(hashes, np.int64), np.concatenate(rows).astype(np.float64)


def _parts(contents: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(contents), size):
        yield contents[start : start + size]
