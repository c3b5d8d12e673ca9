"""Drawn pictures of plants, animals and a snowman. Each function paints one; `PICTURES` names them."""

from __future__ import annotations

import math

from mmsearch.demo.canvas import Ball, Canvas, Fade
from mmsearch.demo.places import pine


def _sunflower() -> Canvas:
    c = Canvas(Fade("#5fb0ea", "#d8efd8"), seed=8)
    c.box(0, 420, 640, 480, Fade("#78b048", "#477f2c"), grain=0.14, blur=6)
    c.line([(322, 250), (330, 360), (316, 480)], 14, Fade("#5a9a3a", "#3b7426"), smooth=True)
    c.blob([(326, 400), (390, 346), (452, 360), (400, 412)], Ball("#7cc04e", "#39782b"), shadow=4)
    c.blob([(322, 430), (250, 380), (196, 398), (250, 446)], Ball("#7cc04e", "#39782b"), shadow=4)
    for ring, count, length in ((0, 20, 108), (1, 20, 96)):
        for i in range(count):
            a = 360 / count * (i + ring * 0.5)
            x = 322 + 100 * math.cos(math.radians(a))
            y = 210 + 100 * math.sin(math.radians(a))
            c.ellipse(x, y, length / 2, 17, Ball("#ffe45c", "#e79a14"), turn=a, shadow=2, grain=0.05)
    c.disc(322, 210, 72, Ball("#7a4a20", "#2e1809", x=0.45, y=0.4), shadow=5, grain=0.18)
    for i in range(240):
        r, a = 4.4 * math.sqrt(i), math.radians(137.5 * i)
        c.disc(322 + r * math.cos(a), 210 + r * math.sin(a), 2.2, "#c08a3a" if i > 90 else "#5b3613")
    return c


def _fish() -> Canvas:
    c = Canvas(Fade("#46b5d6", "#0a3a66"), seed=10)
    for x in (80, 220, 380, 520):
        c.polygon([(x, 0), (x + 44, 0), (x - 60, 480), (x - 150, 480)], "#d5f6ff", alpha=0.12, blur=10)
    c.blob(
        [(-40, 440), (160, 420), (360, 446), (560, 418), (700, 446), (700, 520), (-40, 520)],
        Fade("#e0cb94", "#a98f5c"),
        grain=0.12,
    )
    for x in (70, 96, 560, 590, 530):
        sway = c.random.uniform(-16, 16)
        c.line(
            [(x, 450), (x + sway, 400), (x - sway, 340), (x + sway, 280)], 9, Fade("#6fc063", "#1f6a3a"), smooth=True
        )
    c.blob([(430, 236), (520, 170), (508, 240), (520, 312)], Ball("#ffb04a", "#d85a12"), grain=0.08)
    c.blob([(280, 176), (340, 128), (400, 182)], Ball("#ffa53d", "#d85a12"))
    c.blob(
        [(150, 240), (220, 172), (330, 160), (440, 224), (444, 250), (330, 318), (220, 306)],
        Ball("#ffb347", "#e0520f", y=0.25),
        shadow=10,
        grain=0.07,
    )
    for x, w, h in ((232, 26, 62), (336, 28, 66)):
        c.ellipse(x, 240, w / 2 + 4, h, "#27211e", alpha=0.75)
        c.ellipse(x, 240, w / 2, h - 1, "#fdfdf8")
    c.blob([(296, 268), (350, 300), (290, 322)], Ball("#ffc163", "#e06a18"))
    c.disc(188, 222, 15, "#ffffff")
    c.disc(185, 222, 9, "#111111")
    c.disc(182, 218, 3, "#ffffff")
    c.line([(152, 254), (166, 260), (180, 256)], 3, "#7a2d08", smooth=True)
    for x, y, r in ((120, 180, 9), (104, 140, 13), (126, 96, 7), (96, 60, 16)):
        c.ring(x, y, r, 2, "#e8fbff", alpha=0.9)
        c.disc(x - r / 3, y - r / 3, r / 4, "#ffffff")
    return c


def _striped_cat() -> Canvas:
    c = Canvas(Fade("#8fb3a6", "#5d7f78"), seed=11, grain=0.05)
    c.blob([(150, 520), (180, 400), (320, 360), (460, 400), (490, 520)], Ball("#d8944c", "#9a5a24"), grain=0.1)
    for s in (-1, 1):
        c.polygon(
            [(320 + s * 60, 150), (320 + s * 156, 40), (320 + s * 160, 210)],
            Ball("#d8944c", "#a8662c"),
            grain=0.1,
            shadow=5,
        )
        c.polygon([(320 + s * 92, 140), (320 + s * 142, 76), (320 + s * 145, 178)], Fade("#f0b8a8", "#c98272"))
    c.ellipse(320, 240, 172, 148, Ball("#eaa95c", "#b06c2c", x=0.5, y=0.35), grain=0.12, shadow=8)
    for dx, top in ((-44, 108), (0, 98), (44, 108)):
        c.blob([(320 + dx - 8, top), (320 + dx + 8, top), (320 + dx * 0.6, top + 62)], "#7a4216", grain=0.1)
    for s in (-1, 1):
        for y, w in ((220, 56), (256, 64), (292, 54)):
            c.blob([(320 + s * 168, y - 7), (320 + s * 164, y + 9), (320 + s * (168 - w), y + 4)], "#7a4216", grain=0.1)
    c.ellipse(320, 312, 84, 58, Ball("#fff3e2", "#e8c49a", x=0.5), grain=0.05, blur=3)
    for s in (-1, 1):
        c.ellipse(320 + s * 68, 222, 40, 32, "#2a1a0c")
        c.ellipse(320 + s * 68, 222, 36, 29, Ball("#d9ef8a", "#5f9a3a", x=0.5, y=0.5))
        c.ellipse(320 + s * 68, 222, 10, 27, "#0b0b0b")
        c.disc(320 + s * 68 - 10, 210, 7, "#ffffff")
        for dy in (-10, 6, 22):
            c.line([(320 + s * 50, 316 + dy * 0.5), (320 + s * 190, 304 + dy * 2)], 2, "#fffaf0")
    c.blob([(298, 278), (342, 278), (320, 302)], Ball("#f2a0a0", "#c05a62"))
    c.line([(320, 300), (318, 322), (290, 334)], 4, "#5a2f14", smooth=True)
    c.line([(320, 300), (322, 322), (350, 334)], 4, "#5a2f14", smooth=True)
    return c


def _penguin() -> Canvas:
    c = Canvas(Fade("#7fb8e2", "#e8f4fb"), seed=12)
    c.polygon([(-20, 330), (90, 240), (180, 290), (280, 330)], Fade("#f5fbff", "#b8d3e8"))
    c.polygon([(420, 330), (520, 220), (660, 300), (700, 330)], Fade("#f5fbff", "#a8c8e2"))
    c.box(0, 326, 640, 480, Fade("#eef6fb", "#c3d7e6"), grain=0.03)
    c.ellipse(335, 444, 120, 14, "#5f7a92", alpha=0.5, blur=6)
    for s in (-1, 1):
        c.ellipse(320 + s * 44, 436, 40, 14, Ball("#ffb13d", "#d87410"))
        c.ellipse(320 + s * 104, 280, 22, 84, Ball("#3a3f4a", "#0f1218"), turn=-s * 14, grain=0.06)
    c.ellipse(320, 300, 106, 140, Ball("#3d434f", "#0c0e14"), shadow=6, grain=0.06)
    c.ellipse(320, 322, 76, 112, Ball("#ffffff", "#d3dbe4", x=0.5), grain=0.02)
    c.ellipse(320, 152, 72, 68, Ball("#3d434f", "#0c0e14"), grain=0.06)
    for s in (-1, 1):
        c.ellipse(320 + s * 28, 160, 27, 34, "#ffffff")
        c.disc(320 + s * 24, 152, 10, "#0c0c10")
        c.disc(320 + s * 24 - 3, 148, 3, "#ffffff")
    c.polygon([(294, 176), (346, 176), (320, 206)], Ball("#ffc24d", "#e07f12"))
    return c


def _butterfly() -> Canvas:
    c = Canvas(Ball("#b8dc8a", "#3f7d3a", x=0.5, y=0.4), seed=13, grain=0.08)
    for _ in range(14):
        c.disc(
            c.random.uniform(0, 640), c.random.uniform(0, 480), c.random.uniform(20, 60), "#dff3b5", alpha=0.25, blur=12
        )
    for s in (-1, 1):
        c.blob(
            [(320, 230), (320 + s * 60, 90), (320 + s * 190, 60), (320 + s * 220, 150), (320 + s * 130, 246)],
            "#2a160c",
            shadow=9,
        )
        c.blob(
            [(320 + s * 10, 222), (320 + s * 66, 104), (320 + s * 182, 76), (320 + s * 204, 148), (320 + s * 124, 232)],
            Ball("#ffb545", "#e0560f"),
            grain=0.08,
        )
        c.blob(
            [(320, 250), (320 + s * 120, 254), (320 + s * 160, 340), (320 + s * 90, 400), (320 + s * 30, 340)],
            "#2a160c",
            shadow=9,
        )
        c.blob(
            [(320 + s * 12, 262), (320 + s * 112, 266), (320 + s * 144, 338), (320 + s * 88, 384), (320 + s * 36, 334)],
            Ball("#ffa338", "#d9480c"),
            grain=0.08,
        )
        for x, y in ((80, 130), (130, 110), (110, 170), (60, 190), (80, 300), (110, 340)):
            c.line([(320 + s * 12, 240), (320 + s * x, y + 20), (320 + s * x * 1.35, y)], 3.5, "#2a160c", smooth=True)
        for x, y in ((196, 86), (208, 116), (206, 146), (148, 330), (134, 358)):
            c.disc(320 + s * x, y, 5, "#fff6e0")
        c.line([(320, 160), (320 + s * 30, 110), (320 + s * 56, 84)], 3, "#20120a", smooth=True)
        c.disc(320 + s * 56, 84, 5, "#20120a")
    c.ellipse(320, 250, 14, 104, Ball("#5a3a22", "#1a0e06"), grain=0.1)
    return c


def _snowman() -> Canvas:
    c = Canvas(Fade("#6f9cc8", "#dbe9f4"), seed=14)
    for x, h in ((70, 190), (560, 220), (610, 160)):
        pine(c, x, 390, h)
    c.blob(
        [(-60, 390), (200, 366), (440, 388), (700, 362), (700, 560), (-60, 560)], Fade("#fbfdff", "#cfdce9"), grain=0.02
    )
    c.ellipse(330, 446, 150, 14, "#5f7a99", alpha=0.45, blur=6)
    for y, r in ((356, 96), (226, 72), (128, 52)):
        c.disc(320, y, r, Ball("#ffffff", "#b8cadd"), shadow=5, grain=0.02)
    for s in (-1, 1):
        c.line([(320 + s * 66, 220), (320 + s * 130, 176), (320 + s * 168, 160)], 6, "#5b3d24")
        c.line([(320 + s * 136, 174), (320 + s * 152, 140)], 4, "#5b3d24")
        c.disc(320 + s * 18, 114, 6, "#15151a")
    c.polygon([(318, 126), (378, 138), (318, 142)], Fade("#ff9a3d", "#d9640f"))
    c.box(270, 168, 370, 192, Fade("#d8403c", "#9c1f22"), round_by=10, shadow=3)
    c.polygon([(346, 180), (376, 180), (384, 258), (352, 258)], Fade("#d8403c", "#9c1f22"), shadow=3)
    for y in (218, 246, 320):
        c.disc(320, y, 6, "#1c1c22")
    c.box(262, 78, 378, 92, "#17171c", round_by=4)
    c.box(284, 16, 356, 84, Fade("#3a3a44", "#0f0f14", across=True), round_by=4)
    c.box(284, 64, 356, 78, "#b8302e")
    for _ in range(120):
        c.disc(c.random.uniform(0, 640), c.random.uniform(0, 480), c.random.uniform(1.2, 3.4), "#ffffff", alpha=0.85)
    return c


def _mushroom() -> Canvas:
    c = Canvas(Ball("#9fbf7a", "#2f4f2c", x=0.5, y=0.3), seed=25, grain=0.1)
    c.box(0, 390, 640, 480, Fade("#5a7a38", "#2f4a1f"), grain=0.2, blur=5)
    c.blob(
        [(284, 250), (356, 250), (366, 350), (384, 430), (256, 430), (276, 350)],
        Fade("#fffaf0", "#c9bda0"),
        grain=0.05,
        shadow=6,
    )
    c.blob([(276, 292), (364, 292), (376, 318), (320, 326), (264, 318)], "#f1e8d2", shadow=4)
    c.blob(
        [(130, 262), (170, 150), (320, 84), (470, 150), (510, 262), (320, 284)],
        Ball("#f0483a", "#8c0f12"),
        grain=0.05,
        shadow=7,
    )
    for x, y, r in (
        (230, 180, 22),
        (320, 130, 20),
        (400, 190, 24),
        (300, 220, 18),
        (180, 232, 14),
        (460, 238, 14),
        (364, 246, 12),
    ):
        c.ellipse(x, y, r, r * 0.8, Ball("#ffffff", "#dcd5c5"), shadow=2)
    for _ in range(140):
        root, n = c.random.uniform(0, 640), c.random.uniform(14, 44)
        c.line(
            [(root, 478), (root + c.random.uniform(-12, 12), 470 - n)],
            2.4,
            str(c.random.choice(["#7aa548", "#4d7a2e", "#355a22"])),
        )
    return c


PICTURES = {
    "butterfly": _butterfly,
    "orange-fish": _fish,
    "penguin": _penguin,
    "red-mushroom": _mushroom,
    "snowman": _snowman,
    "striped-cat": _striped_cat,
    "sunflower": _sunflower,
}
"""File name to painter."""
