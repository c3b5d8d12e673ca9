"""A small painter on top of Pillow: shaded, textured shapes at twice the size, scaled down at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter

WIDTH, HEIGHT = 640, 480
_SCALE = 2

Point = tuple[float, float]
_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Fade:
    """From `top` to `bottom` over the height of the shape; with `across`, from left to right."""

    top: str
    bottom: str
    across: bool = False


@dataclass(frozen=True, slots=True)
class Ball:
    """From `light` at (x, y), parts of the shape's box, to `dark` at `reach` box sizes from there."""

    light: str
    dark: str
    x: float = 0.35
    y: float = 0.3
    reach: float = 0.85


Fill = str | Fade | Ball


class Canvas:
    """A picture of 640 x 480 units that is painted from back to front.

    Every shape takes `fill` (a colour name, a `Fade` or a `Ball`), and optionally `grain` (strength of a
    mottled texture), `shadow` (length of a soft shadow towards the lower right), `blur` and `alpha`.

    Args:
        background: what the picture starts with.
        seed: of all textures; the same seed paints the same picture.
        grain: texture of the background.
    """

    def __init__(self, background: Fill, *, seed: int = 0, grain: float = 0.02) -> None:
        self._size = (WIDTH * _SCALE, HEIGHT * _SCALE)
        self._random = np.random.default_rng(seed)
        self._image = Image.new("RGB", self._size)
        self._paint(Image.new("L", self._size, 255), background, grain=grain)

    @property
    def random(self) -> np.random.Generator:
        """For scattering things; seeded."""
        return self._random

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Fill, *, turn: float = 0.0, **style: float
    ) -> None:
        """An ellipse around (x, y), turned by `turn` degrees clockwise."""
        if turn:
            t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            px, py = rx * np.cos(t), ry * np.sin(t)
            self.polygon(list(zip(x + px * c - py * s, y + px * s + py * c, strict=True)), fill, **style)
            return
        mask, draw = self._mask()
        draw.ellipse(_up((x - rx, y - ry, x + rx, y + ry)), fill=255)
        self._paint(mask, fill, **style)

    def disc(self, x: float, y: float, r: float, fill: Fill, **style: float) -> None:
        """A circle."""
        self.ellipse(x, y, r, r, fill, **style)

    def ring(self, x: float, y: float, r: float, width: float, fill: Fill, **style: float) -> None:
        """The outline of a circle, `width` thick inwards."""
        mask, draw = self._mask()
        draw.ellipse(_up((x - r, y - r, x + r, y + r)), fill=255)
        r -= width
        draw.ellipse(_up((x - r, y - r, x + r, y + r)), fill=0)
        self._paint(mask, fill, **style)

    def arc(
        self, x: float, y: float, r: float, width: float, start: float, end: float, fill: Fill, **style: float
    ) -> None:
        """A part of a ring; degrees clockwise from the right."""
        mask, draw = self._mask()
        draw.arc(_up((x - r, y - r, x + r, y + r)), start, end, fill=255, width=round(width * _SCALE))
        self._paint(mask, fill, **style)

    def wedge(self, x: float, y: float, r: float, start: float, end: float, fill: Fill, **style: float) -> None:
        """A slice of a disc; degrees clockwise from the right."""
        mask, draw = self._mask()
        draw.pieslice(_up((x - r, y - r, x + r, y + r)), start, end, fill=255)
        self._paint(mask, fill, **style)

    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Fill, *, round_by: float = 0.0, **style: float
    ) -> None:
        """A rectangle, its corners rounded by `round_by`."""
        mask, draw = self._mask()
        draw.rounded_rectangle(_up((x0, y0, x1, y1)), radius=round_by * _SCALE, fill=255)
        self._paint(mask, fill, **style)

    def polygon(self, points: Sequence[Point], fill: Fill, **style: float) -> None:
        """A closed shape with straight sides."""
        mask, draw = self._mask()
        draw.polygon([(px * _SCALE, py * _SCALE) for px, py in points], fill=255)
        self._paint(mask, fill, **style)

    def blob(self, points: Sequence[Point], fill: Fill, **style: float) -> None:
        """A closed smooth shape through `points` (a Catmull-Rom spline)."""
        self.polygon(_spline(points, closed=True), fill, **style)

    def line(self, points: Sequence[Point], width: float, fill: Fill, *, smooth: bool = False, **style: float) -> None:
        """A stroke with round ends through `points`."""
        if smooth:
            points = _spline(points, closed=False)
        mask, draw = self._mask()
        scaled = [(px * _SCALE, py * _SCALE) for px, py in points]
        draw.line(scaled, fill=255, width=max(1, round(width * _SCALE)), joint="curve")
        r = width * _SCALE / 2
        for px, py in (scaled[0], scaled[-1]):
            draw.ellipse((px - r, py - r, px + r, py + r), fill=255)
        self._paint(mask, fill, **style)

    def picture(self) -> Image.Image:
        """What has been painted, with a little of a lens about it: darker corners and film grain."""
        small = self._image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        pixels = np.asarray(small, dtype=np.float32)
        y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
        shade = (1 - 0.16 * (x * x + y * y) ** 1.5 / 2)[..., None]
        noise = self._random.normal(0, 2.2, (HEIGHT, WIDTH, 1))
        return Image.fromarray(np.clip(pixels * shade + noise, 0, 255).astype(np.uint8))

    def _mask(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        mask = Image.new("L", self._size, 0)
        return mask, ImageDraw.Draw(mask)

    def _paint(
        self,
        mask: Image.Image,
        fill: Fill,
        *,
        grain: float = 0.03,
        shadow: float = 0.0,
        blur: float = 0.0,
        alpha: float = 1.0,
    ) -> None:
        box = mask.getbbox()
        if box is None:
            return
        if shadow:
            offset = round(shadow * _SCALE)
            soft, (left, top, _, _) = _blurred(mask, box, offset * 0.7)
            soft = soft.point(lambda v: v * 0.45)
            self._image.paste((18, 16, 30), (left + offset // 2, top + offset), soft)
        if blur:
            part, box = _blurred(mask, box, blur * _SCALE)
        else:
            part = mask.crop(box)
        if alpha < 1:
            part = part.point(lambda v: v * alpha)
        left, top, right, bottom = box
        colours = _colours(fill, right - left, bottom - top)
        if grain:
            colours = colours * (1 + grain * self._mottle(right - left, bottom - top))[..., None]
        patch = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
        self._image.paste(patch, (left, top), part)

    def _mottle(self, width: int, height: int) -> NDArray[np.float32]:
        """Noise with structure at three sizes, about -2 to 2."""
        total = np.zeros((height, width), dtype=np.float32)
        for step, strength in ((3, 0.8), (14, 0.35), (70, 0.6)):
            coarse = self._random.normal(0, strength, (height // step + 2, width // step + 2)).astype(np.float32)
            scaled = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(scaled, dtype=np.float32)
        return total


def _up(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0] * _SCALE, box[1] * _SCALE, box[2] * _SCALE, box[3] * _SCALE


def _blurred(mask: Image.Image, box: _Box, radius: float) -> tuple[Image.Image, _Box]:
    """The blurred mask within the box that it grows to, cut at the picture's edges, and that box."""
    margin = round(radius * 3) + 1
    wide = (box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)
    soft = mask.crop(wide).filter(ImageFilter.GaussianBlur(radius))
    inside = (max(wide[0], 0), max(wide[1], 0), min(wide[2], mask.width), min(wide[3], mask.height))
    cut = (inside[0] - wide[0], inside[1] - wide[1], inside[2] - wide[0], inside[3] - wide[1])
    return soft.crop(cut), inside


def _rgb(colour: str) -> NDArray[np.float32]:
    return np.array(ImageColor.getrgb(colour)[:3], dtype=np.float32)


def _colours(fill: Fill, width: int, height: int) -> NDArray[np.float32]:
    """(height, width, 3) of the fill stretched over a box."""
    if isinstance(fill, str):
        return np.broadcast_to(_rgb(fill), (height, width, 3)).astype(np.float32)
    if isinstance(fill, Fade):
        steps = width if fill.across else height
        t = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        ramp = _rgb(fill.top) * (1 - t) + _rgb(fill.bottom) * t
        shaped = ramp[None, :] if fill.across else ramp[:, None]
        return np.broadcast_to(shaped, (height, width, 3)).astype(np.float32)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    t = np.clip(np.hypot(x - fill.x, y - fill.y) / fill.reach, 0, 1).astype(np.float32)[..., None]
    mixed: NDArray[np.float32] = _rgb(fill.light) * (1 - t) + _rgb(fill.dark) * t
    return mixed


def _spline(points: Sequence[Point], *, closed: bool) -> list[Point]:
    p = np.array(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, 16, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    curve = np.concatenate([*pieces, p[-2:-1]] if not closed else pieces)
    return [(float(x), float(y)) for x, y in curve]
