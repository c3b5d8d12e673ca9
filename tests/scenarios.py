"""What the tests of faults do to an index: each scenario prepares one, then changes it in the run that is disturbed.

A new one is a function and a line in `SCENARIOS`. Runs have to be such that a second one, after a first that was cut
short or that was not, ends in the same state; and they make the same calls in the same order each time.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image
from store_kit import (
    OTHER,
    TOKENS,
    add,
    add_tokens,
    change,
    content_of,
    enrich,
    enrich_with_tokens,
    make,
    prepare,
    reindex,
    tokens_in,
)

from mmsearch.indexers import ingest, tokens
from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import index_sources
from mmsearch.indexers.rescan import rescan_sources
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.store import LocalStore, is_index, layout

Steps = Callable[[str], None]
_SHAPE = (2, 3)
State = dict[str, Any] | None
"""All that readers can see of an index, as JSON can hold it; None where there is no index."""

PUBLISHED = ("create:done", "commit:done", "merge:unlink", "switch:unlink", "tokens:unlink")
"""The steps that come right after something was published, and is on the medium."""


@dataclass(frozen=True)
class Scenario:
    """A change of an index.

    Attributes:
        prepare: makes what the run starts from: (folder that is copied for every run, folder that all share).
        run: changes the index at this path; tells its steps as the store does.
        index: the index in the copied folder.
    """

    prepare: Callable[[Path, Path], object]
    run: Callable[[Path, Steps], object]
    index: str = "index"


def quietly(name: str) -> None:
    """Steps that nobody wants to hear."""


def state_of(index: Path) -> State:
    """What readers see now, and the format that they found. Migrates."""
    if not is_index(index):
        return None
    connection = sqlite3.connect(index / layout.CATALOG)
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()
    store = LocalStore.open(index)
    info = store.info()
    made = FakeEncoder(tokens=_SHAPE).token_identity
    having = {identity: tokens_in(store, identity) for identity in (TOKENS, "other-tokens", str(made))}
    with store.snapshot() as snapshot:
        records = {record.item_id: record.uri for record in snapshot.all_items()}
        tags = {records[item_id]: tags for item_id, tags in snapshot.tags(list(records)).items()}
    state = {
        "format": found,
        "model": store.identity,
        "items": {uri: sorted(items, key=repr) for uri, items in sorted(content_of(store).items())},
        "tags": dict(sorted(tags.items())),
        "tokens": {identity: rows for identity, rows in having.items() if any(rows.values())},
        "failed": [os.path.basename(failure.path) for failure in info.failed],
    }
    plain: dict[str, Any] = json.loads(json.dumps(state))
    return plain


def _nothing(place: Path, shared: Path) -> None:
    pass


def _index(place: Path, shared: Path) -> None:
    prepare(place / "index")


def _create(index: Path, steps: Steps) -> None:
    make(index, steps)


def _commit(index: Path, steps: Steps) -> None:
    store = LocalStore.open(index, steps=steps)
    done = "moved.jpg" in content_of(store)
    with store.writer() as writer:
        if not done:  # what was moved cannot be moved again
            change(writer, index.parent)


def _start(index: Path, steps: Steps) -> None:
    """A first index, in folders that are not there yet."""
    store = make(index, steps)
    steps("create:done")
    with store.writer() as writer:
        add(writer, index.parent, "first.jpg", "first")
        writer.commit()


def _several(place: Path, shared: Path) -> None:
    """Segments of both spaces that a merge takes, in more than one merge."""
    with prepare(place / "index").writer() as writer:
        for number in range(3):
            add(writer, place, f"{number}.jpg", f"picture {number}")
            add(writer, place, f"{number}.txt", f"text {number}", modality="text")
            writer.commit()


def _merge(index: Path, steps: Steps) -> None:
    with LocalStore.open(index, steps=steps).writer() as writer:
        writer.merge()


def _rich(place: Path, shared: Path) -> None:
    enrich(prepare(place / "index"))


def _remove(index: Path, steps: Steps) -> None:
    with LocalStore.open(index, steps=steps).writer() as writer:
        for uri in ("a.jpg", "named.jpg", "never-there.jpg"):
            writer.take_out(str(index.parent), uri)
        writer.commit()
        writer.merge()


def _tag(index: Path, steps: Steps) -> None:
    with LocalStore.open(index, steps=steps).writer() as writer:
        writer.tag({1: {"red": 0.5}, 2: {"red": 0.75, "letter": 0.25}, 3: {}}, ["letter", "red"])
        writer.commit()


def _switch(index: Path, steps: Steps) -> None:
    store = LocalStore.open(index, steps=steps)
    if store.identity != OTHER["identity"]:
        with store.writer() as writer:
            reindex(store, writer)


def _tokened(place: Path, shared: Path) -> None:
    """Tokens in several files, of a removed picture too, and pictures that have none."""
    store = prepare(place / "index")
    enrich(store)
    enrich_with_tokens(store)
    with store.writer() as writer:
        for number in range(3):
            add(writer, place, f"{number}.jpg", f"picture {number}")
            if number:
                add_tokens(writer, f"picture {number}")
            writer.commit()
        writer.remove(str(place), ["c.jpg"])
        writer.commit()


def _tokens(index: Path, steps: Steps) -> None:
    """New pictures with tokens, and tokens for an old one; a merge; then tokens of a new kind take their place."""
    store = LocalStore.open(index, steps=steps)
    with store.writer() as writer:
        add(writer, index.parent, "new.jpg", "new")
        add_tokens(writer, "new", "picture 0")
        writer.commit()
        writer.merge()
        writer.drop_other_tokens("other-tokens")
        add_tokens(writer, "a", "new", identity="other-tokens")
        writer.commit()


def _old(place: Path, shared: Path) -> None:
    shutil.copytree(Path(__file__).parent / "samples" / "format-1", place / "index")


def _migrate(index: Path, steps: Steps) -> None:
    LocalStore.open(index, steps=steps)


class _AtOnce:
    """Does the work of a pool when it is submitted, so that every run reads, and commits, in the same order."""

    def __init__(self, threads: int, **options: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **options))
        return future

    def shutdown(self, **options: object) -> None:
        pass


def _paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), colour).save(path)


def _pictures(place: Path, shared: Path) -> None:
    """An index of a folder in which, since then, files were added, changed, moved, removed and damaged."""
    pictures = shared / "pictures"
    for colour in ("red", "green", "blue", "yellow"):
        _paint(pictures / f"{colour}.png", colour)
    (pictures / "rose.txt").write_text("a red rose", encoding="utf-8")
    (pictures / "sea.txt").write_text("the blue sea", encoding="utf-8")
    encoder = FakeEncoder()
    store = LocalStore.create(place / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    index_sources(open_sources([pictures], index_path=store.path), store, lambda: encoder)
    for colour in ("black", "white", "orange"):
        _paint(pictures / "new" / f"{colour}.png", colour)
    _paint(pictures / "green.png", "cyan")
    (pictures / "blue.png").rename(pictures / "new" / "blue.png")
    (pictures / "yellow.png").unlink()
    (pictures / "damaged.jpg").write_bytes(b"not a picture")
    (pictures / "rose.txt").unlink()
    (pictures / "sea.txt").write_text("the grey sea in winter", encoding="utf-8")
    (pictures / "new" / "snow.txt").write_text("white snow", encoding="utf-8")


def _update(index: Path, steps: Steps) -> None:
    """By an encoder that makes tokens since then: they are made of the pictures that stayed, too."""
    store = LocalStore.open(index, steps=steps)
    encoder = FakeEncoder(batch_size=2, tokens=_SHAPE)
    with (
        mock.patch.object(ingest, "ThreadPoolExecutor", _AtOnce),
        mock.patch.object(tokens, "ThreadPoolExecutor", _AtOnce),
    ):
        index_sources(
            rescan_sources(store),
            store,
            lambda: encoder,
            commit_seconds=0.0,
            complete=True,
            token_identity=encoder.token_identity,
        )


SCENARIOS = {
    "create": Scenario(_nothing, _create),
    "create-below": Scenario(_nothing, _start, index="new/folders/index"),
    "commit": Scenario(_index, _commit),
    "merge": Scenario(_several, _merge),
    "remove": Scenario(_rich, _remove),
    "tag": Scenario(_rich, _tag),
    "switch": Scenario(_rich, _switch),
    "tokens": Scenario(_tokened, _tokens),
    "migrate": Scenario(_old, _migrate),
    "index": Scenario(_pictures, _update),
}
