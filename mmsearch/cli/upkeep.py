"""The commands that look after an index."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mmsearch.cli.app import EXIT_ERROR, EXIT_INTERRUPTED, app
from mmsearch.cli.options import (
    DeviceOption,
    IndexOption,
    JsonOption,
    ModalityChoice,
    OfflineOption,
    ThreadsOption,
    VerboseOption,
    YesOption,
)
from mmsearch.cli.talk import confirmation, progress_display
from mmsearch.retrieval.errors import UsageError


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
    """List what is in the index, each file once; --json lists every item."""
    from mmsearch import output
    from mmsearch.index import Index

    if as_json and paths0:
        raise UsageError("--json and --paths0 are two ways to print; take one")
    with Index(index_path) as opened:
        if failed:
            for failure in opened.failures():
                if as_json:
                    output.write_json(failure)
                elif paths0:
                    if os.path.lexists(failure.path):  # else it is a row of a manifest, or gone
                        output.write_path0(failure.path)
                else:
                    output.write(f"{output.safe(failure.path)}\t{output.safe(failure.error)}")
            return
        last: tuple[object, object] | None = None
        for item in opened.items():
            if modality.value not in ("all", item.modality):
                continue
            if as_json:
                output.write_json(item)
                continue
            place = (item.path, item.uri)  # the chunks of a text follow each other
            if place == last or (paths0 and item.path is None):
                continue
            last = place
            shown = os.fspath(item.path) if item.path is not None else item.uri
            if paths0:
                output.write_path0(shown)
            else:
                output.write(output.safe(shown))


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
        output.say(f"{output.counted(removed, 'file')} removed; {output.counted(left, 'item')} in the index")


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
    precision: Annotated[
        str | None, typer.Option(metavar="TYPE", help="fp32, bf16 or fp16; chosen by default.")
    ] = None,
    threads: ThreadsOption = None,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Pictures per model call; chosen by default.")
    ] = None,
    offline: OfflineOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Embed everything again with another model, and change to it when all is done.

    Searches go on with the old model meanwhile. Ctrl-C keeps what is done; the same command continues. The old model
    is not needed.
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
        typer.Option("--model", metavar="NAME", help="The index's model, where its catalog is lost."),
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

    with Index(index_path) as opened:
        diagnosis = opened.doctor(repair=repair, files=files, model=model)
    if as_json:
        output.write_json(diagnosis)
    else:
        output.write_diagnosis(diagnosis, people=output.is_terminal(sys.stdout))
    if not diagnosis.sound:
        raise typer.Exit(EXIT_ERROR)
