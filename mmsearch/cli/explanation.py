"""The command that shows where in a picture a query is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmsearch.cli.app import app
from mmsearch.cli.options import DeviceOption, IndexOption, JsonOption, OfflineOption, ThreadsOption, VerboseOption
from mmsearch.cli.talk import progress_display
from mmsearch.retrieval.errors import PathNotFound, UsageError


@app.command()
def explain(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in words.", show_default=False)],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .png to write.", show_default=False)],
    index_path: IndexOption = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Ask this model; by default that of the index.")
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show where in a picture something is: the picture in grey with a heat-map over it.

    Prints the score (the cosine of words and picture), the hottest place as x,y in pixels of what is written, and the
    file. The picture need not be in an index, and without an index the default model is asked. Every picture has a
    hottest place, one without the thing too: see the score.
    """
    from mmsearch import output
    from mmsearch.index import Index

    _check_target(out, image)
    with (
        progress_display() as display,
        Index(
            index_path,
            model=model or "auto",
            device=device,
            threads=threads,
            offline=offline,
            download=display.on_download if display else None,
        ) as opened,
    ):
        found = opened.heat_map(query, image)
    try:
        out.write_bytes(found.png())
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror or error}") from error
    width, height = found.picture.size
    x, y = (int(share * side) for share, side in zip(found.hottest, (width, height), strict=True))
    if as_json:
        output.write_json(
            {
                "path": os.path.abspath(out),
                "score": found.score,
                "hottest": [x, y],
                "size": [width, height],
                "half_of_heat": round(found.half_of_heat, 4),
                "method": found.method,
                "model": found.model,
            }
        )
    elif output.is_terminal(sys.stdout):
        output.write(output.safe(f"{found.score:.3f}  {out}"))
        hottest = f"hottest at {x},{y} of {width} x {height} pixels"
        half = f"half of the heat on {found.half_of_heat:.0%} of the picture"
        output.say(output.safe(f"{hottest}; {half} ({found.model}, {found.method})"))
    else:
        output.write(f"{found.score:.6f}\t{x},{y}\t{output.safe(str(out))}")


def _check_target(out: Path, image: Path) -> None:
    """Raises UsageError where a heat-map cannot be written to `out`, before a model is loaded for it."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file in it, such as {out / 'heat.png'}")
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out}: heat-maps are PNG files; end the name with .png")
    if not out.parent.is_dir():
        raise PathNotFound(f"the folder {out.parent} does not exist")
    if out.exists() and image.exists() and out.samefile(image):
        raise UsageError(f"{out} is the picture itself; write the heat-map to another file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UsageError(f"{out} cannot be written: permission denied")
