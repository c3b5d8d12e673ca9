"""Drawn pictures of places, weather and light. Each function paints one; `PICTURES` names them."""

from __future__ import annotations

import math

from mmsearch.demo.canvas import Ball, Canvas, Fade


def _cloud(c: Canvas, x: float, y: float, size: float, colour: str = "#ffffff", alpha: float = 0.92) -> None:
    for dx, dy, r in ((-1.3, 0.15, 0.6), (-0.6, -0.15, 0.8), (0.2, -0.3, 0.95), (0.95, 0.0, 0.75), (0, 0.2, 0.9)):
        c.disc(x + dx * size, y + dy * size, r * size, colour, blur=4, alpha=alpha, grain=0.01)


def _sea(c: Canvas, horizon: float, fill: Fade, glint: str) -> None:
    c.box(0, horizon, 640, 480, fill, grain=0.04)
    for _ in range(90):
        y = horizon + 4 + (476 - horizon) * c.random.random() ** 1.4
        x, w = c.random.uniform(0, 640), 8 + (y - horizon) * 0.22
        c.line([(x - w, y), (x, y - 1.5), (x + w, y)], 1 + (y - horizon) / 110, glint, alpha=0.35, blur=0.6)


def pine(c: Canvas, x: float, ground: float, height: float, green: str = "#1f5a38", dark: str = "#0d2f1f") -> None:
    """A pine that stands at (x, ground)."""
    c.box(x - height * 0.035, ground - height * 0.2, x + height * 0.035, ground, "#5a3d26")
    for i in range(5):
        top, w = ground - height * (1 - i * 0.14), height * (0.09 + i * 0.045)
        points = [(x, top), (x + w, top + height * 0.29), (x + w * 0.3, top + height * 0.26)]
        points += [(x - w * 0.3, top + height * 0.26), (x - w, top + height * 0.29)]
        c.polygon(points, Fade(green, dark, across=True), grain=0.09, shadow=2)


def _sailing_boat() -> Canvas:
    c = Canvas(Fade("#3f8fd8", "#cfe8f7"), seed=1)
    _cloud(c, 130, 90, 34)
    _cloud(c, 520, 130, 26)
    _sea(c, 300, Fade("#2f86b5", "#0d3f6b"), "#bfe6f5")
    c.line([(318, 70), (318, 340)], 6, "#6b4a2b")
    c.blob([(328, 82), (400, 190), (452, 318), (328, 318)], Fade("#ffffff", "#d9dfe6", across=True), shadow=4)
    c.blob([(308, 96), (262, 210), (220, 318), (308, 318)], Fade("#e9eef2", "#ffffff", across=True), shadow=4)
    c.polygon([(318, 70), (350, 80), (318, 92)], "#d83a34")
    hull = [(196, 332), (470, 332), (430, 392), (240, 392)]
    c.polygon(hull, Fade("#b5352c", "#6d1a18"), shadow=8)
    c.line([(192, 332), (474, 332)], 8, "#f4ead8")
    c.ellipse(335, 398, 135, 10, "#cfeaf6", alpha=0.55, blur=4)
    return c


def _house_and_tree() -> Canvas:
    c = Canvas(Fade("#69b2ee", "#e4f2fb"), seed=2)
    _cloud(c, 480, 80, 30)
    c.blob(
        [(-60, 380), (140, 322), (340, 336), (540, 312), (720, 360), (720, 560), (-60, 560)],
        Fade("#7cb648", "#3f7a2a"),
        grain=0.1,
    )
    c.box(150, 220, 390, 390, Fade("#f5e3c0", "#dcc093"), shadow=10)
    c.polygon([(126, 226), (270, 116), (414, 226)], Fade("#c3553d", "#8d3324"), grain=0.1, shadow=6)
    c.box(330, 120, 358, 190, "#9a5040", grain=0.08)
    c.box(244, 300, 296, 390, Fade("#7a4a2a", "#5a331a"), round_by=4)
    c.disc(287, 348, 4, "#e9c34f")
    for x in (176, 322):
        c.box(x, 256, x + 46, 304, "#ffffff")
        c.box(x + 4, 260, x + 42, 300, Fade("#9fd0ea", "#5f93b5"))
        c.line([(x + 23, 258), (x + 23, 302)], 3, "#ffffff")
        c.line([(x + 2, 280), (x + 44, 280)], 3, "#ffffff")
    c.polygon([(250, 390), (290, 390), (340, 480), (200, 480)], Fade("#cbb591", "#b59c76"), grain=0.1)
    c.blob(
        [(496, 400), (504, 300), (498, 240), (524, 240), (522, 300), (534, 400)], Fade("#7b5433", "#4a2f1a"), grain=0.12
    )
    for dx, dy, r in ((0, 0, 62), (-48, 34, 46), (46, 36, 48), (-22, -36, 44), (28, -30, 44), (0, 46, 50)):
        c.disc(512 + dx, 206 + dy, r, Ball("#86c04f", "#2b6426"), grain=0.14, shadow=3)
    return c


def _snowy_mountain() -> Canvas:
    c = Canvas(Fade("#3d79c0", "#dcecf7"), seed=3)
    _cloud(c, 540, 90, 24)
    c.polygon([(-40, 360), (90, 190), (160, 240), (240, 150), (340, 360)], Fade("#8ea3bd", "#5f7590"), grain=0.1)
    c.polygon([(120, 380), (360, 60), (640, 380)], Fade("#74808f", "#47525f"), grain=0.14)
    snow = [
        (360, 60),
        (452, 166),
        (424, 184),
        (410, 168),
        (388, 204),
        (362, 172),
        (340, 208),
        (318, 172),
        (290, 190),
        (276, 172),
    ]
    c.polygon(snow, Fade("#ffffff", "#dfe9f5"), grain=0.02)
    c.polygon([(360, 60), (452, 166), (424, 184), (410, 168), (388, 204), (372, 176)], "#b9cbe2", alpha=0.8)
    c.polygon([(430, 380), (560, 190), (700, 380)], Fade("#8894a5", "#525d6c"), grain=0.12)
    c.polygon([(560, 190), (596, 240), (574, 256), (556, 236), (538, 258), (520, 248)], "#f7fbff")
    c.blob(
        [(-60, 372), (200, 350), (420, 372), (700, 346), (700, 560), (-60, 560)], Fade("#f4f8fc", "#c6d6e6"), grain=0.02
    )
    for x, y, h in ((60, 420, 120), (120, 440, 150), (560, 430, 140), (612, 450, 170), (500, 412, 96)):
        pine(c, x, y, h)
    return c


def _sunset() -> Canvas:
    c = Canvas(Fade("#3a2a66", "#ff9a4a"), seed=4)
    for y, colour in ((170, "#d8577a"), (210, "#f08a5c"), (110, "#7a4a8c")):
        for _ in range(4):
            x = c.random.uniform(0, 640)
            c.ellipse(x, y + c.random.uniform(-20, 20), 130, 9, colour, blur=7, alpha=0.7)
    c.disc(330, 262, 92, "#ffd27a", blur=34, alpha=0.75)
    c.disc(330, 268, 56, Fade("#fff3b5", "#ff9a3c"))
    _sea(c, 280, Fade("#e0703f", "#241a48"), "#ffd9a0")
    for i in range(22):
        y = 286 + i * 9
        w = 22 + i * 2.4 + c.random.uniform(-12, 12)
        c.line([(330 - w, y), (330 + w, y)], 3.2, "#ffd68a", alpha=0.75, blur=1.2)
    c.blob([(-40, 470), (80, 440), (220, 462), (300, 500), (-40, 520)], "#120d20")
    c.line([(92, 450), (112, 350), (140, 270)], 9, "#120d20", smooth=True)
    for angle in (-170, -140, -100, -60, -25, 10, 40):
        a = math.radians(angle)
        tip = (140 + 92 * math.cos(a), 270 + 60 * math.sin(a) + 34)
        c.line([(140, 270), (140 + 56 * math.cos(a), 262 + 46 * math.sin(a)), tip], 8, "#120d20", smooth=True)
    return c


def _rainbow() -> Canvas:
    c = Canvas(Fade("#5f86a8", "#d5e4ea"), seed=5)
    _cloud(c, 100, 80, 44, "#8b97a5")
    _cloud(c, 560, 70, 50, "#7f8c9b")
    for i, colour in enumerate(("#e2393b", "#f08a32", "#f6dc46", "#55b54f", "#3f8fdb", "#4a56b8", "#8a4aa8")):
        c.arc(320, 400, 290 - i * 13, 14, 180, 360, colour, alpha=0.75, blur=2.2, grain=0)
    c.blob(
        [(-60, 372), (120, 346), (330, 380), (520, 340), (720, 372), (720, 560), (-60, 560)],
        Fade("#8fc552", "#3d7d2d"),
        grain=0.12,
    )
    for _ in range(70):
        x, y = c.random.uniform(0, 640), c.random.uniform(392, 476)
        c.disc(x, y, c.random.uniform(2, 4.5), str(c.random.choice(["#ffffff", "#f5d53f", "#e75480"])))
    return c


def _night_sky() -> Canvas:
    c = Canvas(Fade("#050a24", "#25386e"), seed=6)
    for _ in range(230):
        x, y = c.random.uniform(0, 640), c.random.uniform(0, 380)
        c.disc(x, y, 0.6 + 1.7 * c.random.random() ** 4, "#fdfbe8", alpha=c.random.uniform(0.4, 1))
    c.disc(470, 120, 78, "#dfe4ff", blur=26, alpha=0.35)
    c.disc(470, 120, 54, Ball("#fffdf0", "#cfcab0"), grain=0.07)
    for x, y, r in ((452, 104, 11), (486, 134, 14), (490, 96, 7), (458, 142, 8)):
        c.disc(x, y, r, "#b9b49c", alpha=0.6, blur=1)
    c.blob(
        [(-60, 400), (100, 340), (260, 392), (420, 352), (720, 404), (720, 560), (-60, 560)], Fade("#101a38", "#04070f")
    )
    for x, h in ((70, 90), (130, 120), (560, 110), (610, 80), (300, 70)):
        pine(c, x, 430, h, "#0c1c26")
    return c


def _cactus_desert() -> Canvas:
    c = Canvas(Fade("#57a6de", "#f7e6b8"), seed=7)
    c.disc(520, 90, 40, Ball("#fffbe0", "#ffe07a"))
    c.polygon([(380, 330), (430, 250), (560, 250), (610, 330)], Fade("#c9744a", "#9c4f33"), grain=0.12)
    c.blob(
        [(-60, 330), (160, 300), (380, 334), (720, 312), (720, 560), (-60, 560)], Fade("#eec27f", "#c98f4d"), grain=0.06
    )
    c.ellipse(300, 432, 150, 12, "#7a5230", alpha=0.45, blur=5)
    green = Fade("#5fa455", "#28602f", across=True)
    for x0, y0, x1, y1 in ((252, 120, 316, 430), (170, 190, 210, 300), (360, 160, 400, 262)):
        c.box(x0, y0, x1, y1, green, round_by=(x1 - x0) / 2, grain=0.07, shadow=4)
    c.box(186, 266, 270, 304, Fade("#4f9648", "#28602f"), round_by=18, grain=0.07)
    c.box(300, 226, 384, 264, Fade("#4f9648", "#28602f"), round_by=18, grain=0.07)
    for _ in range(120):
        x, y = c.random.uniform(256, 312), c.random.uniform(130, 420)
        c.line([(x, y), (x + c.random.uniform(-4, 4), y - 5)], 1, "#f2f0d0")
    for x, y in ((90, 440), (470, 420), (560, 455)):
        c.blob([(x - 30, y), (x - 12, y - 22), (x + 18, y - 18), (x + 34, y)], Ball("#b7a58f", "#6b5a48"), grain=0.1)
    return c


def _pine_forest() -> Canvas:
    c = Canvas(Fade("#cfdfe2", "#e9efe2"), seed=9)
    for depth in range(5):
        ground = 270 + depth * 48
        green = ("#a9c0b8", "#86aa98", "#5a8f74", "#35704d", "#22593a")[depth]
        dark = ("#93aea4", "#6a917e", "#3c6b52", "#1c4a31", "#0d2f1f")[depth]
        c.box(0, ground - 16, 640, 480, Fade(green, dark), blur=9, grain=0.08)
        for i in range(11 - depth):
            x = (i + c.random.uniform(0.1, 0.9)) * 640 / (11 - depth)
            pine(c, x, ground + c.random.uniform(-8, 8), 120 + depth * 58 + c.random.uniform(-20, 20), green, dark)
        c.ellipse(320, ground + 30, 460, 26, "#e6ece4", alpha=0.35 - depth * 0.06, blur=12)
    c.box(0, 452, 640, 480, Fade("#4c6b34", "#2d4520"), grain=0.2, blur=5)
    return c


def _smiling_sun() -> Canvas:
    c = Canvas(Fade("#3f9fe8", "#bfe6fb"), seed=15)
    for i in range(16):
        a = math.radians(i * 22.5)
        far = 206 if i % 2 else 176
        side = [(320 + 126 * math.cos(a + d), 236 + 126 * math.sin(a + d)) for d in (-0.12, 0.12)]
        c.polygon([*side, (320 + far * math.cos(a), 236 + far * math.sin(a))], Ball("#ffe14a", "#f5a016", x=0.5, y=0.5))
    c.disc(320, 236, 124, Ball("#fff27a", "#f9b218"), grain=0.02, shadow=4)
    for s in (-1, 1):
        c.ellipse(320 + s * 42, 206, 13, 20, "#4a2a08")
        c.disc(320 + s * 42 - 4, 198, 5, "#ffffff")
        c.disc(320 + s * 78, 256, 20, "#ff8a5c", alpha=0.6, blur=5)
    c.arc(320, 232, 66, 9, 25, 155, "#7a3d08")
    _cloud(c, 90, 400, 40)
    _cloud(c, 560, 410, 46)
    return c


def _umbrella_in_the_rain() -> Canvas:
    c = Canvas(Fade("#5f6d7c", "#a5b1ba"), seed=16)
    for x, y in ((90, 50), (300, 30), (520, 56)):
        _cloud(c, x, y, 54, "#6a7683", 0.75)
    c.box(0, 390, 640, 480, Fade("#6d7780", "#3d454d"), grain=0.08)
    c.ellipse(330, 434, 170, 20, "#b9c6d0", alpha=0.4, blur=5)
    c.line([(320, 150), (320, 400)], 7, "#2b2b30")
    c.arc(296, 400, 27, 7, 0, 180, "#6b3f22")
    c.wedge(320, 262, 172, 180, 360, Ball("#f0453f", "#8f1418", y=0.2), shadow=8)
    for dx, w in ((-115, 58), (0, 57), (115, 58)):
        c.ellipse(320 + dx, 264, w, 22, Fade("#828d97", "#98a3ab"), grain=0.02)
    for dx in (-58, 58):
        c.line([(320, 92), (320 + dx * 0.8, 150), (320 + dx, 256)], 2.5, "#7a0f14", smooth=True)
    c.line([(320, 92), (320, 74)], 5, "#2b2b30")
    for _ in range(210):
        left, top, n = c.random.uniform(-20, 660), c.random.uniform(-20, 470), c.random.uniform(14, 30)
        if abs(left - 320) < 165 and 110 < top < 390:
            continue
        c.line([(left, top), (left - n * 0.25, top + n)], 1.6, "#dfeaf2", alpha=0.7)
    for _ in range(16):
        c.ellipse(c.random.uniform(20, 620), c.random.uniform(410, 470), 12, 3.5, "#d5e2ea", alpha=0.5)
    return c


def _lighthouse() -> Canvas:
    c = Canvas(Fade("#2d4f86", "#f3c9a0"), seed=17)
    _sea(c, 330, Fade("#3f6f96", "#12304f"), "#dfe9ee")
    c.blob(
        [(180, 410), (250, 350), (400, 340), (520, 400), (640, 430), (640, 520), (120, 520)],
        Ball("#7b6a5a", "#352a24"),
        grain=0.22,
    )
    for i in range(6):
        y0, y1 = 130 + i * 39, 169 + i * 39
        w0, w1 = 31 + i * 4.2, 31 + (i + 1) * 4.2
        colours = ("#d9413a", "#7f1a18") if i % 2 == 0 else ("#ffffff", "#a9b0b8")
        c.polygon([(340 - w0, y0), (340 + w0, y0), (340 + w1, y1), (340 - w1, y1)], Fade(*colours, across=True))
    c.box(296, 118, 384, 132, "#33363c")
    c.box(314, 80, 366, 120, Ball("#fff6b0", "#e8b43a", x=0.5, y=0.5))
    c.polygon([(304, 82), (340, 46), (376, 82)], Fade("#c43a34", "#7f1a18"))
    c.polygon([(314, 100), (-20, 40), (-20, 150)], "#fff3b0", alpha=0.35, blur=8)
    c.polygon([(366, 100), (680, 60), (680, 150)], "#fff3b0", alpha=0.35, blur=8)
    c.box(330, 300, 352, 364, "#3a2a20", round_by=10)
    return c


PICTURES = {
    "cactus-in-the-desert": _cactus_desert,
    "forest": _pine_forest,
    "house-with-a-tree": _house_and_tree,
    "lighthouse": _lighthouse,
    "night-sky": _night_sky,
    "rainbow": _rainbow,
    "sailing-boat": _sailing_boat,
    "smiling-sun": _smiling_sun,
    "snowy-mountain": _snowy_mountain,
    "sunset-at-sea": _sunset,
    "umbrella-in-the-rain": _umbrella_in_the_rain,
}
"""File name to painter."""
