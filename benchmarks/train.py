"""What fine-tuning costs and brings: the rate of the loop, and the starter on clothing before and after.

    python benchmarks/train.py --data ../shared/data --out benchmarks/results/train.json
    python benchmarks/train.py
    python benchmarks/train.py --random ViT-B-32 --device cuda

The rate: updates of `mmsearch train --how full` (drawing pairs, cutting views, tokens, loss, AdamW, bookkeeping) over
forward + backward of the same model and batch alone, with the same weights trained, on tensors that are ready. Both
take turns; the figure is the median over the rounds of the ratio within a round. On a GPU both run in bfloat16.
`--random` times an architecture of open_clip with random weights, which needs neither the starter nor a download.

With `--data`: the starter, fine-tuned on `clothing_cc0` with the caption "a photo of LABEL", 40 % of the photos held
out. What it gained is measured on these, what it lost elsewhere on the val part of `flickr8k` in English.
The held-out photos chose when to stop and how to average, so that the gain is a little flattered. The probe is also
measured without any averaging.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image
from safetensors.torch import save_file

from mmsearch.retrieval.encoders.cache import CONFIG
from mmsearch.retrieval.encoders.export import export_open_clip
from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.encoders.open_clip import OpenClipEncoder, _import_open_clip

open_clip = _import_open_clip()
import torch  # noqa: E402 - after torchvision's guard

from mmsearch.indexers.train.contrast import softmax_loss  # noqa: E402
from mmsearch.indexers.train.engine import Engine, Plan  # noqa: E402
from mmsearch.indexers.train.finetune import finetune  # noqa: E402
from mmsearch.indexers.train.pairs import read_pairs  # noqa: E402
from mmsearch.indexers.train.parts import choose, still_norms  # noqa: E402
from mmsearch.indexers.train.saved import WEIGHTS  # noqa: E402
from mmsearch.indexers.train.settings import Tuning  # noqa: E402
from mmsearch.indexers.train.tuning import Batches, Embedder, TowerTask  # noqa: E402
from mmsearch.indexers.train.views import Views  # noqa: E402

TARGET = 0.9
_HOLDOUT = 0.4


def pictures(folder: Path, count: int) -> Path:
    """Synthetic photos of 640 x 480 with a caption each; the captions file."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        entries.append({"file_name": f"{number}.jpg", "captions": [f"two dogs run over field number {number}"]})
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder / "captions.json"


def random_model(folder: Path, architecture: str) -> Path:
    """A model of an open_clip architecture with random weights, as a folder."""
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise SystemExit(f"open_clip has no architecture `{architecture}`")
    torch.manual_seed(0)
    model = open_clip.create_model(architecture)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    settings = open_clip.get_model_preprocess_cfg(model)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": plain}))
    return folder


def opened(folder: Path, device: str | None) -> OpenClipEncoder:
    """A model of a folder."""
    encoder = load_encoder(f"local-dir:{folder}", device=device)
    assert isinstance(encoder, OpenClipEncoder)
    return encoder


def rate(
    folder: Path, work: Path, device: str | None, *, batch: int | None, steps: int | None, rounds: int
) -> dict[str, Any]:
    """Updates per second of the loop and of forward + backward alone, by turns."""
    encoder = opened(folder, device)
    where = torch.device(encoder.device)
    quick = where.type == "cuda"
    batch, steps = batch or (256 if quick else 16), steps or (20 if quick else 3)
    pairs = read_pairs(pictures(work / "pictures", max(64, 2 * batch)), holdout=0.0)
    choose(encoder.module, "full", 0)
    views = Views(pairs.paths, encoder.image_size, encoder.settings)
    task = TowerTask(Embedder(encoder, pairs, views), Batches(pairs, batch, 0, 0), 10**6, "softmax", usable_cpus())
    trained = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
    parameters = [{"params": trained, "peak": 1e-6, "weight_decay": 0.05}]
    engine = Engine(task, Plan(steps=10**6, warmup=10, seed=0), parameters)
    drawn, tokens, same = (each.to(where) for each in task.batch(0))
    images = views.normalise(drawn)

    def loop() -> None:
        for _ in range(steps):
            assert engine.step() is not None

    def alone() -> None:
        model: Any = encoder.module
        model.train()
        still_norms(model)
        for _ in range(steps):
            model.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16, enabled=quick):
                rows = model.encode_image(images, normalize=True)
                texts = model.encode_text(tokens, normalize=True)
            softmax_loss(model.logit_scale.exp() * rows.float() @ texts.float().T, same).backward()

    def timed(run: Callable[[], None]) -> float:
        began = time.perf_counter()
        run()
        if quick:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed(alone), timed(loop)
    turns = []
    for number in range(rounds):
        order = [("alone", alone), ("loop", loop)]
        turns.append({name: round(timed(run), 4) for name, run in (order if number % 2 else order[::-1])})
    task.close()
    ratio = statistics.median(took["alone"] / took["loop"] for took in turns)
    return {
        "name": "rate",
        "value": round(ratio, 3),
        "target": TARGET,
        "met": ratio >= TARGET,
        "seconds": turns,
        "batch": batch,
        "steps": steps,
        "pairs_per_second": round(statistics.median(batch * steps / took["loop"] for took in turns), 1),
        "device": torch.cuda.get_device_name(where) if quick else encoder.device,
        "precision": "bfloat16" if quick else "float32",
    }


def demonstrate(
    data: Path, base: Path, work: Path, device: str | None, hows: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The starter on clothing: held-out figures before and after, and those of flickr8k val."""
    labels = json.loads((data / "clothing_cc0" / "labels.json").read_text("utf-8"))
    entries = [{"file_name": one["image"], "captions": [f"a photo of {one['label']}"]} for one in labels]
    source = work / "clothing.json"
    source.write_text(json.dumps(entries))
    general = read_pairs(data / "flickr8k", split="val", languages=("en",), holdout=0.0)
    everything = np.arange(len(general.paths))

    def elsewhere(folder: Path) -> dict[str, dict[str, float]]:
        encoder = opened(folder, device)
        views = Views(general.paths, encoder.image_size, encoder.settings)
        return Embedder(encoder, general, views).figures(everything)

    before = elsewhere(base)
    for how, average in [(how, average) for how in hows for average in (None, 1.0) if not average or how == "probe"]:
        out = work / f"{how}-{average}"
        report = finetune(
            source,
            out,
            model="starter",
            images=data / "clothing_cc0",
            tuning=Tuning(how=how, holdout=_HOLDOUT, average=average),  # type: ignore[arg-type]
            device=device,
        )
        yield {
            "name": f"clothing {how}" + ("" if average is None else f", --average {average}"),
            "pictures": report.pictures,
            "held_out": report.held_out,
            "steps": report.steps,
            "seconds": round(report.seconds, 1),
            "average": report.average,
            "before": report.before,
            "after": report.after,
            "flickr8k_val_before": before,
            "flickr8k_val_after": elsewhere(out),
        }


def write(result: dict[str, Any], out: Path | None) -> None:
    """Writes what is known so far."""
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")


def main() -> int:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with clothing_cc0/ and flickr8k/: the demonstration too")
    timed = parser.add_mutually_exclusive_group()
    timed.add_argument("--model", type=Path, help="folder of an open_clip model to time instead of the starter")
    timed.add_argument("--random", metavar="ARCHITECTURE", help="time one of open_clip's with random weights: ViT-B-32")
    parser.add_argument("--how", nargs="+", default=["probe", "last"], choices=["full", "last", "probe"])
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--batch", type=int, help="16 by default, 256 on a GPU")
    parser.add_argument("--steps", type=int, help="in a round: 3 by default, 20 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON here")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/train.py", *sys.argv[1:]]), **describe()}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        starter = None
        if arguments.data or not (arguments.model or arguments.random):
            starter = export_open_clip(work / "starter")
        base = arguments.model or starter
        if arguments.random:
            base = random_model(work / "random", arguments.random)
        sizes = {"batch": arguments.batch, "steps": arguments.steps, "rounds": arguments.rounds}
        result["figures"] = figures = [rate(base, work, arguments.device, **sizes)]
        print(f"rate of the loop / forward + backward alone: {figures[0]['value']:.3f} (target {TARGET})")
        print(
            f"{figures[0]['pairs_per_second']:,} pairs/s, {figures[0]['device']}, {figures[0]['precision']}", flush=True
        )
        write(result, arguments.out)
        if arguments.data:
            for one in demonstrate(arguments.data, starter, work, arguments.device, arguments.how):
                figures.append(one)
                print(f"{one['name']}: {one['steps']} steps, {one['seconds']} s, {one['average']:.0%} tuned")
                for title, when in (
                    ("held out", ("before", "after")),
                    ("flickr8k val", ("flickr8k_val_before", "flickr8k_val_after")),
                ):
                    for way in ("text_to_image", "image_to_text"):
                        old, new = (one[name][way] for name in when)
                        print(
                            f"  {title:13} {way}: "
                            + ", ".join(f"{name} {old[name]:.3f} -> {new[name]:.3f}" for name in old),
                            flush=True,
                        )
                write(result, arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
