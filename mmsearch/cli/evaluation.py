"""The command that measures how well a model, or an index, finds what captions describe."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmsearch.cli.app import SignedCommand, app
from mmsearch.cli.options import (
    BatchSizeOption,
    DeviceOption,
    FusionChoice,
    ModeChoice,
    OfflineOption,
    PrecisionOption,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.talk import confirmation, progress_display
from mmsearch.retrieval.options import DEPTH

_SET, _SYSTEMS, _OUTPUT = "What to ask", "Who answers", "What to show"

_EXAMPLES = """
mmsearch eval captions.json
mmsearch eval flickr8k --split val --language zh --json
mmsearch eval karpathy.json --images photos --model starter --model balanced
mmsearch eval captions.csv --index DIR --mode dense --mode hybrid
mmsearch eval captions.csv --index DIR --mode hybrid --rerank blip-itm --sample 200
mmsearch eval topics.tsv --qrels qrels.txt --index DIR
mmsearch eval captions.json --run new.trec --compare old.trec
mmsearch eval captions.json --plot curves.png
"""


class DirectionChoice(StrEnum):
    """Values of `--direction`."""

    text_to_image = "text-to-image"
    image_to_text = "image-to-text"
    text_to_text = "text-to-text"


@app.command("eval", cls=SignedCommand, epilog=_EXAMPLES)
def evaluate(
    captions: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTIONS", help="A captions file, a folder with one, or TREC topics.", rich_help_panel=_SET
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Where the pictures are; beside the captions by default.",
            rich_help_panel=_SET,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="NAME", help="Only this split: val, test.", rich_help_panel=_SET),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="LANG",
            help="Only captions in it: en, zh; repeatable, all by default.",
            rich_help_panel=_SET,
        ),
    ] = None,
    directions: Annotated[
        list[DirectionChoice] | None,
        typer.Option(
            "--direction", help="What asks for what; repeatable, the first two by default.", rich_help_panel=_SET
        ),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(
            "--qrels", metavar="FILE", help="CAPTIONS are TREC topics, and these the answers.", rich_help_panel=_SET
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            help="When an index is searched: N queries of each language, the same ones every time.",
            rich_help_panel=_SET,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="A model; repeatable: the first is compared with the others.",
            rich_help_panel=_SYSTEMS,
        ),
    ] = None,
    index_path: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="DIR",
            help="An index: its model, and its vectors where it has them.",
            rich_help_panel=_SYSTEMS,
        ),
    ] = None,
    modes: Annotated[
        list[ModeChoice] | None,
        typer.Option(
            "--mode", help="Ask the index through its search, in this mode; repeatable.", rich_help_panel=_SYSTEMS
        ),
    ] = None,
    rerankers: Annotated[
        list[str] | None,
        typer.Option(
            "--rerank",
            metavar="NAME",
            help="Search without it and with it: a reranker of `mmsearch models`; repeatable.",
            rich_help_panel=_SYSTEMS,
        ),
    ] = None,
    rerank_depth: Annotated[
        int,
        typer.Option("--rerank-depth", metavar="N", help="How many are reranked at most.", rich_help_panel=_SYSTEMS),
    ] = DEPTH,
    budget_ms: Annotated[
        int | None,
        typer.Option("--budget-ms", metavar="MS", help="With --rerank: as in query.", rich_help_panel=_SYSTEMS),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", metavar="FILTER", help="With --mode or --rerank: as in query.", rich_help_panel=_SYSTEMS
        ),
    ] = None,
    fusion: Annotated[
        FusionChoice | None,
        typer.Option("--fusion", help="With --mode or --rerank: as in query.", rich_help_panel=_SYSTEMS),
    ] = None,
    depth: Annotated[
        int,
        typer.Option(
            "--depth",
            metavar="N",
            help="How many answers a search is asked for and --run keeps.",
            rich_help_panel=_SYSTEMS,
        ),
    ] = 100,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", metavar="FILE", help="Write the answers as a TREC run.", rich_help_panel=_OUTPUT),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare", metavar="FILE", help="Compare with a TREC run of the same queries.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw success@k: a .png, .svg or .pdf.", rich_help_panel=_OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; see docs/evaluation.md.", rich_help_panel=_OUTPUT)
    ] = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure how often captions find their pictures, and pictures their captions.

    Your index is neither read nor changed, unless --index names one. Formats of captions: COCO and Karpathy JSON,
    Flickr's token.txt, CSV, JSON lines, and lists of file_name and captions (docs/evaluation.md).

    success@k is the share of queries with a right answer among the first k: what papers on CLIP print as R@k. With
    several systems the others are compared with the first, on the same queries; a reranked search with the same search
    without the reranker.
    """
    from mmsearch import evaluation, output
    from mmsearch.cli import scores

    options = {"where": where, "fusion": fusion and fusion.value}
    with progress_display() as display:
        report = evaluation.evaluate(
            captions,
            images=images,
            split=split,
            languages=languages or (),
            directions=[choice.value.replace("-", "_") for choice in directions or ()],
            qrels=qrels,
            models=models or (),
            index=index_path,
            modes=[choice.value for choice in modes or ()],
            rerankers=rerankers or (),
            rerank_depth=rerank_depth,
            budget_ms=budget_ms,
            sample=sample,
            options={name: value for name, value in options.items() if value is not None},
            depth=depth,
            run=run_file,
            compare=compare,
            plot=plot,
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            offline=offline,
            confirm=confirmation(display, yes=yes),
            download=display.on_download if display else None,
            progress=display.on_eval if display else None,
        )
    if as_json:
        output.write_json(report.to_json())
    else:
        scores.write_report(report, people=output.is_terminal(sys.stdout))
    for line in scores.report_lines(report):
        output.say(line)
