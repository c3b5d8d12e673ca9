"""The command that fine-tunes a model on pictures with captions."""

from __future__ import annotations

import contextlib
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.cli.app import EXIT_ERROR, EXIT_INTERRUPTED, SignedCommand, app
from mmsearch.cli.options import (
    DeviceOption,
    OfflineOption,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.talk import confirmation, progress_display

if TYPE_CHECKING:
    from mmsearch.indexers.train.settings import TrainReport

_PAIRS, _MODEL, _HOW = "What to learn from", "What to train", "How"

_EXAMPLES = """
mmsearch train captions.csv --out my-model
mmsearch train photos/captions.json --split train --model balanced --how last --out my-model
mmsearch train INDEX --how probe --out my-model
mmsearch reindex --model local-dir:my-model
"""


class HowChoice(StrEnum):
    """Values of `--how`."""

    full = "full"
    last = "last"
    probe = "probe"


class LossChoice(StrEnum):
    """Values of `--loss`."""

    softmax = "softmax"
    sigmoid = "sigmoid"


@app.command(cls=SignedCommand, epilog=_EXAMPLES)
def train(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTIONS_OR_INDEX",
            help="A captions file, a folder with one, or an index whose pictures have captions.",
            rich_help_panel=_PAIRS,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the model goes: a new folder.", rich_help_panel=_MODEL)
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Where the pictures are; beside the captions by default.",
            rich_help_panel=_PAIRS,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Only this split: train.", rich_help_panel=_PAIRS)
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="LANG",
            help="Only captions in it: en, zh; repeatable, all by default.",
            rich_help_panel=_PAIRS,
        ),
    ] = None,
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            metavar="SHARE",
            help="Pictures to measure with and never learn from; 0 for none.",
            rich_help_panel=_PAIRS,
        ),
    ] = 0.1,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The base: a preset of `mmsearch models`, or an open_clip tag; `auto` is that of an index.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    how: Annotated[
        HowChoice,
        typer.Option(
            "--how",
            help="All layers, the last blocks, or a linear map after each tower.",
            rich_help_panel=_MODEL,
        ),
    ] = HowChoice.full,
    blocks: Annotated[
        int, typer.Option("--blocks", metavar="N", help="With --how last: of each tower.", rich_help_panel=_MODEL)
    ] = 2,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            metavar="N",
            help="Times that every picture is seen, at most; 10 by default, 50 for probe.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Updates, instead of --epochs.", rich_help_panel=_HOW)
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            "--patience", metavar="N", help="Epochs without a better measurement, then stop.", rich_help_panel=_HOW
        ),
    ] = 3,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Pairs per update; chosen by default.", rich_help_panel=_HOW),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", metavar="RATE", help="Peak of the learning rate; chosen by --how by default.", rich_help_panel=_HOW
        ),
    ] = None,
    loss: Annotated[
        LossChoice | None,
        typer.Option("--loss", help="CLIP's or SigLIP's; by default the model's own.", rich_help_panel=_HOW),
    ] = None,
    hard_negatives: Annotated[
        int,
        typer.Option(
            "--hard-negatives",
            metavar="N",
            help="For each picture N that the model mixes up with it come into its batch.",
            rich_help_panel=_HOW,
        ),
    ] = 0,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="Show half of the pictures mirrored: not where writing counts.", rich_help_panel=_HOW
        ),
    ] = False,
    average: Annotated[
        float | None,
        typer.Option(
            "--average",
            metavar="SHARE",
            help="Of the tuned weights in the result, the rest are the base's; chosen on what is held out.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.", rich_help_panel=_HOW)] = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Fine-tune a model on pictures with captions.

    The result is a folder that `--model local-dir:DIR` names, for `mmsearch reindex` and every other command. Some
    pictures are held out; they say when to stop, how much of the base to keep, and what was gained.

    Ctrl-C writes a checkpoint, and the same command goes on from there.
    """
    from mmsearch import output

    with contextlib.ExitStack() as stack:
        display = stack.enter_context(progress_display())
        from mmsearch.indexers.train.finetune import finetune
        from mmsearch.indexers.train.settings import Tuning

        report = finetune(
            source,
            out,
            model=model,
            tuning=Tuning(
                how=how.value,
                blocks=blocks,
                epochs=epochs,
                steps=steps,
                batch_size=batch_size,
                lr=lr,
                loss=loss.value if loss else None,
                hard_negatives=hard_negatives,
                holdout=holdout,
                patience=patience,
                average=average,
                mirror=mirror,
                seed=seed,
            ),
            images=images,
            split=split,
            languages=languages or (),
            device=device,
            threads=threads,
            offline=offline,
            confirm=confirmation(display, yes=yes),
            download=display.on_download if display else None,
            observe=display.on_train if display else None,
            stage=display.on_eval if display else None,
        )
    if report.model is not None:
        _draw(report.folder)
    if as_json:
        output.write_json(report)
    elif report.after:
        _write_table(report, people=output.is_terminal(sys.stdout))
    for notice in report.notices:
        output.say(output.safe(notice))
    if report.ending == "interrupted":
        output.say(f"interrupted after step {report.steps}; the same command goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED)
    output.say(_summary(report))
    if report.ending == "diverged":
        raise typer.Exit(EXIT_ERROR)


def _draw(folder: Path) -> None:
    """Draws the curves beside their figures where matplotlib is installed."""
    from mmsearch.curves import draw_training
    from mmsearch.indexers.train.saved import CURVES
    from mmsearch.retrieval.errors import MissingExtra

    with contextlib.suppress(MissingExtra):
        draw_training(json.loads((folder / CURVES).read_text("utf-8")), folder / "curves.png")


def _write_table(report: TrainReport, *, people: bool) -> None:
    from mmsearch import output

    heads = ("held out", "measure", "before", "after")
    rows = [
        (way.replace("_", " "), name, f"{report.before[way][name]:.4f}", f"{value:.4f}")
        for way, measured in report.after.items()
        for name, value in measured.items()
    ]
    if not people:
        for row in (heads, *rows):
            output.write("\t".join(row))
        return
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        output.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _summary(report: TrainReport) -> str:
    from mmsearch import output

    rate = "" if report.rate is None else f", {report.rate:.2f} steps/s"
    lines = [
        f"{output.counted(report.pictures, 'picture')}, {report.held_out:,} more held out; "
        f"{report.steps:,} steps in {report.seconds:,.0f} s{rate}; "
        f"weights of step {report.best_step:,}, {1 - report.average:.0%} of the base kept",
        f"use it with --model {report.model}, as in: mmsearch reindex --model {report.model}",
    ]
    return "\n".join(map(output.safe, lines))
