"""The commands that look at a collection as a whole."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mmsearch.cli.app import app
from mmsearch.cli.options import IndexOption, VerboseOption
from mmsearch.cli.talk import progress_display
from mmsearch.retrieval.errors import UsageError


@app.command()
def dupes(
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            help="Embeddings as close as this are enough, up to 1; by default it follows from the index.",
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="FILTER", help='Only among these: "year = 2024".')
    ] = None,
    index_path: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per group and line.")] = False,
    paths0: Annotated[
        bool,
        typer.Option("--paths0", help="Print paths of all but the kept, each ended by a NUL character, for xargs -0."),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Find near-duplicates: copies, other sizes, light edits.

    Nothing is deleted. The one to keep comes first in each group: the most pixels, then the largest file, then the
    oldest. Each other was compared with it. Files that changed since they were indexed are left out.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if as_json and paths0:
        raise UsageError("--json and --paths0 are two ways to print; take one")
    with Index(index_path) as opened, progress_display() as display:
        report = opened.duplicates(threshold=threshold, where=where, progress=display.on_compare if display else None)
        texts = opened.info().texts
    if as_json:
        for group in report.groups:
            output.write_json(group)
    elif paths0:
        for group in report.groups:
            for one in group.duplicates:
                if one.path is not None:
                    output.write_path0(str(one.path))
    else:
        output.write_duplicates(report, people=output.is_terminal(sys.stdout))
    if not report.pictures:
        output.say(output.no_pictures(where, texts))
    for line in output.duplicate_lines(report):
        output.say(line)
