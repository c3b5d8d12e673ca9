"""The commands that look after an index."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.cli.app import EXIT_ERROR, EXIT_INTERRUPTED, app
from mmsearch.cli.options import (
    BatchSizeOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    ModalityChoice,
    OfflineOption,
    PrecisionOption,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.talk import confirmation, progress_display
from mmsearch.retrieval.errors import UsageError

if TYPE_CHECKING:
    from mmsearch.retrieval.types import Failure, ItemInfo


@app.command("list")
def list_items(
    failed: Annotated[bool, typer.Option("--failed", help="What could not be indexed, with the reasons.")] = False,
    modality: Annotated[ModalityChoice, typer.Option(help="Which items.")] = ModalityChoice.all,
    index_path: IndexOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per item and line.")] = False,
    paths0: Annotated[
        bool, typer.Option("--paths0", help="Print paths only, each ended by a NUL character, for xargs -0.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """List what is in the index, each file once.

    --json lists every item: each piece of a text, each row of a manifest. Control characters in file names are shown
    as escapes; --paths0 prints the names as they are.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if as_json and paths0:
        raise UsageError("--json and --paths0 are two ways to print; take one")
    if failed and modality is not ModalityChoice.all:
        raise UsageError("what failed has no modality: leave out --modality or --failed")
    with Index(index_path) as opened:
        if failed:
            failures = opened.failures()
            _list_failures(failures, as_json=as_json, paths0=paths0)
            if not failures:
                output.say("nothing has failed")
            return
        found = False
        items = (item for item in opened.items() if modality.value in ("all", item.modality))
        for item, shown in _once(items, all_items=as_json):
            found = True
            if as_json:
                output.write_json(item)
            elif not paths0:
                output.write(output.safe(shown))
            elif item.path is not None:
                output.write_path0(shown)
    if not found:
        output.say("the index is empty" if modality is ModalityChoice.all else f"no {modality.value}s in the index")


def _list_failures(failures: Iterable[Failure], *, as_json: bool, paths0: bool) -> None:
    from mmsearch import output

    for failure in failures:
        if as_json:
            output.write_json(failure)
        elif not paths0:
            output.write(f"{output.safe(failure.path)}\t{output.safe(failure.error)}")
        elif os.path.lexists(failure.path):  # else it is a row of a manifest, or gone
            output.write_path0(failure.path)


def _once(items: Iterable[ItemInfo], *, all_items: bool) -> Iterator[tuple[ItemInfo, str]]:
    """Items with their paths (or uris, without a file); each of these once, unless all items are wanted."""
    seen: set[str] = set()
    for item in items:
        shown = os.fspath(item.path) if item.path is not None else item.uri
        if all_items or shown not in seen:
            yield item, shown
            seen.add(shown)


@app.command()
def remove(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH]...", help="Files, folders, manifests.", show_default=False)
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Of an item that a program gave; repeatable.")
    ] = None,
    index_path: IndexOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Take files and folders out of the index. The files themselves are not touched.

    Later runs pass over them, until they are named: `mmsearch index PATH` takes them back.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if not paths and not ids:
        raise UsageError("say what to remove: mmsearch remove PATH")
    with Index(index_path) as opened:
        removed = opened.remove(*paths or (), ids=ids or ())
        left = opened.info().items
    if as_json:
        output.write_json({"removed": removed, "items": left})
    else:
        done = f"{removed:,} removed" if removed else "nothing of that was in the index"
        output.say(f"{done}; {output.counted(left, 'item')} in the index")


@app.command()
def merge(index_path: IndexOption = None, as_json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Merge the segments of the index into one of each kind.

    Indexing merges what is worth it by itself; this takes all together and lets go of what was removed, at the price
    of copying everything once.
    """
    from mmsearch import output
    from mmsearch.index import Index

    with Index(index_path) as opened:
        merged = opened.merge()
        info = opened.info()
    if as_json:
        output.write_json({"merged": merged, "segments": info.segments, "bytes": info.bytes})
    elif merged:
        output.say(f"{output.counted(merged, 'segment')} merged; {output.counted(info.segments, 'segment')} now")
    else:
        output.say("nothing to merge")


@app.command()
def reindex(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model to change to.")],
    drop: Annotated[
        bool, typer.Option("--drop", help="Let go of what cannot be embedded again, such as missing pictures.")
    ] = False,
    index_path: IndexOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Change the index to another model.

    Everything is embedded again, then the index changes to the new model at once; searches go on with the old one
    meanwhile. Ctrl-C keeps what is done; the same command continues. The old model is not needed.
    """
    from mmsearch import output
    from mmsearch.index import Index

    with progress_display() as display:
        with Index(
            index_path,
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            offline=offline,
            confirm=confirmation(display, yes=yes),
            download=display.on_download if display else None,
        ) as opened:
            report = opened.reindex(model, drop=drop, progress=display.on_run if display else None)
    for line in output.reindex_lines(report):
        output.say(line)
    if as_json:
        output.write_json(report)
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    files: Annotated[bool, typer.Option("--files", help="Compare all files with the index too.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="With --repair: the index's model, where its catalog is lost."),
    ] = None,
    index_path: IndexOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check every byte of the index. Nothing is changed without --repair.

    Exit code 1 where something is damaged, and 0 where all is well, or mended by --repair.
    """
    from mmsearch import output
    from mmsearch.index import Index

    if repair and files:
        raise UsageError("--files only looks, and --repair mends the index itself: run one, then the other")
    if model is not None and not repair:
        raise UsageError("--model is for --repair: add it, or leave out --model")
    with progress_display() as display, Index(index_path) as opened:
        diagnosis = opened.doctor(
            repair=repair, files=files, model=model, progress=display.on_check if display else None
        )
    if as_json:
        output.write_json(diagnosis)
    else:
        output.write_diagnosis(diagnosis, people=output.is_terminal(sys.stdout), repair=repair)
    if not diagnosis.sound:
        raise typer.Exit(EXIT_ERROR)
