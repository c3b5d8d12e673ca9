"""Drawn pictures of food. Each function paints one; `PICTURES` names them."""

from __future__ import annotations

import math

from mmsearch.demo.canvas import Ball, Canvas, Fade


def _table(seed: int, light: str = "#c9975f", dark: str = "#8a5a30", wall: str = "#e6e0d4") -> Canvas:
    c = Canvas(Fade(wall, "#cfc7b8"), seed=seed)
    c.box(0, 300, 640, 480, Fade(light, dark), grain=0.08)
    for _ in range(26):
        y = c.random.uniform(304, 478)
        c.line([(0, y), (320, y + c.random.uniform(-4, 4)), (640, y)], 1.4, dark, alpha=0.35, smooth=True)
    return c


def _red_apple() -> Canvas:
    c = _table(21)
    c.ellipse(340, 402, 140, 22, "#4a2a12", alpha=0.55, blur=9)
    c.blob(
        [
            (320, 150),
            (400, 132),
            (462, 210),
            (446, 320),
            (384, 398),
            (320, 386),
            (256, 398),
            (194, 320),
            (178, 210),
            (240, 132),
        ],
        Ball("#f4584a", "#7d0a12", x=0.32, y=0.28),
        grain=0.06,
    )
    c.ellipse(320, 152, 40, 12, "#6b0a10", alpha=0.7, blur=5)
    c.line([(320, 156), (326, 118), (344, 92)], 8, "#5a3a1c", smooth=True)
    c.blob([(334, 116), (376, 78), (430, 82), (388, 124)], Ball("#8fd05a", "#2f7a2c"), shadow=3)
    c.ellipse(252, 216, 20, 36, "#ffd9d0", alpha=0.75, blur=6, turn=20)
    return c


def _bananas() -> Canvas:
    c = _table(22, wall="#cfe0e6")
    c.ellipse(320, 392, 190, 20, "#4a2a12", alpha=0.5, blur=9)
    for dy, light, dark in ((-36, "#f2cf3c", "#b8860f"), (0, "#ffe058", "#d09a12"), (34, "#fff07a", "#dca81c")):
        points = [(150, 200 + dy), (190, 290 + dy), (300, 350 + dy), (430, 330 + dy), (500, 270 + dy)]
        points += [(486, 256 + dy), (410, 282 + dy), (310, 288 + dy), (226, 250 + dy), (176, 190 + dy)]
        c.blob(points, Fade(light, dark), grain=0.04, shadow=6)
        c.disc(494, 262 + dy, 9, "#4a3512")
    c.blob([(146, 230), (140, 150), (158, 128), (182, 150), (180, 228)], Fade("#8a7a2c", "#c9a42a"), grain=0.1)
    return c


def _pizza() -> Canvas:
    c = Canvas(Fade("#a5713f", "#6d4524"), seed=23, grain=0.1)
    c.disc(320, 246, 212, Ball("#f3f3f0", "#b9b9b4"), shadow=12)
    c.disc(320, 244, 190, Ball("#e2a95a", "#a5652a", x=0.5, y=0.45, reach=0.6), grain=0.1, shadow=5)
    c.disc(320, 244, 166, "#c43d1f", grain=0.1)
    c.disc(320, 244, 158, Ball("#ffd968", "#eda93a", x=0.5, y=0.5), grain=0.12, blur=3)
    for _ in range(26):
        r, a = 140 * math.sqrt(c.random.random()), c.random.uniform(0, 6.28)
        c.disc(320 + r * math.cos(a), 244 + r * math.sin(a), c.random.uniform(8, 22), "#fff0b0", alpha=0.7, blur=4)
    for i in range(11):
        r, a = (118 if i < 8 else 48), (i * 0.785 if i < 8 else i * 2.1)
        x, y = 320 + r * math.cos(a), 244 + r * math.sin(a)
        c.disc(x, y, 25, Ball("#d9482f", "#8f1d14"), grain=0.1, shadow=3)
    for i in range(12):
        r, a = 92 + 40 * (i % 2), i * 0.52 + 0.3
        c.blob(
            [
                (320 + r * math.cos(a) + dx, 244 + r * math.sin(a) + dy)
                for dx, dy in ((-14, 0), (0, -7), (14, 0), (0, 7))
            ],
            Ball("#5fae42", "#25631f"),
            shadow=1,
        )
    for i in range(4):
        a = math.radians(i * 45 + 12)
        dx, dy = 190 * math.cos(a), 190 * math.sin(a)
        c.line([(320 - dx, 244 - dy), (320 + dx, 244 + dy)], 2.5, "#8a4a1c", alpha=0.7)
    return c


def _birthday_cake() -> Canvas:
    c = _table(24, wall="#f2d7dc")
    c.ellipse(320, 412, 210, 26, Ball("#ffffff", "#c9ced6"), shadow=8)
    c.box(160, 270, 480, 404, Fade("#f7b5c4", "#d9738f"), round_by=22, shadow=5)
    c.ellipse(320, 276, 160, 30, Ball("#ffe9ee", "#f5b8c6", x=0.5))
    for i in range(9):
        c.ellipse(176 + i * 36, 296, 21, 22 + 12 * (i % 2), "#fff5f7", shadow=2)
    c.ellipse(320, 278, 158, 26, "#fff5f7")
    for i in range(40):
        c.disc(
            c.random.uniform(176, 464),
            c.random.uniform(340, 396),
            4,
            ("#e8434f", "#f2c53d", "#4aa5dd", "#62b356")[i % 4],
        )
    for i, colour in enumerate(("#e8434f", "#4aa5dd", "#62b356", "#f2a03d", "#9a5cc0")):
        x = 208 + i * 56
        c.box(x - 6, 190, x + 6, 276, Fade(colour, "#ffffff"), round_by=4)
        c.disc(x, 172, 26, "#ffdf7a", alpha=0.5, blur=8)
        c.blob([(x, 144), (x + 9, 172), (x, 186), (x - 9, 172)], Fade("#fff3a8", "#ff8a1c"))
    return c


PICTURES = {"birthday-cake": _birthday_cake, "bunch-of-bananas": _bananas, "pizza": _pizza, "red-apple": _red_apple}
"""File name to painter."""
