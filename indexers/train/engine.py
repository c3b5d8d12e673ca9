"""The engine of all training: one update after another, its schedule, checkpoints, and when to stop.

What is trained is a `Task`: it gives the losses of the next batch and measures the model. The engine does the rest,
for the recipe of the bundled model (`loop.py`) and for fine-tuning (`finetune.py`) alike.

A checkpoint holds all that the next step depends on, so that a run that was interrupted ends as one that was not,
bit for bit on a processor. It is written beside the older one and renamed: a full disk or a crash leaves the older.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from mmsearch.indexers.interrupt import Interrupt, Stopped
from mmsearch.retrieval.errors import TrainingFailed, UsageError

log = logging.getLogger(__name__)

Ending = Literal["done", "early", "diverged", "interrupted"]
State = dict[str, torch.Tensor]


class Task(Protocol):
    """What an engine trains."""

    @property
    def model(self) -> nn.Module:
        """Its parameters that require gradients are trained."""

    def losses(self, step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """The losses of one batch, by name; their sum is what is minimised.

        Args:
            step: updates made so far.
            rng: the engine's own random numbers; their state is in its checkpoints.
        """

    def after_update(self) -> None:
        """Called when the weights have changed."""

    def measure(self) -> tuple[float, dict[str, float]]:
        """How good the model is, as a score (higher is better) and as figures to show."""

    def state(self) -> dict[str, Any]:
        """What the next batch depends on beside the step and `rng`: tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over a `state`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast.

    Attributes:
        steps: updates in all; the learning rate falls from its peak to 0 over them, by a cosine.
        warmup: updates in which it rises first.
        seed: of every random number.
        betas: of AdamW.
        clip: the largest norm of all gradients together.
        measure_every: updates between two measurements; 0 measures only by the clock.
        patience: measurements without a better score after which a run ends; None never ends it early. With a
            patience the weights of the best measurement are kept, and are the result.
        checkpoint_seconds: between two checkpoints.
        settings: what a run that goes on must have in common with the checkpoint, by name.
    """

    steps: int
    warmup: int
    seed: int
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    measure_every: int = 0
    patience: int | None = None
    checkpoint_seconds: float = 600.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step, steps: updates made, and wanted.
        rate: updates per second since the run began or went on.
        losses: running means by name.
        figures: of the last measurement; empty before.
    """

    step: int
    steps: int
    rate: float
    losses: Mapping[str, float]
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        ending: `done`, `early` (no better for a while), `diverged` (a loss or gradient was no number) or
            `interrupted`.
        step: updates made.
        best_step: the update whose weights the model has now.
        seconds: of this run, without what was done before an interruption.
    """

    ending: Ending
    step: int
    best_step: int
    seconds: float


def trained_state(model: nn.Module) -> State:
    """What training changes of a model: its state without frozen parameters. The tensors are the model's own."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: State) -> None:
    """Takes over a `trained_state`."""
    left = model.load_state_dict(state, strict=False)
    missing = set(left.missing_keys) & set(trained_state(model))
    if missing or left.unexpected_keys:
        raise UsageError(f"a checkpoint of another model: {', '.join(sorted([*missing, *left.unexpected_keys])[:3])}")


def _copied(state: State) -> State:
    return {name: value.detach().cpu().clone() for name, value in state.items()}


class Engine:
    """Trains a task by a plan. `step` makes one update; `run` makes all.

    Args:
        task: what is trained.
        plan: how.
        groups: parameters with their `peak` (learning rate) and `weight_decay`, as AdamW takes them.

    Attributes:
        step_number: updates made so far.
        curve: what was seen of losses and figures: {"step", "lr", losses...} and {"step", figures...}.
    """

    def __init__(self, task: Task, plan: Plan, groups: list[dict[str, Any]]) -> None:
        self.task, self.plan = task, plan
        self.rng = np.random.default_rng(plan.seed)
        torch.manual_seed(plan.seed)
        # fused: one pass over the weights; a tenth of a step's time goes into the others on a processor
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=plan.betas, fused=True)
        self.step_number = 0
        self.curve: list[dict[str, float]] = []
        self._means: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._best: State = {}
        self._best_score = -math.inf
        self._best_step = 0
        self._worse = 0

    def run(self, checkpoint: Path, observe: Callable[[Progress], None] | None = None) -> Outcome:
        """Trains to the last step; goes on from `checkpoint` where it exists.

        Ctrl-C ends it after the step in hand, with a checkpoint. A loss or a gradient that is no number ends it
        before it reaches the weights: they stay those before that step, or with a patience the best measured.

        Raises:
            UsageError: the checkpoint is of another model or other settings.
            TrainingFailed: a checkpoint cannot be written or read.
        """
        if checkpoint.exists():
            self.restore(checkpoint)
        began, first = time.monotonic(), self.step_number
        ending: Ending = "done"
        with Interrupt() as interrupt:
            try:
                ending = self._steps(checkpoint, observe, interrupt)
            except Stopped:
                ending = "interrupted"
        if ending != "interrupted" and self._best:
            load_trained(self.task.model, self._best)
        else:
            self._best_step = self.step_number
        if ending != "diverged":
            self.save(checkpoint)
        log.info("%s after %d steps, %d of them now", ending, self.step_number, self.step_number - first)
        return Outcome(ending, self.step_number, self._best_step, time.monotonic() - began)

    def _steps(self, checkpoint: Path, observe: Callable[[Progress], None] | None, interrupt: Interrupt) -> Ending:
        plan = self.plan
        saved = began = time.monotonic()
        first = self.step_number
        if not self._best and plan.patience is not None:
            self._measure()  # the start counts too: training that only harms ends where it began
        while self.step_number < plan.steps:
            if plan.patience is not None and self._worse >= plan.patience:
                return "early"
            interrupt.check()
            losses = self.step()
            if losses is None:
                return "diverged"
            pace = (self.step_number - first) / (time.monotonic() - began)
            if self.step_number % 20 == 0 or self.step_number == plan.steps:
                shown = "  ".join(f"{name} {value:.3f}" for name, value in self._means.items())
                log.info("step %d/%d  %.2f steps/s  %s", self.step_number, plan.steps, pace, shown)
            overdue = time.monotonic() - saved > plan.checkpoint_seconds
            if self._measuring():
                self._measure()
            elif overdue and not plan.measure_every:
                self._measure()
            if overdue:
                self.save(checkpoint)
                saved = time.monotonic()
            if observe is not None:
                observe(Progress(self.step_number, plan.steps, pace, dict(self._means), dict(self._figures)))
        return "done"

    def _measuring(self) -> bool:
        every = self.plan.measure_every
        return bool(every) and (self.step_number % every == 0 or self.step_number == self.plan.steps)

    def step(self) -> dict[str, float] | None:
        """One batch, one update; the losses by name. None if one of them, or a gradient, is no number."""
        share = self._schedule()
        model = self.task.model
        model.train()
        losses = self.task.losses(self.step_number, self.rng)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.plan.clip)
        if not bool(torch.isfinite(total.detach() + norm)):
            self.optimiser.zero_grad(set_to_none=True)
            log.warning(
                "step %d: the loss is %s, its gradient %s", self.step_number, float(total.detach()), float(norm)
            )
            return None
        self.optimiser.step()
        self.task.after_update()
        self.step_number += 1
        values = {name: float(value.detach()) for name, value in losses.items()}
        for name, value in values.items():
            self._means[name] = self._means.get(name, value) * 0.95 + value * 0.05
        self.curve.append({"step": self.step_number, "lr": share * self._peak(), **values})
        return values

    def _peak(self) -> float:
        return float(max(group["peak"] for group in self.optimiser.param_groups))

    def _measure(self) -> None:
        score, figures = self.task.measure()
        self._figures = figures
        self.curve.append({"step": self.step_number, **figures})
        log.info("step %d  %s", self.step_number, figures)
        if self.plan.patience is None:
            return
        if score > self._best_score:
            self._best, self._best_score = _copied(trained_state(self.task.model)), score
            self._best_step, self._worse = self.step_number, 0
        else:
            self._worse += 1

    def _schedule(self) -> float:
        """Sets the learning rates of the next step; the share of their peaks."""
        plan = self.plan
        if self.step_number < plan.warmup:
            share = (self.step_number + 1) / plan.warmup
        else:
            share = 0.5 * (1 + math.cos(math.pi * (self.step_number - plan.warmup) / (plan.steps - plan.warmup)))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        return share

    def save(self, path: Path) -> None:
        """Writes everything that the next step depends on; the old checkpoint lives until the new one is whole.

        Raises:
            TrainingFailed: it cannot be written; the old one is as it was.
        """
        state = {
            "settings": dict(self.plan.settings),
            "model": trained_state(self.task.model),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step_number,
            "rng": self.rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "curve": self.curve,
            "means": self._means,
            "figures": self._figures,
            "best": (self._best, self._best_score, self._best_step, self._worse),
            "task": self.task.state(),
        }
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where its archive cannot be written
            temporary.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else "it cannot be written"
            older = "; the one before is whole" if path.exists() else ""
            raise TrainingFailed(f"no checkpoint at {path}: {reason}{older}. Make room and run it again") from error

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            UsageError: it is of another model or other settings.
            TrainingFailed: it cannot be read.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes of itself
            raise TrainingFailed(f"{path} cannot be read; remove it to begin anew") from error
        changed = [
            f"{name} was {state['settings'].get(name)!r} and is {value!r}"
            for name, value in self.plan.settings.items()
            if state["settings"].get(name) != value
        ]
        if changed:
            raise UsageError(
                f"{path.parent} holds a run with other settings ({'; '.join(changed)}); "
                "go on with the same ones, or name another folder"
            )
        load_trained(self.task.model, state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_number = state["step"]
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and len(state["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.curve, self._means, self._figures = state["curve"], state["means"], state["figures"]
        self._best, self._best_score, self._best_step, self._worse = state["best"]
        self.task.restore(state["task"])
        log.info("resumed at step %d from %s", self.step_number, path)
