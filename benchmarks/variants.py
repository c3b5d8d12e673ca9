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

from mmsearch.retrieval.duplicates import hash_distances
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.errors import MediaError
from mmsearch.retrieval.media import load_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

_SAMPLE = 1000


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
class Measured:
    """How alike edits and their photos are, and how alike different photos.

    Attributes:
        count: of photos that are not edited.
        typical: median cosine of different photos.
        kinds, cosines, distances: of each edit: which, and against its photo.
        other_cosines, other_distances: of each pair of different photos.
    """

    count: int
    typical: float
    kinds: NDArray[np.str_]
    cosines: NDArray[np.float64]
    distances: NDArray[np.uint8]
    other_cosines: NDArray[np.float64]
    other_distances: NDArray[np.uint8]


def measure(folder: Path, split: str, edited: int) -> Measured:
    """Edits some photos of a split, embeds everything with the starter, and compares."""
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
    hashes, rows = _embedded(encoder, contents)
    chance = np.random.default_rng(7)
    kinds, photos, changed = [], [], []
    for photo in chance.permutation(len(contents))[:edited].tolist():
        with Image.open(io.BytesIO(contents[photo])) as opened:
            image = opened.convert("RGB")
        for kind, edit in KINDS.items():
            kinds.append(kind)
            photos.append(photo)
            changed.append(_jpeg(edit.change(image, chance), edit.quality))
    edit_hashes, edit_rows = _embedded(encoder, changed)
    i, j = np.triu_indices(len(contents), 1)
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)]
    return Measured(
        count=len(contents),
        typical=float(np.median((sample @ sample.T)[np.triu_indices(len(sample), 1)])),
        kinds=np.array(kinds),
        cosines=(edit_rows * rows[photos]).sum(axis=1),
        distances=hash_distances(edit_hashes, hashes[photos]),
        other_cosines=(rows @ rows.T)[i, j],
        other_distances=hash_distances(hashes[i], hashes[j]),
    )


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
