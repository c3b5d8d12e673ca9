"""The engine of training on a toy: checkpoints, early stopping, losses that are no number, full disks, Ctrl-C."""

from __future__ import annotations

import math
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmsearch.indexers.train.engine import Engine, Plan, Progress
from mmsearch.retrieval.errors import TrainingFailed, UsageError


class Toy:
    """Fits a line through noise with dropout, so that every random number counts."""

    def __init__(self, *, bad_step: int = -1, scores: list[float] | None = None) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.bad_step, self.scores, self.measured, self.updates = bad_step, scores, 0, 0

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(rng.normal(size=(6, 4)).astype(np.float32))
        loss = (self.model(x)[:, 0] - x.sum(1)).square().mean()
        return {"fit": loss * (math.nan if step == self.bad_step else 1.0)}

    def after_update(self) -> None:
        self.updates += 1

    def measure(self) -> tuple[float, dict[str, float]]:
        self.measured += 1
        score = self.scores[self.measured - 1] if self.scores else float(self.measured)
        return score, {"score": score}

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "measured": self.measured}

    def restore(self, state: dict[str, Any]) -> None:
        self.updates, self.measured = state["updates"], state["measured"]


def engine(toy: Toy, **changes: Any) -> Engine:
    plan = Plan(**{"steps": 12, "warmup": 2, "seed": 3, **changes})
    return Engine(toy, plan, [{"params": list(toy.model.parameters()), "peak": 0.05, "weight_decay": 0.01}])


def weights(toy: Toy) -> list[Any]:
    return [value.clone() for value in toy.model.state_dict().values()]


def equal(a: list[Any], b: list[Any]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_interrupted_run_ends_as_an_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = Toy(), Toy()
    unbroken = engine(whole, measure_every=4, patience=9)
    assert unbroken.run(tmp_path / "whole.pt").ending == "done"

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    first = engine(broken, measure_every=4, patience=9).run(tmp_path / "broken.pt", stop)
    assert (first.ending, first.step) == ("interrupted", 5)
    again = Toy()
    second = engine(again, measure_every=4, patience=9)
    assert second.run(tmp_path / "broken.pt").step == 12
    assert equal(weights(whole), weights(again))
    assert not equal(weights(whole), weights(broken))
    assert second.curve == unbroken.curve
    assert (again.updates, again.measured) == (whole.updates, whole.measured) == (12, 4)


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    toy = Toy()
    engine(toy).run(tmp_path / "c.pt")
    again = Toy()
    outcome = engine(again).run(tmp_path / "c.pt", lambda progress: pytest.fail("a step too many"))
    assert (outcome.ending, outcome.step) == ("done", 12)
    assert equal(weights(toy), weights(again))


def test_it_ends_early_with_the_best_weights(tmp_path: Path) -> None:
    toy = Toy(scores=[0.1, 0.5, 0.4, 0.3, 0.9])
    at: dict[int, list[Any]] = {}
    outcome = engine(toy, measure_every=2, patience=2).run(
        tmp_path / "c.pt", lambda progress: at.update({progress.step: weights(toy)})
    )
    assert (outcome.ending, outcome.step, outcome.best_step) == ("early", 6, 2)
    assert equal(weights(toy), at[2])
    again = Toy()
    assert engine(again, measure_every=2, patience=2).run(tmp_path / "c.pt").ending == "early"
    assert equal(weights(again), at[2])


@pytest.mark.parametrize(("patience", "kept"), [(None, 5), (9, 4)])
def test_a_loss_that_is_no_number_never_reaches_the_weights(tmp_path: Path, patience: int | None, kept: int) -> None:
    toy = Toy(bad_step=5)
    at: dict[int, list[Any]] = {}
    outcome = engine(toy, measure_every=4, patience=patience).run(
        tmp_path / "c.pt", lambda progress: at.update({progress.step: weights(toy)})
    )
    assert (outcome.ending, outcome.step, outcome.best_step) == ("diverged", 5, kept)
    assert equal(weights(toy), at[kept])


@pytest.mark.parametrize("whole_file", [True, False])
def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_file: bool
) -> None:
    running = engine(Toy())
    running.step()
    running.save(tmp_path / "c.pt")
    before = (tmp_path / "c.pt").read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    running.step()
    if whole_file:
        monkeypatch.setattr("os.fsync", full)
    else:
        monkeypatch.setattr("torch.save", full)
    with pytest.raises(TrainingFailed, match=r"No space left on device; the one before is whole"):
        running.save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    fresh = engine(Toy())
    fresh.restore(tmp_path / "c.pt")
    assert fresh.step_number == 1


def test_a_write_that_the_system_refuses_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """As above with no part replaced: a file may not grow beyond a limit, which fails inside of torch's writer."""
    running = engine(Toy())
    running.save(tmp_path / "c.pt")
    before = (tmp_path / "c.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    running.step()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(TrainingFailed, match=r"(?<!it cannot be written); the one before is whole\. Make room"):
            running.save(tmp_path / "c.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_of_other_settings_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    engine(Toy(), settings={"lr": 0.1}).save(tmp_path / "c.pt")
    with pytest.raises(UsageError, match=r"lr was 0\.1 and is 0\.2"):
        engine(Toy(), settings={"lr": 0.2}).restore(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingFailed, match="remove it to begin anew"):
        engine(Toy()).restore(tmp_path / "c.pt")


def test_the_rate_rises_then_falls_and_gradients_are_clipped() -> None:
    toy = Toy()
    running = engine(toy, clip=0.001)
    rates = []
    while running.step_number < 12:
        assert running.step() is not None
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in toy.model.parameters() if p.grad is not None))
        assert norm <= 0.0011
        rates.append(running.optimiser.param_groups[0]["lr"])
    assert rates[:3] == pytest.approx([0.025, 0.05, 0.05])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert [row["step"] for row in running.curve] == list(range(1, 13))
