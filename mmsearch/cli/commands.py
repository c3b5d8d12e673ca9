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

from mmsearch.cli.app import EXIT_INTERRUPTED, app
from mmsearch.cli.options import (
    BatchSizeOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    ModalityChoice,
    ModelOption,
    OfflineOption,
    PrecisionOption,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.talk import confirmation, progress_display
from mmsearch.retrieval.errors import IndexNotFound, UsageError

if TYPE_CHECKING:
    from mmsearch.index import Index
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


@app.command()
def query(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.", show_default=False)] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="PATH", help="A picture to look for, instead of words.")
    ] = None,
    k: Annotated[int, typer.Option("--top-k", "-k", metavar="K", help="How many hits at most.")] = 10,
    modality: Annotated[
        ModalityChoice | None,
        typer.Option(help="What to find; pictures by default, texts if there are no pictures."),
    ] = None,
    include_self: Annotated[
        bool, typer.Option("--include-self", help="Keep the picture of --image in its own answer.")
    ] = False,
    index_path: IndexOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    offline: OfflineOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per hit and line.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Search the index with words or with a picture.

    On a terminal: rank, score and path, for texts a snippet. Elsewhere the same separated by tabs (rank, score,
    path; for texts also the fragment and the text). Control characters in file names are shown as escapes.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if (text is None) == (image is None):
        raise UsageError('say what to look for: mmsearch query "a red car", or mmsearch query --image PATH')
    with Index(index_path, device=device, threads=threads, offline=offline) as opened:
        hits = opened.search(
            text, image=image, k=k, modality=modality.value if modality else None, include_self=include_self
        )
    if as_json:
        for hit in hits:
            output.write_json(hit)
        return
    output.write_hits(hits, people=output.is_terminal(sys.stdout))
    if not hits:
        output.say("nothing found")


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
    """List the models that can be used here."""
    from mmsearch import output

    if export is not None:
        from mmsearch.retrieval.encoders.export import export_open_clip

        folder = export_open_clip(export)
        output.write(output.safe(f"local-dir:{folder}"))
        return
    from mmsearch.retrieval.encoders.models import list_models

    found = list_models(offline=offline, refresh=refresh)
    if as_json:
        for model in found:
            output.write_json(model)
    else:
        output.write_models(found, people=output.is_terminal(sys.stdout))


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
