"""What the starter model is trained and measured on, read from the folders of third-party data.

Training sees Flickr8k *train* with both caption languages, and the names of the image backbone's own classes.
Everything else here is for measuring only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAMES = Path(__file__).parent / "names"

_ENGLISH = ("{}", "a {}", "a photo of a {}", "there is a {} in the picture")
_CHINESE = ("{}", "{}的照片", "一张{}的图片")


@dataclass(frozen=True, slots=True)
class Captioned:
    """Photos with captions: `english[i]` and `chinese[i]` belong to `paths[i]`."""

    paths: list[Path]
    english: list[list[str]]
    chinese: list[list[str]]

    def pairs(self, captions: list[list[str]]) -> tuple[list[str], list[int]]:
        """Each caption, and the row of its photo."""
        return [c for group in captions for c in group], [i for i, group in enumerate(captions) for _ in group]


def read_captioned(folder: Path, split: str | None = None) -> Captioned:
    """Read `captions.json` beside an `images/` folder; `split` selects by the field of that name."""
    entries = json.loads((folder / "captions.json").read_text("utf-8"))
    chosen = [e for e in entries if split is None or e["split"] == split]
    return Captioned(
        [folder / "images" / e["file_name"] for e in chosen],
        [e["captions"] for e in chosen],
        [e.get("captions_zh", []) for e in chosen],
    )


@dataclass(frozen=True, slots=True)
class Labelled:
    """Photos with one class each, for zero-shot classification."""

    paths: list[Path]
    labels: NDArray[np.int64]
    names: list[str]


def read_class_folders(folder: Path) -> Labelled:
    """Photos in one folder per class; a folder's name, underscores as spaces, is the class name."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    paths = [sorted(c.glob("*.jpg")) for c in classes]
    labels = np.repeat(np.arange(len(classes)), [len(group) for group in paths])
    return Labelled([p for group in paths for p in group], labels, [c.name.replace("_", " ") for c in classes])


def class_texts(labels: Path) -> list[dict[str, list[str]]]:
    """Texts that name each of the 1,000 ImageNet classes, by language.

    Args:
        labels: the backbone's label file: `background`, then one line of English synonyms per class.
    """
    english = labels.read_text("utf-8").splitlines()[1:]
    chinese = (_NAMES / "imagenet_zh.txt").read_text("utf-8").splitlines()
    others = [line.split("\t") for line in (_NAMES / "imagenet_de_fr_es_ja.tsv").read_text("utf-8").splitlines()]
    texts = []
    for line, zh, other in zip(english, chinese, others, strict=True):
        synonyms = [re.sub(r"\s+", " ", name).strip() for name in line.split(",")][:3]
        texts.append(
            {
                "en": [form.format(name) for name in synonyms for form in _ENGLISH],
                "zh": [form.format(name) for name in zh.split("|") for form in _CHINESE],
                "other": other,
            }
        )
    return texts
