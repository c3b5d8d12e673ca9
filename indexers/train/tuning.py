"""Fine-tuning as tasks of the engine: whole towers on random views, or linear maps on embeddings that are kept."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmsearch.indexers.train.contrast import sigmoid_loss, softmax_loss
from mmsearch.indexers.train.mining import epoch_order, neighbours
from mmsearch.indexers.train.pairs import Pairs
from mmsearch.indexers.train.parts import Probe, still_norms
from mmsearch.indexers.train.views import Views
from mmsearch.retrieval.encoders.open_clip import OpenClipEncoder
from mmsearch.retrieval.evaluate import first_ranks, success_at_k

Rows = NDArray[np.float32]
Figures = dict[str, dict[str, float]]

_AHEAD = 3
_CHUNK = 256
_HIGHEST_SCALE = math.log(100.0)


class Batch(NamedTuple):
    """Rows of `Pairs`: pictures, a caption for each, and where one describes another's picture too."""

    pictures: NDArray[np.int64]
    texts: NDArray[np.int64]
    same: NDArray[np.bool_]


class Batches:
    """Which pairs a step learns from: a function of the seed, the step and the mined neighbours alone.

    Args:
        pairs: the training part is gone through once an epoch, in whole batches.
        size: pairs in a batch.
        hard: hard negatives that follow a picture into its batch.
        seed: of the order and of the choice among captions.

    Attributes:
        per_epoch: steps of an epoch.
        near: `mining.neighbours` of the training part, as hard negatives need them.
    """

    def __init__(self, pairs: Pairs, size: int, hard: int, seed: int) -> None:
        self.pairs, self.size, self.hard, self.seed = pairs, min(size, len(pairs.train)), hard, seed
        self.per_epoch = max(1, len(pairs.train) // self.size)
        self.near: NDArray[np.int64] | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._lock = threading.Lock()

    def at(self, step: int) -> Batch:
        """The batch of a step."""
        epoch, place = divmod(step, self.per_epoch)
        with self._lock:
            if self._order is None or self._order[0] != epoch:
                rng = np.random.default_rng([self.seed, 0, epoch])
                self._order = (epoch, epoch_order(len(self.pairs.train), self.near, self.hard, rng))
            order = self._order[1]
        pictures = self.pairs.train[order[place * self.size : (place + 1) * self.size]]
        rng = np.random.default_rng([self.seed, 1, step])
        texts = np.array([rng.choice(self.pairs.captions[p]) for p in pictures])
        same = self.pairs.describes(pictures, texts)
        np.fill_diagonal(same, False)
        return Batch(pictures, texts, same)

    def remine(self, near: NDArray[np.int64] | None) -> None:
        """Takes neighbours for the epochs to come."""
        with self._lock:
            self.near, self._order = near, None


def figures(images: Rows, texts: Rows, pairs: Pairs, pictures: NDArray[np.int64]) -> Figures:
    """success@1, success@10 and MRR of the captions of `pictures` against these pictures, both ways.

    Captions that are the same text are one query, which every picture with it answers.

    Args:
        images: (n, dim) embeddings of `pictures`.
        texts: (m, dim) embeddings of `captions_of(pairs, pictures)`.
        pairs: what belongs together.
        pictures: (n,) rows of `pairs`.
    """
    relevant = pairs.describes(pictures, captions_of(pairs, pictures))
    found: Figures = {}
    for name, queries, items, answers in (
        ("text_to_image", texts, images, relevant.T),
        ("image_to_text", images, texts, relevant),
    ):
        ranks = first_ranks(queries, items, [np.flatnonzero(row).tolist() for row in answers])
        found[name] = {
            "success@1": success_at_k(ranks, 1),
            "success@10": success_at_k(ranks, 10),
            "mrr": float(np.mean(1 / ranks)),
        }
    return found


def score(measured: Figures) -> float:
    """The one number that early stopping and averaging go by: the mean of MRR both ways."""
    return sum(one["mrr"] for one in measured.values()) / len(measured)


def captions_of(pairs: Pairs, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the captions of pictures, each once."""
    return np.unique(np.concatenate([pairs.captions[p] for p in pictures]))


class Embedder:
    """Embeds rows of `Pairs` with an encoder as indexing does."""

    def __init__(self, encoder: OpenClipEncoder, pairs: Pairs, views: Views) -> None:
        self.encoder, self.pairs, self.views = encoder, pairs, views

    def images(self, pictures: NDArray[np.int64], progress: Callable[[int, int], None] | None = None) -> Rows:
        """(n, dim) rows of length 1."""
        self.encoder.module.eval()
        parts = []
        with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
            for start in range(0, len(pictures), _CHUNK):
                chunk = pictures[start : start + _CHUNK]
                arrays = list(pool.map(lambda row: self.encoder.preprocess(self.views.whole(int(row))), chunk))
                parts.append(self.encoder.encode_images(arrays))
                if progress is not None:
                    progress(start + len(chunk), len(pictures))
        return np.concatenate(parts)

    def texts(self, rows: NDArray[np.int64]) -> Rows:
        """(n, dim) rows of length 1."""
        self.encoder.module.eval()
        order = sorted(range(len(rows)), key=lambda i: len(self.pairs.texts[rows[i]]))  # like lengths pad little
        found = self.encoder.encode_texts([self.pairs.texts[rows[i]] for i in order])
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return found[back]

    def figures(self, pictures: NDArray[np.int64]) -> Figures:
        """How well these pictures and their captions find each other."""
        return figures(self.images(pictures), self.texts(captions_of(self.pairs, pictures)), self.pairs, pictures)


def _mined(images: Rows, texts: Rows, batches: Batches) -> NDArray[np.int64]:
    """Neighbours of the training pictures; `texts` are of all captions of theirs."""
    pairs = batches.pairs
    whole = np.zeros((len(pairs.texts), images.shape[1]), np.float32)
    whole[captions_of(pairs, pairs.train)] = texts
    return neighbours(images, whole, pairs, pairs.train, max(8, 4 * batches.hard))


class _Contrastive:
    """What both tasks have in common: hard negatives once an epoch, the loss, the temperature's limit, the score."""

    model: nn.Module

    def __init__(self, batches: Batches, loss: str, device: torch.device) -> None:
        self.batches, self.loss, self.device = batches, loss, device
        self._epoch = -1
        self._limit = max(_HIGHEST_SCALE, float(self._scale().detach().max()))

    def _scale(self) -> torch.Tensor:
        return self.model.get_parameter("logit_scale")

    def _embed_train(self) -> tuple[Rows, Rows]:
        raise NotImplementedError

    def held_figures(self) -> Figures:
        raise NotImplementedError

    def mine(self, step: int) -> None:
        """At the begin of an epoch, finds the hard negatives for it with the weights of that moment."""
        epoch = step // self.batches.per_epoch
        if self.batches.hard and epoch != self._epoch:
            images, texts = self._embed_train()
            self.batches.remine(_mined(images, texts, self.batches))
            self.model.train()
            self._epoch = epoch

    def contrast(self, images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of rows of length 1."""
        logits = self._scale().exp() * images.float() @ texts.float().T
        if self.loss == "sigmoid":
            return {"loss": sigmoid_loss(logits + self.model.get_parameter("logit_bias"), same)}
        return {"loss": softmax_loss(logits, same)}

    def after_update(self) -> None:
        """Keeps the temperature in the range that it was made for."""
        with torch.no_grad():
            self._scale().clamp_(0.0, self._limit)

    def measure(self) -> tuple[float, dict[str, float]]:
        """MRR both ways, and figures to show."""
        found = self.held_figures()
        flat = {f"{way} {name}": value for way, one in found.items() for name, value in one.items()}
        return score(found), flat

    def state(self) -> dict[str, Any]:
        """The hard negatives of the epoch."""
        near = self.batches.near
        return {"epoch": self._epoch, "near": None if near is None else torch.from_numpy(near)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a `state`."""
        self._epoch = state["epoch"]
        self.batches.remine(None if state["near"] is None else state["near"].numpy())


class TowerTask(_Contrastive):
    """Trains the towers themselves. Views are cut ahead of the model, in threads; `close` ends them.

    Args:
        embedder: the encoder whose module is trained, the pairs and the pictures.
        batches: what each step learns from.
        steps: in all; none is prepared beyond.
        loss: `softmax` or `sigmoid`.
        threads: that cut views.
        stored: (n, dim) embeddings of the training pictures by the base, for the hard negatives of the first epoch;
            without them they are computed.
    """

    def __init__(
        self,
        embedder: Embedder,
        batches: Batches,
        steps: int,
        loss: str,
        threads: int = 2,
        stored: Rows | None = None,
    ) -> None:
        self.model, self._stored = embedder.encoder.module, stored
        super().__init__(batches, loss, torch.device(embedder.encoder.device))
        self._embedder, self._steps = embedder, steps
        self._cutters = ThreadPoolExecutor(threads)
        self._feeders = ThreadPoolExecutor(_AHEAD)
        self._ready: dict[int, Future[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
        self._ids: dict[int, torch.Tensor] = {}

    def close(self) -> None:
        """Ends the threads."""
        self._feeders.shutdown(cancel_futures=True)
        self._cutters.shutdown(cancel_futures=True)

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The contrastive loss of the batch of a step."""
        self.mine(step)
        views, tokens, same = (each.to(self.device, non_blocking=True) for each in self.batch(step))
        images = self._embedder.views.normalise(views)
        still_norms(self.model)
        lower: AbstractContextManager[Any] = nullcontext()
        if self.device.type == "cuda":
            lower = torch.autocast("cuda", torch.bfloat16)
        model: Any = self.model
        with lower:
            rows = model.encode_image(images, normalize=True)
            texts = model.encode_text(tokens, normalize=True)
        return self.contrast(rows, texts, same)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views, token ids, and where a caption is no negative, of the batch of a step; those after it are begun."""
        last = self._steps
        if self.batches.hard:  # the next epoch's neighbours are not known yet
            last = min(last, (step // self.batches.per_epoch + 1) * self.batches.per_epoch)
        for ahead in range(step, min(step + _AHEAD, last)):
            if ahead not in self._ready:
                self._ready[ahead] = self._feeders.submit(self._make, ahead)
        return self._ready.pop(step).result()

    def _make(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch = self.batches.at(step)
        seed = self.batches.seed

        def cut(place: int) -> NDArray[np.uint8]:
            rng = np.random.default_rng([seed, 2, step, place])
            return self._embedder.views.view(int(batch.pictures[place]), rng)

        views = torch.from_numpy(np.stack(list(self._cutters.map(cut, range(len(batch.pictures))))))
        made = (views, self._tokens(batch.texts.tolist()), torch.from_numpy(batch.same))
        if self.device.type == "cuda":  # copies from pinned memory do not wait for the steps before
            made = tuple(each.pin_memory() for each in made)  # type: ignore[assignment]
        return made

    def _tokens(self, rows: list[int]) -> torch.Tensor:
        """Ids of captions. Each is cut into tokens once: CLIP's tokenizer is Python, and would hold up the launches."""
        encoder, texts = self._embedder.encoder, self._embedder.pairs.texts
        new = [row for row in dict.fromkeys(rows) if row not in self._ids]
        if new:
            ids = encoder.padded([texts[row] for row in new]).to(torch.int32)
            self._ids.update(zip(new, ids, strict=True))
        found: torch.Tensor = encoder.trimmed(torch.stack([self._ids[row] for row in rows]).long())
        return found

    def _embed_train(self) -> tuple[Rows, Rows]:
        pairs = self.batches.pairs
        known = self._stored if self._epoch < 0 else None  # later the towers are no longer the base's
        images = self._embedder.images(pairs.train) if known is None else known
        return images, self._embedder.texts(captions_of(pairs, pairs.train))

    def held_figures(self) -> Figures:
        """Of the held-out part, with the weights of now."""
        return self._embedder.figures(self.batches.pairs.held)


class ProbeTask(_Contrastive):
    """Trains linear maps on embeddings that are computed once.

    Args:
        probe: what is trained.
        images, texts: (pictures, dim) and (captions, dim) embeddings of all rows of the pairs.
        batches: what each step learns from.
        loss: `softmax` or `sigmoid`.
    """

    def __init__(self, probe: Probe, images: Rows, texts: Rows, batches: Batches, loss: str) -> None:
        self.model: Probe = probe
        super().__init__(batches, loss, torch.device("cpu"))
        self._images, self._texts = torch.from_numpy(images), torch.from_numpy(texts)

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The contrastive loss of the batch of a step."""
        self.mine(step)
        batch = self.batches.at(step)
        images = self.model.embed("image", self._images[torch.from_numpy(batch.pictures)])
        texts = self.model.embed("text", self._texts[torch.from_numpy(batch.texts)])
        return self.contrast(images, texts, torch.from_numpy(batch.same))

    @torch.no_grad()
    def rows(self, pictures: NDArray[np.int64], texts: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Mapped rows, (pictures, dim) and (texts, dim)."""
        return (
            self.model.embed("image", self._images[torch.from_numpy(pictures)]).numpy(),
            self.model.embed("text", self._texts[torch.from_numpy(texts)]).numpy(),
        )

    def _embed_train(self) -> tuple[Rows, Rows]:
        pairs = self.batches.pairs
        return self.rows(pairs.train, captions_of(pairs, pairs.train))

    def held_figures(self) -> Figures:
        """Of the held-out part, with the maps of now."""
        pairs = self.batches.pairs
        return figures(*self.rows(pairs.held, captions_of(pairs, pairs.held)), pairs, pairs.held)
