"""Drawn pictures of things that people make and use. Each function paints one; `PICTURES` names them."""

from __future__ import annotations

import math

from mmsearch.demo.canvas import Ball, Canvas, Fade


def _traffic_light() -> Canvas:
    c = Canvas(Fade("#86b6dc", "#dfe9ef"), seed=26)
    for x, w, h, colour in (
        (0, 130, 230, "#8c98a8"),
        (140, 90, 170, "#a3adb8"),
        (450, 100, 200, "#98a3b0"),
        (556, 90, 260, "#828fa0"),
    ):
        c.box(x, 400 - h, x + w, 420, colour, grain=0.05, blur=1.5)
        for i in range(int(w // 26)):
            for j in range(int(h // 34)):
                c.box(x + 8 + i * 26, 412 - h + j * 34, x + 22 + i * 26, 430 - h + j * 34, "#c9dcea", alpha=0.7, blur=1)
    c.box(0, 410, 640, 480, Fade("#6d7076", "#45484e"), grain=0.1)
    c.box(308, 360, 332, 480, Fade("#4a4d52", "#1f2125", across=True))
    c.box(248, 40, 392, 372, Fade("#30343a", "#14161a", across=True), round_by=22, shadow=10)
    for y, light, dark, on in (
        (104, "#ff8f7a", "#d3120f", True),
        (206, "#6b5a1c", "#3a300c", False),
        (308, "#1f5a32", "#0c2f18", False),
    ):
        if on:
            c.disc(320, y, 66, "#ff3a2a", alpha=0.4, blur=16)
        c.disc(320, y, 45, "#08090b")
        c.disc(320, y, 41, Ball(light, dark, x=0.45, y=0.4, reach=0.6))
        c.arc(320, y, 52, 9, 185, 355, "#0a0b0d")
    return c


def _chess_board() -> Canvas:
    c = Canvas(Fade("#5a4030", "#33221a"), seed=27, grain=0.08)

    def at(u: float, v: float) -> tuple[float, float]:
        depth = 1 / (1 + 0.085 * (8 - v))
        return 320 + (u - 4) * 72 * depth, 90 + (v * 0.55 + v * v * 0.032) * 58

    edge = [at(-0.35, -0.35), at(8.35, -0.35), at(8.3, 8.25), at(-0.3, 8.25)]
    c.polygon(edge, Fade("#7a4c28", "#4d2c14"), shadow=12, grain=0.1)
    for i in range(8):
        for j in range(8):
            colour = "#efdab4" if (i + j) % 2 == 0 else "#6b3f22"
            c.polygon([at(i, j), at(i + 1, j), at(i + 1, j + 1), at(i, j + 1)], colour, grain=0.05)
    places = [(i, 1, "pawn", 0) for i in range(8)] + [(2, 3, "pawn", 1), (4, 4, "pawn", 1), (5, 5, "pawn", 0)]
    places += [
        (4, 0, "king", 0),
        (3, 0, "queen", 0),
        (0, 0, "rook", 0),
        (7, 0, "rook", 0),
        (3, 6, "queen", 1),
        (4, 7, "king", 1),
    ]
    places += [(i, 6, "pawn", 1) for i in (0, 1, 5, 6, 7)] + [(0, 7, "rook", 1), (7, 7, "rook", 1)]
    for i, j, kind, white in sorted(places, key=lambda p: p[1]):
        x, y = at(i + 0.5, j + 0.75)
        s = 0.62 + j * 0.055
        fill = Ball("#fffaf0", "#c2a878") if white else Ball("#6a6a70", "#121216")
        h = {"pawn": 40, "rook": 48, "queen": 66, "king": 74}[kind] * s
        c.ellipse(x, y, 20 * s, 9 * s, fill, shadow=4)
        c.polygon([(x - 15 * s, y), (x + 15 * s, y), (x + 7 * s, y - h), (x - 7 * s, y - h)], fill)
        if kind == "rook":
            c.box(x - 14 * s, y - h - 12 * s, x + 14 * s, y - h + 4 * s, fill)
        else:
            c.disc(x, y - h - 4 * s, 12 * s, fill)
        if kind == "king":
            c.line([(x, y - h - 14 * s), (x, y - h - 34 * s)], 4 * s, "#efe2c0" if white else "#1a1a1e")
            c.line([(x - 8 * s, y - h - 25 * s), (x + 8 * s, y - h - 25 * s)], 4 * s, "#efe2c0" if white else "#1a1a1e")
        if kind == "queen":
            c.polygon(
                [(x - 13 * s, y - h - 22 * s), (x + 13 * s, y - h - 22 * s), (x + 8 * s, y - h), (x - 8 * s, y - h)],
                fill,
            )
    return c


def _guitar() -> Canvas:
    c = Canvas(Fade("#7d8c94", "#4f5a61"), seed=28, grain=0.06)
    c.box(0, 410, 640, 480, Fade("#9a7048", "#6b4526"), grain=0.12)
    c.ellipse(330, 436, 150, 14, "#1e1410", alpha=0.6, blur=7)
    body = [(320, 214), (386, 226), (400, 262), (384, 296), (420, 340), (416, 400), (370, 436), (320, 442)]
    body += [(640 - x, y) for x, y in reversed(body[1:-1])]
    c.blob(body, Fade("#8a4a1a", "#4a2208"), shadow=9)
    c.blob(
        [(320 + (x - 320) * 0.94, 328 + (y - 328) * 0.95) for x, y in body],
        Ball("#f2b25c", "#a55f1c", x=0.5, y=0.5),
        grain=0.08,
    )
    c.disc(320, 316, 37, "#5a2f10")
    c.disc(320, 316, 31, Ball("#1a0d06", "#3a2010", x=0.5))
    c.box(306, 46, 334, 300, Fade("#4a2c18", "#2a170b", across=True), shadow=4)
    for i in range(12):
        c.line([(306, 62 + i * 19), (334, 62 + i * 19)], 1.6, "#d9d0b5")
    for y in (100, 138, 176, 233):
        c.disc(320, y, 3, "#f4efdf")
    c.polygon([(300, 6), (340, 6), (336, 50), (304, 50)], Fade("#6b3a18", "#3f200c"), shadow=4)
    for y in (14, 27, 40):
        for s in (-1, 1):
            c.ellipse(320 + s * 27, y, 8, 4.5, "#e6e6e6")
    c.box(278, 376, 362, 388, "#3a1d0c", round_by=3, shadow=3)
    for i in range(6):
        c.line([(309 + i * 4.4, 48), (308 + i * 4.8, 382)], 1, "#f2ead0", alpha=0.9)
    return c


def _wall_clock() -> Canvas:
    c = Canvas(Fade("#c9d6c2", "#a3b39c"), seed=29, grain=0.03)
    c.disc(320, 240, 196, Ball("#8a5530", "#3f2210"), shadow=14, grain=0.08)
    c.disc(320, 240, 170, Ball("#ffffff", "#e3dfd3", x=0.5, y=0.4))
    for i in range(60):
        a = math.radians(i * 6)
        near, w = (138, 5) if i % 5 == 0 else (152, 1.8)
        c.line([(320 + r * math.cos(a), 240 + r * math.sin(a)) for r in (near, 160)], w, "#202226")
    for a, length, w in ((-60 - 3, 84, 10), (54, 128, 6)):
        t = math.radians(a)
        c.line(
            [
                (320 - 20 * math.cos(t), 240 - 20 * math.sin(t)),
                (320 + length * math.cos(t), 240 + length * math.sin(t)),
            ],
            w,
            "#15161a",
            shadow=3,
        )
    t = math.radians(200)
    c.line([(320, 240), (320 + 132 * math.cos(t), 240 + 132 * math.sin(t))], 2.4, "#d3241f", shadow=2)
    c.disc(320, 240, 10, Ball("#e0453a", "#7a100c"))
    return c


def _football() -> Canvas:
    c = Canvas(Fade("#8cc7f0", "#d9eef9"), seed=30)
    c.box(0, 230, 640, 480, Fade("#6fb043", "#2f6f22"), grain=0.16)
    c.line([(90, 236), (90, 60), (550, 60), (550, 236)], 8, "#ffffff")
    for i in range(1, 18):
        c.line([(90 + i * 25.5, 64), (90 + i * 25.5, 232)], 1, "#ffffff", alpha=0.6)
    for i in range(1, 8):
        c.line([(94, 60 + i * 22), (546, 60 + i * 22)], 1, "#ffffff", alpha=0.6)
    c.ellipse(340, 436, 120, 16, "#12300c", alpha=0.6, blur=7)
    x0, y0, r = 320, 322, 116
    c.disc(x0, y0, r, Ball("#ffffff", "#9aa0a8"), grain=0.02)

    def pentagon(
        x: float, y: float, size: float, turn: float, squeeze: float, axis: float
    ) -> list[tuple[float, float]]:
        points = []
        for i in range(5):
            a = math.radians(turn + i * 72)
            px, py = size * math.cos(a), size * math.sin(a)
            along = px * math.cos(axis) + py * math.sin(axis)
            px -= along * (1 - squeeze) * math.cos(axis)
            py -= along * (1 - squeeze) * math.sin(axis)
            points.append((x + px, y + py))
        return points

    c.polygon(pentagon(x0, y0, 36, -90, 1, 0), "#15171b")
    for i in range(5):
        a = math.radians(-90 + i * 72)
        x, y = x0 + 95 * math.cos(a), y0 + 95 * math.sin(a)
        c.line(
            [(x0 + 36 * math.cos(a), y0 + 36 * math.sin(a)), (x0 + 74 * math.cos(a), y0 + 74 * math.sin(a))],
            3,
            "#33363c",
        )
        c.polygon(pentagon(x, y, 32, 90 + i * 72, 0.45, a), "#15171b")
        b = a + math.radians(36)
        middle = (x0 + 80 * math.cos(b), y0 + 80 * math.sin(b))
        for side in (a, a + math.radians(72)):
            c.line(
                [(x0 + 84 * math.cos(side + (b - side) * 0.36), y0 + 84 * math.sin(side + (b - side) * 0.36)), middle],
                3,
                "#33363c",
            )
        c.line([middle, (x0 + r * math.cos(b), y0 + r * math.sin(b))], 3, "#33363c")
    return c


def _hot_air_balloon() -> Canvas:
    c = Canvas(Fade("#4f9fe0", "#e2f1fa"), seed=31)
    for x, y, r in ((110, 360, 30), (540, 330, 36), (560, 90, 22)):
        for dx, dr in ((-1.1, 0.7), (0, 1), (1.1, 0.75)):
            c.disc(x + dx * r, y, r * dr, "#ffffff", blur=5, alpha=0.9)
    c.blob(
        [(-60, 440), (160, 410), (380, 440), (720, 408), (720, 560), (-60, 560)], Fade("#86b356", "#4b7f34"), grain=0.1
    )
    outline = [(320, 40), (420, 70), (462, 160), (430, 246), (362, 318), (278, 318), (210, 246), (178, 160), (220, 70)]
    c.blob(outline, Ball("#ffb33d", "#c9480f"), shadow=6)
    for part, colour in ((0.72, "#e8403a"), (0.42, "#ffd34a"), (0.14, "#3f7fd0")):
        c.blob(
            [(320 + (x - 320) * part, y) for x, y in outline],
            Ball(colour, "#8f2a1a" if part > 0.5 else colour),
            alpha=0.92,
        )
    for s in (-1, 1):
        c.line([(320 + s * 40, 318), (320 + s * 26, 366)], 2, "#4a3422")
    c.box(290, 364, 350, 408, Fade("#b07a42", "#6b4220"), round_by=6, grain=0.16, shadow=5)
    c.box(286, 360, 354, 370, "#7a4e28", round_by=4)
    return c


def _bicycle() -> Canvas:
    c = Canvas(Fade("#e9d9c0", "#d4bf9e"), seed=32, grain=0.05)
    for j in range(9):
        for i in range(9):
            x = i * 80 - (40 if j % 2 else 0)
            c.box(x + 2, j * 40 + 2, x + 78, j * 40 + 38, Fade("#c98a68", "#b5724f"), grain=0.12)
    c.box(0, 366, 640, 480, Fade("#8d8f92", "#6a6c70"), grain=0.1)
    c.ellipse(330, 428, 250, 12, "#26262a", alpha=0.5, blur=6)
    for x in (180, 460):
        for i in range(18):
            a = math.radians(i * 20)
            c.line([(x, 330), (x + 90 * math.cos(a), 330 + 90 * math.sin(a))], 1, "#e8e8ea")
        c.ring(x, 330, 98, 10, "#1b1c20", shadow=2)
        c.ring(x, 330, 88, 4, "#c6c9ce")
        c.disc(x, 330, 9, "#55585e")
    teal = Fade("#2fa89c", "#146a64")
    for start, end in (
        ((180, 330), (262, 210)),
        ((262, 210), (420, 204)),
        ((300, 334), (420, 204)),
        ((262, 210), (300, 334)),
        ((180, 330), (300, 334)),
        ((460, 330), (412, 172)),
    ):
        c.line([start, end], 9, teal, shadow=3)
    c.line([(262, 210), (252, 176)], 7, "#8a8d92")
    c.blob([(212, 168), (256, 160), (296, 170), (256, 184)], "#2a1a10", shadow=3)
    c.line([(412, 172), (408, 150), (440, 136), (462, 150)], 7, "#8a8d92", smooth=True)
    c.line([(448, 140), (470, 158)], 10, "#2a1a10")
    c.ring(300, 334, 25, 5, "#3a3c40")
    c.line([(300, 334), (322, 372)], 6, "#3a3c40")
    c.box(308, 370, 340, 378, "#1b1c20")
    return c


def _red_car() -> Canvas:
    c = Canvas(Fade("#7ab8e8", "#e6f2f8"), seed=33)
    c.blob(
        [(-60, 300), (120, 236), (300, 290), (480, 230), (700, 290), (700, 360), (-60, 360)],
        Fade("#7aa85a", "#5a8a42"),
        grain=0.08,
        blur=2,
    )
    c.box(0, 330, 640, 480, Fade("#75787d", "#4b4d52"), grain=0.1)
    for i in range(5):
        c.polygon([(i * 150 - 40, 446), (i * 150 + 50, 446), (i * 150 + 46, 456), (i * 150 - 46, 456)], "#f2f0e2")
    c.ellipse(325, 408, 250, 15, "#18181c", alpha=0.65, blur=7)
    c.blob([(196, 276), (250, 196), (330, 182), (410, 196), (462, 276)], Fade("#d9302a", "#a5161a"), shadow=3)
    c.blob([(222, 270), (262, 208), (322, 200), (322, 272)], Fade("#bfe0f0", "#6d97ae"))
    c.blob([(338, 200), (398, 210), (438, 272), (338, 272)], Fade("#bfe0f0", "#6d97ae"))
    c.blob(
        [(82, 330), (98, 282), (200, 262), (330, 258), (460, 264), (552, 290), (566, 344), (540, 380), (100, 380)],
        Fade("#f24a40", "#8f0f14"),
        grain=0.02,
        shadow=6,
    )
    c.line([(330, 272), (330, 368)], 2, "#7a0c10")
    c.line([(110, 330), (540, 330)], 3, "#ff8a7f", alpha=0.5)
    c.box(346, 300, 376, 307, "#e8e8ea", round_by=3)
    c.ellipse(548, 312, 14, 16, Ball("#fffbe0", "#e8c95a"))
    c.ellipse(94, 312, 9, 15, "#7a0a0a")
    for x in (184, 462):
        c.disc(x, 376, 50, "#17181b")
        c.disc(x, 376, 28, Ball("#e6e8ea", "#7a7d82"))
        for i in range(5):
            a = math.radians(i * 72)
            c.line([(x, 376), (x + 24 * math.cos(a), 376 + 24 * math.sin(a))], 5, "#8f9297")
    return c


def _candle_and_book() -> Canvas:
    c = Canvas(Ball("#6b4a2c", "#120c0a", x=0.72, y=0.3, reach=0.7), seed=34, grain=0.04)
    c.box(0, 350, 640, 480, Fade("#5f3c20", "#2a180c"), grain=0.1)
    c.polygon([(90, 424), (150, 330), (300, 346), (300, 446)], Fade("#fff3d8", "#cdb88f", across=True), shadow=8)
    c.polygon([(300, 446), (300, 346), (440, 330), (520, 424)], Fade("#cdb88f", "#fff0cf", across=True), shadow=8)
    for i in range(7):
        t = i / 7
        c.line([(154 - t * 44, 346 + t * 74), (286, 360 + t * 76)], 2, "#5a4a3a", alpha=0.7)
        c.line([(314, 360 + t * 76), (438 + t * 58, 346 + t * 74)], 2, "#5a4a3a", alpha=0.7)
    c.ellipse(480, 330, 66, 18, Ball("#e0b85a", "#7a5518"), shadow=6)
    c.box(452, 170, 508, 328, Fade("#fff6dd", "#cbb58a", across=True), round_by=8)
    c.disc(480, 112, 110, "#ffb84a", alpha=0.35, blur=36)
    c.line([(480, 174), (480, 154)], 3, "#22180f")
    c.blob([(480, 72), (502, 128), (480, 158), (458, 128)], Fade("#fff9c9", "#ff8c1a"), blur=1.5)
    c.ellipse(480, 136, 9, 17, "#fffdf0", blur=3)
    return c


PICTURES = {
    "bicycle": _bicycle,
    "burning-candle-and-book": _candle_and_book,
    "chess-board": _chess_board,
    "football": _football,
    "guitar": _guitar,
    "hot-air-balloon": _hot_air_balloon,
    "red-car": _red_car,
    "traffic-light": _traffic_light,
    "wall-clock": _wall_clock,
}
"""File name to painter."""
