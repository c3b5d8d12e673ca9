"""Heat-maps: where in a picture a query is.

The encoder scores the cells of a grid (`retrieval.encoders.cells` names the methods and their papers), and `paint` lays
them over the picture. What is warm is what makes the score what it is, compared with the rest of the same picture:
there is a warmest place in a picture of something else too. Whether the query is there at all, the score says.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.clauses import read_picture, text_rows
from mmsearch.retrieval.encoders.cells import Cells, Method, spread
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.query import TextClause

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder

MAX_SIDE = 2048
"""Longest side of a painted picture, in pixels."""

_GRID = 8
_CROP = 4  # a crop is half as wide and half as high as the picture, and the next one starts an eighth further
_SMOOTH = 8  # the hottest place is looked for on a grid this many times as fine as the cells
_OPACITY = 0.75
_DIMMED = 0.8  # how bright the picture is under the heat, so that hot and white are two things
_UNSEEN = 0.4  # how bright the parts of a picture are that the encoder crops away

_COLOURS = ((18, 10, 48), (92, 24, 112), (172, 48, 98), (232, 98, 52), (250, 168, 44), (252, 238, 156))
"""Cold to hot. Their lightness (CIE L*) rises in even steps, so that equal differences look equal, in grey too."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """Where in a picture a query is.

    Attributes:
        cells: scores (rows, columns), higher where the query is; comparable inside this picture only.
        method: how they were made: `activation`, `windows`, `gradient` or `crops`; see `retrieval.encoders.cells`.
        box: left, top, right and bottom of what the cells cover, as shares of the picture: it is more or less than
            the whole where the model pads or crops.
        score: cosine of the query and the whole picture; that of a search, up to how the file was decoded.
        model: name of the model.
        picture: upright, at most `MAX_SIDE` pixels wide and high.
    """

    cells: NDArray[np.float32]
    method: Method
    box: tuple[float, float, float, float]
    score: float
    model: str
    picture: Image.Image

    @cached_property
    def hottest(self) -> tuple[float, float]:
        """The hottest place, as shares of the picture's width (from the left) and height (from the top)."""
        rows, columns = self.cells.shape
        left, top, right, bottom = self.box
        fine = _resized(self.cells, (columns * _SMOOTH, rows * _SMOOTH))
        xs = left + (np.arange(fine.shape[1]) + 0.5) / fine.shape[1] * (right - left)
        ys = top + (np.arange(fine.shape[0]) + 0.5) / fine.shape[0] * (bottom - top)
        fine[(ys < 0) | (ys > 1)] = -np.inf  # padding
        fine[:, (xs < 0) | (xs > 1)] = -np.inf
        row, column = divmod(int(fine.argmax()), fine.shape[1])
        return float(xs[column]), float(ys[row])

    @cached_property
    def heat(self) -> NDArray[np.float32]:
        """0..1 for each pixel of `picture`: 0 up to the median of the cells, 1 at the highest, NaN where unseen."""
        width, height = self.picture.size
        left, top, right, bottom = self.box
        low, high = np.median(self.cells), self.cells.max()
        warm = (self.cells - low) / (high - low) if high > low else np.zeros_like(self.cells)
        x0, x1 = max(math.floor(left * width), 0), min(math.ceil(right * width), width)
        y0, y1 = max(math.floor(top * height), 0), min(math.ceil(bottom * height), height)
        rows, columns = self.cells.shape
        shown = (
            max(-left, 0.0) / (right - left) * columns,
            max(-top, 0.0) / (bottom - top) * rows,
            min((1 - left) / (right - left), 1.0) * columns,
            min((1 - top) / (bottom - top), 1.0) * rows,
        )
        heat = np.full((height, width), np.nan, np.float32)
        heat[y0:y1, x0:x1] = np.clip(_resized(warm, (x1 - x0, y1 - y0), shown), 0.0, 1.0)
        return heat

    @property
    def half_of_heat(self) -> float:
        """The smallest share of the seen picture that holds half of the heat; 0.5 or near it if it is everywhere."""
        heat = np.sort(self.heat[~np.isnan(self.heat)])[::-1]
        total = heat.sum(dtype=np.float64)
        if not total:
            return 0.5
        return float(np.searchsorted(heat.cumsum(dtype=np.float64), total / 2) + 1) / len(heat)

    def paint(self) -> Image.Image:
        """The picture in grey with the heat over it; what the model does not see is dark."""
        from PIL import Image

        heat = self.heat[..., None]
        pixels = _DIMMED * np.asarray(self.picture.convert("L"), np.float32)[..., None]
        warm = np.nan_to_num(heat)
        colours = np.stack(
            [
                np.interp(warm[..., 0], np.linspace(0, 1, len(_COLOURS)), [rgb[part] for rgb in _COLOURS])
                for part in range(3)
            ],
            axis=-1,
        )
        painted = pixels + _OPACITY * warm * (colours - pixels)
        painted = np.where(np.isnan(heat), _UNSEEN * pixels, painted)
        return Image.fromarray(np.rint(painted).astype(np.uint8))

    def png(self) -> bytes:
        """`paint` as the content of a PNG file."""
        file = io.BytesIO()
        self.paint().save(file, "PNG")
        return file.getvalue()


def heat_map(encoder: Callable[[], Encoder], query: str, image: str | Path | bytes | Image.Image) -> HeatMap:
    """Where in a picture a text is.

    Args:
        encoder: gives the encoder, and is called when the query and the picture are known to be good. Those that are
            `Locating` are asked for their cells; with others crops are encoded one by one.
        query: literal text.
        image: a path, the bytes of a picture file, or a Pillow image.

    Raises:
        UsageError: the query or the path is empty.
        PathNotFound: there is no such picture.
        MediaError: it is no picture.
    """
    TextClause(query)  # refuses what says nothing
    picture = _picture(image)
    found = encoder()
    return heat_map_of(found, picture, text_rows(found, [query])[0])


def heat_map_of(encoder: Encoder, picture: Image.Image, row: NDArray[np.float32]) -> HeatMap:
    """Where in an upright RGB picture something is, given as a unit vector (dim,) of the encoder's space."""
    row = np.ascontiguousarray(row, np.float32)
    look = getattr(encoder, "heat_map", None)
    cells = (look(picture, row) if look else None) or _by_crops(encoder, picture, row)
    score = float(encoder.encode_images([encoder.preprocess(picture)])[0] @ row)
    shown = picture
    if max(picture.size) > MAX_SIDE:
        shown = picture.copy()
        shown.thumbnail((MAX_SIDE, MAX_SIDE))
    return HeatMap(cells.scores, cells.method, cells.box, score, encoder.name, shown)


def _by_crops(encoder: Encoder, picture: Image.Image, row: NDArray[np.float32]) -> Cells:
    """Scores of an 8 x 8 grid, each the mean cosine of the crops of half the picture's sides that cover it."""
    width, height = picture.size
    steps = range(_GRID - _CROP + 1)
    arrays = [
        encoder.preprocess(
            picture.resize(
                (max(1, width // 2), max(1, height // 2)),
                box=(x / _GRID * width, y / _GRID * height, (x + _CROP) / _GRID * width, (y + _CROP) / _GRID * height),
            )
        )
        for y in steps
        for x in steps
    ]
    size = encoder.batch_size
    rows = [encoder.encode_images(arrays[start : start + size]) for start in range(0, len(arrays), size)]
    scores = np.concatenate(rows) @ row
    return Cells(spread(scores.reshape(len(steps), len(steps)), _CROP), "crops")


def _picture(image: str | Path | bytes | Image.Image) -> Image.Image:
    """What a path, bytes or an open picture shows, upright."""
    from mmsearch.retrieval.media import load_image, upright

    if isinstance(image, str | Path):
        if not str(image):
            raise UsageError("the path of the picture is empty")
        content, name = read_picture(Path(image)), str(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        content, name = bytes(image), "the picture"
    else:
        return upright(image)
    return load_image(content, target=(MAX_SIDE // 2, MAX_SIDE // 2), name=name).image


def _resized(
    values: NDArray[np.float32], size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float32]:
    """`box` of (rows, columns) values at another (width, height), bicubic."""
    from PIL import Image

    grid = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.array(grid.resize(size, Image.Resampling.BICUBIC, box), np.float32)
