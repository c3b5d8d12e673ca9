"""What fine-tuning is asked for, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmsearch.indexers.train.engine import Ending
from mmsearch.indexers.train.parts import How
from mmsearch.indexers.train.tuning import Figures
from mmsearch.retrieval.errors import UsageError

Loss = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a model is fine-tuned. None means: what suits the mode, the model or the machine.

    Attributes:
        how: `full` (all layers; the table of words stays), `last` (the last blocks of both towers and the
            projections) or `probe` (a linear map after each tower, learned on embeddings that are computed once).
        blocks: of each tower, for `last`.
        epochs: times that every picture is seen.
        steps: updates in all, instead of `epochs`.
        batch_size: pairs in a batch; each is told apart from all others of it.
        lr: peak of the learning rate.
        weight_decay: of matrices.
        loss: `softmax` (CLIP) or `sigmoid` (SigLIP); by default that with which the model was made.
        hard_negatives: pictures that the model mixes up with each, put into its batch; 0 for none. Those of the first
            epoch come out of the vectors of the index, where it is one of the same model.
        holdout: share of the pictures that is measured with and never learned from; 0 for none.
        patience: epochs without a better measurement after which training ends.
        average: share of the tuned weights in the result, the rest are the base's; by default the smallest of tenths
            with 95 % of what the best of them gains on the held-out part, or a half without one.
        mirror: also show pictures mirrored.
        seed: of everything random.
    """

    how: How = "full"
    blocks: int = 2
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float = 0.05
    loss: Loss | None = None
    hard_negatives: int = 0
    holdout: float = 0.1
    patience: int = 3
    average: float | None = None
    mirror: bool = False
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError where a value cannot be meant."""
        for name in ("blocks", "epochs", "steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, not {value}")
        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps both say how long: give one of them")
        if self.batch_size is not None and self.batch_size < 2:
            raise UsageError(f"a batch needs at least 2 pairs to tell apart, not {self.batch_size}")
        if self.hard_negatives < 0:
            raise UsageError(f"--hard-negatives must be 0 or more, not {self.hard_negatives}")
        if not 0 <= self.holdout < 1:
            raise UsageError(f"--holdout is a share from 0 to below 1, not {self.holdout}")
        if self.average is not None and not 0 < self.average <= 1:
            raise UsageError(f"--average is a share above 0 and up to 1 (the tuned weights alone), not {self.average}")
        if self.lr is not None and not 0 < self.lr < 1:
            raise UsageError(f"--lr must be above 0 and below 1, not {self.lr}")


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What came out of fine-tuning.

    Attributes:
        model: `local-dir:FOLDER`, what `--model` takes; None if the run was interrupted.
        folder: of the result.
        identity: of the result; None if the run was interrupted.
        base, base_identity: the model that it was made from.
        how, loss: as in `Tuning`.
        pictures, captions: of the training part.
        held_out: pictures of the held-out part.
        ending: how training ended, as in `engine.Outcome`.
        steps, best_step: updates made, and the one whose weights were taken.
        average: share of the tuned weights.
        before, after: figures on the held-out part; empty without one. `after` is of the folder, loaded anew.
        seconds, rate: of training, and updates per second; None if there were none to make.
        notices: what was left out, what went wrong, for a person.
    """

    model: str | None
    folder: Path
    identity: str | None
    base: str
    base_identity: str
    how: How
    loss: Loss
    pictures: int
    captions: int
    held_out: int
    ending: Ending
    steps: int
    best_step: int
    average: float
    before: Figures
    after: Figures
    seconds: float
    rate: float | None
    notices: tuple[str, ...]
