"""Options that several commands have."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ModalityChoice(StrEnum):
    """Values of `--modality`."""

    image = "image"
    text = "text"
    all = "all"


class ModeChoice(StrEnum):
    """Values of `--mode`."""

    dense = "dense"
    lexical = "lexical"
    hybrid = "hybrid"


class FusionChoice(StrEnum):
    """Values of `--fusion`."""

    early = "early"
    late = "late"
    both = "both"


class GroupChoice(StrEnum):
    """Values of `--group`."""

    file = "file"
    folder = "folder"


class SortChoice(StrEnum):
    """Values of `--sort`."""

    relevance = "relevance"
    date = "date"


def show_version(wanted: bool) -> None:
    """Prints the version and ends."""
    if wanted:
        from mmsearch import __version__

        typer.echo(f"mmsearch {__version__}")
        raise typer.Exit


def be_verbose(wanted: bool) -> None:
    """Lets the library's log through."""
    if wanted:
        logging.getLogger("mmsearch").setLevel(logging.DEBUG)


IndexOption = Annotated[
    Path | None,
    typer.Option("--index", envvar="MMSEARCH_INDEX", metavar="DIR", help="Index folder; yours by default."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str, typer.Option(metavar="NAME", help="Model: a preset of `mmsearch models`, or an open_clip tag.")
]
DeviceOption = Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda or mps; chosen by default.")]
PrecisionOption = Annotated[str | None, typer.Option(metavar="TYPE", help="fp32, bf16 or fp16; chosen by default.")]
BatchSizeOption = Annotated[int | None, typer.Option(metavar="N", help="Pictures per model call; chosen by default.")]
ThreadsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Threads to decode and to compute with; chosen by default.")
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a large download.")]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more on stderr.", callback=be_verbose, is_eager=True)
]
