"""Fine-tuning of open_clip models, the bundled one among them, on pictures with captions.

The flow is `finetune`: the base model, the pairs, training by the engine, averaging with the base, the folder. All
that a run needs to go on lies in `training/` in the folder of its result, and is removed when that is written.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmsearch.indexers.train import saved
from mmsearch.indexers.train.card import model_card
from mmsearch.indexers.train.engine import Ending, Engine, Plan, Progress, State, load_trained, trained_state
from mmsearch.indexers.train.pairs import Pairs, read_pairs, stored_images
from mmsearch.indexers.train.parts import How, Probe, averaged, choose, ends, fold
from mmsearch.indexers.train.settings import Loss, TrainReport, Tuning
from mmsearch.indexers.train.tuning import (
    Batches,
    Embedder,
    ProbeTask,
    TowerTask,
    captions_of,
    score,
)
from mmsearch.indexers.train.views import Views
from mmsearch.retrieval.encoders import cache, starter
from mmsearch.retrieval.encoders.export import export_open_clip
from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.models import load_encoder, resolve
from mmsearch.retrieval.encoders.open_clip import OpenClipEncoder
from mmsearch.retrieval.encoders.presets import AUTO, STARTER
from mmsearch.retrieval.errors import TrainingFailed, UsageError
from mmsearch.retrieval.store.layout import CATALOG
from mmsearch.retrieval.store.reader import Snapshot

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import hub

log = logging.getLogger(__name__)

Stage = Callable[[str, int, int], None]

_EPOCHS: dict[How, int] = {"full": 10, "last": 10, "probe": 50}
_RATES: dict[How, float] = {"full": 1e-5, "last": 5e-5, "probe": 1e-3}
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GAIN_KEPT = 0.95
_RESUME = "training"
_CHECKPOINT_SECONDS = 300.0


@dataclass(slots=True)
class _Run:
    """What belongs together while a model is tuned."""

    tuning: Tuning
    pairs: Pairs
    stored: NDArray[np.float32] | None
    embedder: Embedder
    batches: Batches
    loss: Loss
    steps: int
    checkpoint: Path
    observe: Callable[[Progress], None] | None
    stage: Stage
    curve: list[dict[str, float]] = field(default_factory=list)


def finetune(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = AUTO,
    tuning: Tuning | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    languages: Sequence[str] = (),
    device: str | None = None,
    threads: int | None = None,
    offline: bool = False,
    confirm: hub.Confirm | None = None,
    download: hub.Progress | None = None,
    observe: Callable[[Progress], None] | None = None,
    stage: Stage | None = None,
) -> TrainReport:
    """Fine-tunes a model and writes it to a folder; goes on with a run that was interrupted there.

    Args:
        source: a captions file, a folder with one, or an index whose pictures have captions.
        out: the folder of the result: new, empty, or of an interrupted run of the same settings.
        model: the base; `auto` is an index's own model.
        tuning: how.
        images: folder of the pictures of a captions file.
        split: only pictures of this split of a captions file.
        languages: only captions in these.
        device: as in `load_encoder`.
        threads: that compute, and that cut views.
        offline: never ask the network.
        confirm: asked before a large download, as in `load_encoder`.
        download: told how far downloads are.
        observe: told how far training is, after each step.
        stage: told (what is done, how much of it, of how much) in the stages around it.

    Raises:
        UsageError: a setting that cannot be meant, or pairs that nothing can be learned from.
        TrainingFailed: nothing better than the base was found, or a file cannot be written.
        ModelUnavailable: the base cannot be had, or is none of open_clip.
    """
    tuning = tuning or Tuning()
    tuning.check()
    source, out = Path(source), Path(out).absolute()
    _check_folder(out)
    stage = stage or (lambda what, done, total: None)
    if model == AUTO and (source / CATALOG).is_file():
        with Snapshot.open(source) as snapshot:
            model = snapshot.info().model
    name = resolve(model, offline=offline, confirm=confirm).name
    with tempfile.TemporaryDirectory(prefix="mmsearch-") as scratch:
        stage("loading the model", 0, 1)
        base = name
        if name == STARTER.name:
            base = f"local-dir:{export_open_clip(Path(scratch) / STARTER.name)}"
        encoder = load_encoder(
            base, device=device, threads=threads, offline=offline, confirm=confirm, progress=download
        )
        if not isinstance(encoder, OpenClipEncoder):
            raise UsageError(f"`{name}` cannot be trained: only models of open_clip and `{STARTER.name}` can")
        stage("loading the model", 1, 1)
        pairs = read_pairs(
            source,
            images=None if images is None else Path(images),
            split=split,
            languages=languages,
            holdout=tuning.holdout,
            seed=tuning.seed,
            target=encoder.image_size,
            progress=lambda done, total: stage("reading pictures", done, total),
        )
        stored = None
        if tuning.hard_negatives and (source / CATALOG).is_file():
            identities = [encoder.identity, *([starter.identity()] if name == STARTER.name else [])]
            stored = stored_images(source, pairs, identities)
        return _tuned(encoder, name, pairs, stored, out, tuning, threads or usable_cpus(), observe, stage)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder for the result")
    if (out / cache.CONFIG).exists():
        raise UsageError(f"{out} holds a model already; name another folder, or remove it")
    if out.is_dir() and any(out.iterdir()) and not (out / _RESUME).is_dir():
        raise UsageError(f"{out} exists and holds something else; name a new or an empty folder")


def _tuned(
    encoder: OpenClipEncoder,
    name: str,
    pairs: Pairs,
    stored: NDArray[np.float32] | None,
    out: Path,
    tuning: Tuning,
    threads: int,
    observe: Callable[[Progress], None] | None,
    stage: Stage,
) -> TrainReport:
    module: Any = encoder.module
    loss: Loss = tuning.loss or ("softmax" if getattr(module, "logit_bias", None) is None else "sigmoid")
    views = Views(pairs.paths, encoder.image_size, encoder.settings, mirror=tuning.mirror)
    embedder = Embedder(encoder, pairs, views)
    usual = 1024 if tuning.how == "probe" else 32 if encoder.device == "cpu" else 128
    batches = Batches(pairs, tuning.batch_size or usual, tuning.hard_negatives, tuning.seed)
    steps = tuning.steps or (tuning.epochs or _EPOCHS[tuning.how]) * batches.per_epoch
    before = embedder.figures(pairs.held) if len(pairs.held) else {}
    (out / _RESUME).mkdir(parents=True, exist_ok=True)
    checkpoint = out / _RESUME / "checkpoint.pt"
    run = _Run(tuning, pairs, stored, embedder, batches, loss, steps, checkpoint, observe, stage)
    if loss == "sigmoid" and getattr(module, "logit_bias", None) is None:
        module.logit_bias = nn.Parameter(_first_bias(run))
    train = _train_probe if tuning.how == "probe" else _train_towers
    ending, step, best_step, seconds, share, rate = train(run, threads)
    notices = list(pairs.notices)
    report = TrainReport(
        model=None,
        folder=out,
        identity=None,
        base=name,
        base_identity=encoder.identity,
        how=tuning.how,
        loss=loss,
        pictures=len(pairs.train),
        captions=len(captions_of(pairs, pairs.train)),
        held_out=len(pairs.held),
        ending=ending,
        steps=step,
        best_step=best_step,
        average=share,
        before=before,
        after={},
        seconds=seconds,
        rate=rate,
        notices=tuple(notices),
    )
    if ending == "interrupted":
        return report
    lost = f"the loss stopped being a number after step {step}; a lower --lr may help"
    if share == 0.0 or best_step == 0:
        saved.write_curve(out, run.curve)
        shutil.rmtree(out / _RESUME)
        why = lost if ending == "diverged" else "no weights did better than the base's on the held-out part"
        raise TrainingFailed(
            f"{why}; no model was written ({saved.CURVES} in {out} shows the run). More captions, another --lr, "
            "--how probe or --how last may help"
        )
    if ending == "diverged":
        notices.append(f"{lost}. The result has the weights of step {best_step}")
    stage("writing the model", 0, 1)
    report = dataclasses.replace(report, notices=tuple(notices))
    saved.write_model(out, encoder, model_card(report, tuning), run.curve)
    result = load_encoder(f"local-dir:{out}", device=encoder.device)
    assert isinstance(result, OpenClipEncoder)
    after = Embedder(result, pairs, views).figures(pairs.held) if len(pairs.held) else {}
    report = dataclasses.replace(report, model=f"local-dir:{out}", identity=result.identity, after=after)
    saved.write_card(out, model_card(report, tuning))
    shutil.rmtree(out / _RESUME)
    stage("writing the model", 1, 1)
    return report


_Trained = tuple[Ending, int, int, float, float, float | None]


def _plan(run: _Run, base_identity: str, lr: float) -> Plan:
    tuning = run.tuning
    held = len(run.pairs.held) > 0
    return Plan(
        steps=run.steps,
        warmup=max(1, min(100, run.steps // 10)),
        seed=tuning.seed,
        measure_every=run.batches.per_epoch if held else 0,
        patience=tuning.patience if held else None,
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        settings={
            "model": base_identity,
            "pairs": run.pairs.digest,
            "how": tuning.how,
            "blocks": tuning.blocks,
            "steps": run.steps,
            "batch_size": run.batches.size,
            "lr": lr,
            "weight_decay": tuning.weight_decay,
            "loss": run.loss,
            "hard_negatives": tuning.hard_negatives,
            "patience": tuning.patience,
            "mirror": tuning.mirror,
            "seed": tuning.seed,
        },
    )


def _groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors, the temperature and the bias do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "peak": lr, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "peak": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _train(run: _Run, task: TowerTask | ProbeTask, identity: str) -> _Trained:
    """Trains and averages: the task's model has the result's weights afterwards."""
    lr = run.tuning.lr or _RATES[run.tuning.how]
    start = {key: value.detach().cpu().clone() for key, value in trained_state(task.model).items()}
    engine = Engine(task, _plan(run, identity, lr), _groups(task.model, lr, run.tuning.weight_decay))
    rates: list[float] = []

    def watch(progress: Progress) -> None:
        rates.append(progress.rate)
        if run.observe is not None:
            run.observe(progress)

    outcome = engine.run(run.checkpoint, watch)
    run.curve = engine.curve
    share = 1.0
    if outcome.ending != "interrupted":
        share = _average(run, task, start)
    rate = rates[-1] if rates else None
    return outcome.ending, outcome.step, outcome.best_step, outcome.seconds, share, rate


def _average(run: _Run, task: TowerTask | ProbeTask, base: State) -> float:
    """Sets the model to an average of the base and itself; returns the share of itself.

    Chosen is the smallest share with nearly all of the gain: what the last tenths add on the held-out part is little,
    and what they cost elsewhere is much (docs/train.md).
    """
    tuned = {key: value.detach().cpu().clone() for key, value in trained_state(task.model).items()}
    share = run.tuning.average
    if share is None and not len(run.pairs.held):
        share = 0.5
    if share is None:
        scores = {}
        for number, candidate in enumerate((0.0, *_SHARES)):
            run.stage("averaging", number, len(_SHARES) + 1)
            load_trained(task.model, averaged(base, tuned, candidate))
            scores[candidate] = score(task.held_figures())
        enough = scores[0.0] + _GAIN_KEPT * (max(scores.values()) - scores[0.0])
        share = min(candidate for candidate, found in scores.items() if found >= enough)
    load_trained(task.model, averaged(base, tuned, share))
    return share


def _train_towers(run: _Run, threads: int) -> _Trained:
    encoder = run.embedder.encoder
    choose(encoder.module, run.tuning.how, run.tuning.blocks)
    task = TowerTask(run.embedder, run.batches, run.steps, run.loss, threads, run.stored)
    with closing(task):
        return _train(run, task, encoder.identity)


def _train_probe(run: _Run, threads: int) -> _Trained:
    encoder, pairs = run.embedder.encoder, run.pairs
    named = {side: end for side in ("image", "text") if (end := ends(encoder.module, side)) is not None}
    if not named:
        raise UsageError("neither tower of this model ends with a linear layer: train it with --how last or full")
    everything = np.arange(len(pairs.paths))
    images = run.embedder.images(everything, lambda done, total: run.stage("embedding pictures", done, total))
    texts = run.embedder.texts(np.arange(len(pairs.texts)))
    probe = Probe(images.shape[1], tuple(named), encoder.module)
    task = ProbeTask(probe, images, texts, run.batches, run.loss)
    trained = _train(run, task, encoder.identity)
    if trained[0] != "interrupted":
        for side, end in named.items():
            fold(encoder.module, end, probe.change[side].detach().to(encoder.device))
        module: Any = encoder.module
        with torch.no_grad():
            module.logit_scale.copy_(probe.logit_scale)
            if probe.logit_bias is not None:
                module.logit_bias.copy_(probe.logit_bias)
        few = everything[:16]
        wanted, _ = task.rows(few, captions_of(pairs, few))
        if float((run.embedder.images(few) * wanted).sum(1).min()) < 0.99:
            raise TrainingFailed("this model's image tower does not take a linear map up: train it with --how last")
    return trained


def _first_bias(run: _Run) -> torch.Tensor:
    """A bias for a model that has none: pairs of the base are a yes, others a no, by the middle of their cosines."""
    pairs, few = run.pairs, run.pairs.train[:64]
    images = run.embedder.images(few)
    texts = run.embedder.texts(np.array([pairs.captions[p][0] for p in few]))
    cosines = images @ texts.T
    others = cosines[~np.eye(len(few), dtype=bool)]
    middle = (float(np.diagonal(cosines).mean()) + float(others.mean())) / 2
    scale = run.embedder.encoder.module.logit_scale.detach()
    bias: torch.Tensor = -middle * scale.exp()
    return bias
