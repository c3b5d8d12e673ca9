"""The commands that tag pictures and list tags."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmsearch.cli.app import app
from mmsearch.cli.options import (
    BatchSizeOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    OfflineOption,
    PrecisionOption,
    ThreadsOption,
    VerboseOption,
)
from mmsearch.cli.talk import progress_display
from mmsearch.retrieval.errors import UsageError


@app.command()
def tag(
    labels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LABEL]...", help="Tags, or `tag = words for the model`, each an argument.", show_default=False
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--labels", metavar="FILE", help="A file with a label in each line; repeatable."),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", metavar="NAME", help="A list of mmsearch's: everyday, everyday-zh; repeatable."),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="FILTER", help='Only these pictures: "year = 2024".')
    ] = None,
    min_relevance: Annotated[
        float | None,
        typer.Option("--min-relevance", metavar="R", help="0 to 1: fewer and surer tags, or more; 0.5 by default."),
    ] = None,
    most: Annotated[
        int | None, typer.Option("--most", metavar="N", help="Tags per picture, the best of them; 10 by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show counts and examples; write nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the tags of these labels away instead.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take away all tags that this command gave.")] = False,
    index_path: IndexOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tag the pictures with the labels that they show.

    Any words can be labels, as in `mmsearch tag dog cat beach`; nothing is trained. Filters (--where 'tag = dog') and
    the words of queries find tags. Running it again replaces the tags of the same labels and leaves others. Pictures
    that are indexed later have no tags until then. Nothing is written unless all is.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if remove or clear:
        given = [min_relevance, most, dry_run or None]
        if any(one is not None for one in given) or (remove and clear):
            raise UsageError("--remove and --clear take tags away: of the other options only --where goes with one")
        if clear and (labels or files or lists):
            raise UsageError("--clear takes all tags away; to take away those of some labels, write --remove")
        if remove and not (labels or files or lists):
            raise UsageError("say which tags to remove, as in `mmsearch tag --remove dog`; --clear takes all away")
        with Index(index_path) as opened:
            changed = opened.untag(*labels or (), files=files or (), lists=lists or (), where=where)
        if as_json:
            output.write_json({"changed": changed})
        else:
            output.say(f"tags removed from {output.counted(changed, 'picture')}" if changed else "no picture had any")
        return
    with progress_display() as display:
        with Index(
            index_path, device=device, precision=precision, threads=threads, batch_size=batch_size, offline=offline
        ) as opened:
            report = opened.tag(
                *labels or (),
                files=files or (),
                lists=lists or (),
                where=where,
                min_relevance=min_relevance,
                most=most,
                dry_run=dry_run,
                progress=display.on_tag if display else None,
            )
            texts = opened.info().texts
    if as_json:
        output.write_json(report)
    else:
        used = [one for one in report.tags if one.pictures]
        output.write_tags(
            sorted(used, key=lambda one: -one.pictures), people=output.is_terminal(sys.stdout), examples=dry_run
        )
    if not report.pictures:
        output.say(output.no_pictures(where, texts))
    for line in output.tag_lines(report):
        output.say(line)


@app.command()
def tags(
    index_path: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per tag and line.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """List the tags of the index, and how many files have each."""
    from mmsearch import output
    from mmsearch.index import Index

    with Index(index_path) as opened:
        found = opened.tags()
    if as_json:
        for one in found:
            output.write_json({"tag": one.tag, "pictures": one.pictures})
    else:
        output.write_tags(found, people=output.is_terminal(sys.stdout))
    if not found:
        output.say("no tags in the index; `mmsearch tag --list everyday` makes some")
