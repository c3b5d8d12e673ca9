"""The commands that fill an index, search it, and show what can be used."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from mmsearch.cli.app import EXIT_INTERRUPTED, SignedCommand, app
from mmsearch.cli.options import (
    BatchSizeOption,
    DeviceOption,
    FusionChoice,
    GroupChoice,
    IndexOption,
    JsonOption,
    ModalityChoice,
    ModeChoice,
    ModelOption,
    OfflineOption,
    PrecisionOption,
    SortChoice,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.showing import Showing, show
from mmsearch.cli.talk import confirmation, progress_display
from mmsearch.retrieval.errors import IndexNotFound, UsageError
from mmsearch.retrieval.options import DEPTH

if TYPE_CHECKING:
    from mmsearch.index import Index
    from mmsearch.retrieval.query import Query
    from mmsearch.retrieval.types import Report


class RunChoice(TypedDict):
    """What a run and its estimate have in common."""

    include: Sequence[str]
    exclude: Sequence[str]
    text_column: str | None
    image_column: str | None
    id_column: str | None


def read_paths(*, null: bool) -> list[str]:
    """The paths on stdin. Names may be any bytes; a line may end with a carriage return."""
    from mmsearch import output

    if output.is_terminal(sys.stdin):
        output.say("reading paths from here; Ctrl-D ends the list")
    content = sys.stdin.buffer.read()
    if not null and b"\0" in content:
        raise UsageError("the list on stdin has NUL characters: add -0")
    names = content.split(b"\0") if null else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(name) for name in names if name]


@app.command()
def index(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Folders, files, globs, manifests (.csv, .jsonl, .parquet); - for a list; all roots if none.",
        ),
    ] = None,
    index_path: IndexOption = None,
    model: ModelOption = "auto",
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only files that match, in this run; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out what matches, in this run; repeatable."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Let missing files go even if their drive looks unmounted.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try files again that failed before.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="The list of `-` is separated by NUL characters (find -print0).")
    ] = False,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of a manifest with texts; text or caption by default.")
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column with paths of pictures; image, path or file_name by default."),
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column that names rows; id by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many files, how long.")] = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Add pictures and texts to the index, and keep it up to date.

    Only new and changed files are read. Ctrl-C keeps what is done; the same command continues. --include and
    --exclude are not remembered: a later `index` without PATH takes everything in its folders.

    A manifest is a table whose rows have a text, the path of a picture, or both; its other columns are kept. With -
    as the only PATH, paths are read from stdin, one a line or with -0 as `find -print0` writes them.
    """
    from mmsearch import output
    from mmsearch.index import Index
    from mmsearch.indexers.plan import RunEstimate
    from mmsearch.retrieval.types import Report

    listed = bool(paths) and "-" in (paths or ())
    if listed and paths != ["-"]:
        raise UsageError("- stands for a list of paths on stdin and must be the only PATH; a file of that name is ./-")
    if null and not listed:
        raise UsageError("-0 says how the list of paths on stdin is separated; add - as the PATH")
    named = read_paths(null=null) if listed else paths or []
    if not listed and (text_column, image_column, id_column) != (None, None, None):
        _require_manifest(named)
    if listed and not named:
        output.say("there are no paths on stdin")
    report, estimate = Report(), RunEstimate()
    with progress_display() as display:
        with Index(
            index_path,
            model=model,
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            offline=offline,
            confirm=confirmation(display, yes=yes),
            download=display.on_download if display else None,
        ) as opened:
            wanted: RunChoice = {
                "include": include or (),
                "exclude": exclude or (),
                "text_column": text_column,
                "image_column": image_column,
                "id_column": id_column,
            }
            if listed and not named:
                with contextlib.suppress(IndexNotFound):
                    report = Report(items=opened.info().items)
            elif dry_run:
                estimate = opened.estimate(*named, **wanted, skip_missing=listed)
            else:
                report = opened.add(
                    *named,
                    **wanted,
                    prune=prune,
                    retry=retry,
                    skip_missing=listed,
                    progress=display.on_run if display else None,
                )
    if dry_run:
        if as_json:
            output.write_json(estimate)
        else:
            for line in output.estimate_lines(estimate):
                output.write(line)
        return
    _finish(report, opened, as_json=as_json)


def _require_manifest(paths: Sequence[str]) -> None:
    """Raises UsageError where columns are named and no manifest is."""
    from mmsearch.indexers.manifests import is_manifest

    if not any(is_manifest(path) for path in paths):
        raise UsageError(
            "--text-column, --image-column and --id-column are for manifests, and none is among the PATHs; "
            "`mmsearch index` without PATH remembers the columns that were named"
        )


def _finish(report: Report, opened: Index, *, as_json: bool) -> None:
    from mmsearch import output
    from mmsearch.index import Index

    for line in output.report_lines(report):
        output.say(line)
    if report.added and not report.interrupted and not as_json:
        where = f" --index {shlex.quote(str(opened.path))}" if opened.path != Index().path else ""
        output.say(output.safe(f'now try: mmsearch query "a dog on the beach"{where}'))
    if as_json:
        output.write_json(report)
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


_QUERY, _HITS, _RANKING, _OUTPUT = "What to look for", "Which hits", "How to rank", "How to show them"

_EXAMPLES = """
mmsearch query "a dog on the beach"
mmsearch query "2:golden retriever + ./pool.jpg - fruit"    # combine, exclude
mmsearch query --image cat.jpg --where "year >= 2024 and not tag = draft"
mmsearch query id:17 --dedup --group folder                 # more like this
mmsearch query '"no entry"' --mode lexical                  # these words
mmsearch query ./scan.png --modality text                   # texts for it
mmsearch query 日落 --min-relevance 0.5 --sort date
mmsearch query sunset --diverse 0.3 --html hits.html --open
mmsearch query sunset -k 20 --offset 20 --copy-to best      # second page
mmsearch query sunset --paths0 | xargs -0 ls -l
mmsearch query "cat - dog" --fusion both --explain
mmsearch query "a dog on a boat" --rerank blip-itm --budget-ms 5000
"""


@app.command(cls=SignedCommand, epilog=_EXAMPLES)
def query(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="Clauses; see above.", show_default=False, rich_help_panel=_QUERY),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", metavar="PATH", help="A picture; repeatable.", rich_help_panel=_QUERY),
    ] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option("--plus", metavar="CLAUSE", help="One more clause; repeatable.", rich_help_panel=_QUERY),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option("--minus", metavar="CLAUSE", help="A clause to push away; repeatable.", rich_help_panel=_QUERY),
    ] = None,
    include_self: Annotated[
        bool,
        typer.Option(
            "--include-self",
            help="Keep the pictures and items of the query in its own answer.",
            rich_help_panel=_QUERY,
        ),
    ] = False,
    k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="K", help="How many hits at most.", rich_help_panel=_HITS)
    ] = 10,
    offset: Annotated[
        int, typer.Option(metavar="N", help="Pass over the N best: the next page.", rich_help_panel=_HITS)
    ] = 0,
    where: Annotated[
        str | None, typer.Option(metavar="FILTER", help="Only what passes; see above.", rich_help_panel=_HITS)
    ] = None,
    modality: Annotated[
        ModalityChoice | None,
        typer.Option(help="What to find; pictures by default, texts if there are no pictures.", rich_help_panel=_HITS),
    ] = None,
    min_relevance: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            help="Leave out hits of less relevance; 0.5 leaves out what is no match.",
            rich_help_panel=_HITS,
        ),
    ] = 0.0,
    dedup: Annotated[
        bool, typer.Option("--dedup", help="Only the best of near-duplicates.", rich_help_panel=_HITS)
    ] = False,
    group: Annotated[
        GroupChoice | None,
        typer.Option(help="Only the best hit of each file or folder; others are counted.", rich_help_panel=_HITS),
    ] = None,
    mode: Annotated[
        ModeChoice | None,
        typer.Option(
            help="By meaning (dense), by words (lexical), or by both (hybrid, the default).", rich_help_panel=_RANKING
        ),
    ] = None,
    fusion: Annotated[
        FusionChoice | None,
        typer.Option(
            help="Clauses as one vector (early, the default), as a ranking each (late), or both.",
            rich_help_panel=_RANKING,
        ),
    ] = None,
    diverse: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            help="How much hits are to differ from those before; 0.3 is a good start.",
            rich_help_panel=_RANKING,
        ),
    ] = 0.0,
    sort: Annotated[
        SortChoice, typer.Option(help="The order of the hits; date: newest first.", rich_help_panel=_RANKING)
    ] = SortChoice.relevance,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let a reranker of `mmsearch models` order the first hits anew; slower.",
            rich_help_panel=_RANKING,
        ),
    ] = None,
    depth: Annotated[
        int, typer.Option(metavar="N", help="How many are reranked at most.", rich_help_panel=_RANKING)
    ] = DEPTH,
    budget_ms: Annotated[
        int | None,
        typer.Option(
            metavar="MS",
            help="In how many milliseconds; what is not scored by then comes after what is.",
            rich_help_panel=_RANKING,
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say how each hit was found, and how long each stage took; with --json as a field of each hit.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per hit and line.", rich_help_panel=_OUTPUT)
    ] = False,
    paths0: Annotated[
        bool,
        typer.Option(
            "--paths0", help="Print paths only, each ended by a NUL character, for xargs -0.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a page with pictures that needs no other file.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show such a page in the browser.", rich_help_panel=_OUTPUT)
    ] = False,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Copy the files of the hits; nothing is overwritten.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    thumbnails: Annotated[
        bool | None,
        typer.Option(
            help="Pictures in the terminal; by default where it speaks the kitty protocol.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    index_path: IndexOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Search the index with words, pictures, items, or all of them.

    A QUERY is clauses with + and - between them: 2:golden retriever + ./pool.jpg - fruit. A clause is words, the path
    of a picture (beginning with ./ ../ / or ~/) or an item (id:17, more like this; --json shows ids), with a weight
    before it if it is to count more. Quotes make exact phrases, and words of what would mean something else:
    '"rock - paper"'.

    A FILTER compares fields, with and, or, not, and parentheses: width >= 1000 and path ~ "*/beach/*"; taken in
    2024-05..2024-08; near(48.1, 11.5, 20km). Fields are path, folder, ext, modality, size, width, height, taken,
    modified, year, camera, lat, lon, tag and meta.NAME; operators are = != < <= > >= in, and ~ for globs.

    On a terminal: rank, score, relevance and path, for texts also the place in the file and a snippet. Elsewhere
    separated by tabs: rank, score, path; for texts also the fragment and the text. Control characters in file names
    are shown as escapes.

    On the same index: mmsearch explain shows where in a picture something is, mmsearch tag gives pictures tags to
    filter by, mmsearch dupes finds near-duplicates among all pictures.
    """
    from mmsearch.index import Index

    how = Showing(
        as_json=as_json,
        paths0=paths0,
        explain=explain,
        html=html,
        open=open_page,
        copy_to=copy_to,
        thumbnails=thumbnails,
        group=group.value if group else None,
        offset=offset,
    )
    if not (text or image or plus or minus):
        raise UsageError('say what to look for: mmsearch query "a red car", or mmsearch query --image PATH')
    with contextlib.ExitStack() as opening:
        display = opening.enter_context(progress_display()) if rerank is not None else None
        opened = opening.enter_context(
            Index(
                index_path,
                device=device,
                threads=threads,
                offline=offline,
                confirm=confirmation(display, yes=yes) if rerank is not None else None,
                download=display.on_download if display else None,
            )
        )
        answer = opened.search(
            _composed(text or (), image or ()),
            plus=plus or (),
            minus=minus or (),
            k=k,
            offset=offset,
            modality=modality.value if modality else None,
            where=where,
            mode=mode.value if mode else None,
            fusion=fusion.value if fusion else None,
            group=group.value if group else None,
            dedup=dedup,
            diverse=diverse,
            sort=sort.value,
            min_relevance=min_relevance,
            include_self=include_self,
            rerank=rerank,
            depth=depth,
            budget_ms=budget_ms,
        )
    show(answer, how)


def _composed(words: Sequence[str], images: Sequence[str]) -> Query | None:
    """The query of a command line: its words, and the pictures of `--image`."""
    from mmsearch.retrieval.query import ImageClause, Query, parse

    clauses = [*(parse(words).clauses if words else ()), *map(ImageClause, images)]
    return Query(tuple(clauses)) if clauses else None


@app.command()
def info(index_path: IndexOption = None, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Show what the index holds."""
    from mmsearch import output
    from mmsearch.index import Index

    with Index(index_path) as opened:
        found = opened.info()
    if as_json:
        output.write_json(found)
    else:
        output.write_info(found)


@app.command()
def models(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the model hub again, even if it did not answer today.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the bundled starter as an open_clip `local-dir:`."),
    ] = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the models and rerankers that can be used here."""
    from mmsearch import output

    if export is not None:
        from mmsearch.retrieval.encoders.export import export_open_clip

        folder = export_open_clip(export)
        output.write(output.safe(f"local-dir:{folder}"))
        return
    from mmsearch.retrieval.encoders.models import list_models
    from mmsearch.retrieval.rerank.models import list_rerankers

    found = list_models(offline=offline, refresh=refresh)
    asked = any(model.state in ("downloadable", "unavailable") for model in found)
    rerankers = list_rerankers(offline=offline, refresh=refresh and not asked)
    if as_json:
        for model in (*found, *rerankers):
            output.write_json(model)
    else:
        people = output.is_terminal(sys.stdout)
        output.write_models(found, people=people)
        output.write("")
        output.write_rerankers(rerankers, people=people)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to put the pictures.", show_default=False)
    ] = None,
    index_path: Annotated[
        Path | None,
        typer.Option("--index", metavar="DIR", help="Index folder; `index` in FOLDER by default, never your own."),
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Make a small folder of pictures, index it and search it. Works offline."""
    from mmsearch import output
    from mmsearch.demo import run

    run(folder, index_path=index_path, echo=output.write)
