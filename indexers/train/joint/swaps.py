"""Captions that differ from another in one thing, and do not describe its picture any more.

A word is exchanged for one of its kind (attributes, objects, relations), or two words of a kind that are both in the
caption change places. Whoever reads a caption as a bag of words cannot tell the last from the caption.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["attribute", "object", "relation", "order"]

_ENGLISH: dict[Kind, tuple[str, ...]] = {
    "attribute": (
        "red blue green yellow black white brown orange pink purple gray",
        "young old",
        "big small",
        "large tiny",
        "tall short",
        "one two three four five",
        "long-haired short-haired",
        "wet dry",
        "sunny snowy rainy",
    ),
    "object": (
        "man woman boy girl",
        "men women boys girls",
        "dog cat horse bird cow",
        "dogs cats horses birds cows",
        "beach street field park mountain forest pool river desert",
        "grass snow sand water mud",
        "shirt jacket dress hat coat sweater",
        "ball frisbee stick toy bone",
        "bike motorcycle skateboard scooter snowboard surfboard",
        "car truck boat bus train",
        "soccer football basketball baseball tennis hockey",
        "guitar drums piano",
    ),
    "relation": (
        "behind beside above under",
        "over through",
        "into out-of",
        "inside outside",
        "left right",
        "up down",
        "sitting standing running jumping sleeping lying",
        "sits stands runs jumps sleeps lies",
        "holding throwing catching kicking",
        "smiling crying laughing",
        "with without",
    ),
}
_CHINESE: dict[Kind, tuple[str, ...]] = {
    "attribute": (
        "红色 蓝色 绿色 黄色 黑色 白色 棕色 橙色 粉色 紫色 灰色",
        "年轻 年老",
        "一个 两个 三个 四个",
        "一只 两只 三只 四只",
    ),
    "object": (
        "男人 女人 男孩 女孩",
        "男子 女子",
        "狗 猫 马 鸟 牛",
        "海滩 街道 田野 公园 森林 泳池 河流 沙漠",
        "草地 雪地 沙滩",
        "衬衫 夹克 裙子 帽子 外套 毛衣",
        "自行车 摩托车 滑板 滑雪板 冲浪板",
        "汽车 卡车 公共汽车 火车",
        "足球 橄榄球 篮球 棒球 网球",
    ),
    "relation": (
        "前面 后面 旁边",
        "上面 下面",
        "左边 右边",
        "坐在 站在 躺在",
        "跑 跳 走",
        "穿过 越过",
    ),
}


@dataclass(frozen=True, slots=True)
class Swap:
    """A changed caption, and what kind of thing was changed."""

    kind: Kind
    text: str


def swaps(caption: str, language: str, seed: int = 0) -> list[Swap]:
    """At most one changed caption of each kind, the same ones for the same caption and seed.

    Args:
        caption: the true one.
        language: `en` or `zh`; others have no words here.
        seed: for other choices.
    """
    table = {"en": _ENGLISH, "zh": _CHINESE}.get(language)
    if table is None:
        return []
    rng = np.random.default_rng([seed, zlib.crc32(caption.encode())])
    found = [(kind, group, _places(caption, group, language)) for kind, groups in table.items() for group in groups]
    found = [entry for entry in found if entry[2]]
    made = []
    for kind in table:
        mine = [entry for entry in found if entry[0] == kind]
        if mine:
            _, group, places = mine[rng.integers(len(mine))]
            place = places[rng.integers(len(places))]
            present = {word for _, _, word in places}
            others = [word for word in group.split() if word not in present and word.replace("-", " ") != place[2]]
            if others:
                other = others[rng.integers(len(others))].replace("-", " ")
                made.append(Swap(kind, _put(caption, [(place, other)])))
    pairs = [places for _, _, places in found if len({word for _, _, word in places}) > 1]
    if pairs:
        places = pairs[rng.integers(len(pairs))]
        first = places[rng.integers(len(places))]
        second = next(place for place in places if place[2] != first[2])
        made.append(Swap("order", _put(caption, [(first, second[2]), (second, first[2])])))
    return made


_Place = tuple[int, int, str]


def _places(caption: str, group: str, language: str) -> list[_Place]:
    """Where words of a group are: begin, end, the word in lower case."""
    words = sorted((re.escape(word.replace("-", " ")) for word in group.split()), key=len, reverse=True)
    pattern = rf"\b(?:{'|'.join(words)})\b" if language == "en" else "|".join(words)
    return [(m.start(), m.end(), m.group().lower()) for m in re.finditer(pattern, caption, re.IGNORECASE)]


def _put(caption: str, changes: list[tuple[_Place, str]]) -> str:
    for (begin, end, _), word in sorted(changes, reverse=True):
        new = word.capitalize() if caption[begin].isupper() else word
        article = re.search(r"\b([Aa])n? $", caption[:begin])
        before = caption[:begin] if article is None else caption[: article.start()]
        if article is not None:  # a wrong article would tell which caption was changed
            before += f"{article.group(1)}{'n' if word[0] in 'aeio' else ''} "
        caption = before + new + caption[end:]
    return caption
