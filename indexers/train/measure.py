"""The figures a starter model is chosen by: Flickr8k val, coco_dev, Caltech-101 zero-shot, other languages."""

from __future__ import annotations

import numpy as np
import torch

from mmsearch.indexers.train import data
from mmsearch.indexers.train.figures import LANGUAGES, SENTENCES, retrieval_figures
from mmsearch.indexers.train.model import Student
from mmsearch.indexers.train.prepare import Preparation
from mmsearch.retrieval.evaluate import overlap_at_k, zero_shot_accuracy


class Measurement:
    """Computes the figures for a student whose image features are cached.

    Args:
        captions: captions per photo of Flickr8k val used as queries (5 = all; fewer is quicker).
    """

    def __init__(self, preparation: Preparation, captions: int = 5) -> None:
        folder = preparation.sources.data
        self.val = data.read_captioned(folder / "flickr8k", "val")
        self.coco = data.read_captioned(folder / "coco_dev")
        self.caltech = data.read_class_folders(folder / "caltech101_train")
        self.features = {
            "val": preparation.features("val", self.val.paths),
            "coco": preparation.features("coco", self.coco.paths),
            "caltech": preparation.features("caltech", self.caltech.paths),
        }
        groups = {
            "en": self.val.pairs([c[:captions] for c in self.val.english]),
            "zh": self.val.pairs([c[:captions] for c in self.val.chinese]),
            "coco": self.coco.pairs(self.coco.english),
            "caltech": (self.caltech.names, []),
        }
        for column, language in enumerate(LANGUAGES):
            groups[f"ten-{language}"] = ([row[column] for row in SENTENCES], [])
        self.texts = {name: preparation.cached(f"{name}-{captions}", texts) for name, (texts, _) in groups.items()}
        self.photos = {name: photos for name, (_, photos) in groups.items()}

    @torch.inference_mode()
    def __call__(self, student: Student) -> dict[str, float]:
        """Every figure by name, rounded to four places."""
        student.eval()
        images = {k: student.image_head(torch.from_numpy(v)).numpy() for k, v in self.features.items()}
        texts = {k: student.embed_texts(v, np.arange(len(v.starts) - 1)).numpy() for k, v in self.texts.items()}
        figures: dict[str, float] = {}
        for name, space in (("en", "val"), ("zh", "val"), ("coco", "coco")):
            figures |= retrieval_figures(name, texts[name], images[space], self.photos[name])
        figures["caltech top-1"] = zero_shot_accuracy(images["caltech"], texts["caltech"], self.caltech.labels)
        for language in LANGUAGES[1:]:
            figures[f"top-10 shared {language}"] = overlap_at_k(
                texts["ten-en"], texts[f"ten-{language}"], images["val"], 10
            )
        shared = [figures[f"top-10 shared {language}"] for language in LANGUAGES[1:]]
        figures["top-10 shared"] = float(np.mean(shared))
        return {name: round(value, 4) for name, value in figures.items()}
