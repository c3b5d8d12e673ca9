"""A writer that is killed at any step loses nothing that was committed and shows nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_kit import (
    change,
    content_of,
    enrich,
    flaws,
    make,
    prepare,
    reindex,
    run_scenario,
    segment_files,
    sql,
)

from mmsearch.retrieval.errors import IndexNotFound, IndexUnusable
from mmsearch.retrieval.store import LocalStore, Snapshot, is_index, layout

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

Run = Callable[[str, Path, int], tuple[int, list[str]]]

SEGMENT = ["create", "rows", "fsync", "rename", "folder-fsync"]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a scenario in a process of its own: (scenario, index, step to die at) to (exit code, steps)."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(here / "store_kit.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert server.stdin is not None and server.stdout is not None

    def ask(scenario: str, path: Path, fatal: int) -> tuple[int, list[str]]:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([scenario, str(path), fatal]) + "\n")
        server.stdin.flush()
        code, steps = json.loads(server.stdout.readline())
        return code, steps

    yield ask
    server.stdin.close()
    assert server.wait(30) == 0
    server.stdout.close()


def copy(index: Path, to: Path) -> LocalStore:
    shutil.copytree(index, to / index.name)
    return LocalStore.open(to / index.name)


def sound(store: LocalStore) -> None:
    assert flaws(store) == []
    with store.snapshot() as snapshot:
        items = sum(len(snapshot.item_ids(space)) for space in snapshot.counts)
        assert items == sum(snapshot.counts.values())


def files_named_by_catalog(store: LocalStore) -> set[str]:
    return {name for (name,) in sql(store, "SELECT filename FROM segments")}


@pytest.mark.parametrize("scenario", ["commit", "merge"])
def test_killed_at_every_step(run: Run, tmp_path: Path, scenario: str) -> None:
    original = prepare(tmp_path / "index")
    before = content_of(original)
    whole = copy(original.path, tmp_path / "whole")
    code, steps = run(scenario, whole.path, -1)
    after = content_of(whole)
    assert code == 0
    assert (after == before) == (scenario == "merge")
    segment = [f"segment:{name}" for name in SEGMENT]
    if scenario == "commit":
        assert steps == ["commit:segments", *segment, *segment, "commit:catalog", "commit:commit", "commit:done"]
    else:
        one = ["merge:segments", *segment, "merge:catalog", "merge:commit", "merge:unlink", "merge:done"]
        assert steps == one  # of the pictures; the texts have a single segment
    for fatal, step in enumerate(steps):
        store = copy(original.path, tmp_path / f"killed-{fatal}")
        code, reached = run(scenario, store.path, fatal)
        assert (code, reached[-1]) == (-signal.SIGKILL, step)
        published = step in ("commit:done", "merge:unlink", "merge:done")
        assert content_of(store) == (after if published else before), step
        sound(store)
        with store.writer():  # sweeps
            pass
        assert segment_files(store) == files_named_by_catalog(store), step
        code, _ = run(scenario, store.path, -1)
        assert code == (1 if scenario == "commit" and published else 0)  # moving what was moved is an error
        assert content_of(store) == after, step
        sound(store)


def test_killed_while_the_model_changes(run: Run, tmp_path: Path) -> None:
    original = prepare(tmp_path / "index")
    enrich(original)
    before = content_of(original)
    whole = copy(original.path, tmp_path / "whole")
    code, steps = run("reindex", whole.path, -1)
    after = content_of(whole)
    assert code == 0
    segment = [f"segment:{name}" for name in SEGMENT]
    staging = ["commit:segments", *segment, *segment, "commit:catalog", "commit:commit", "commit:done"]
    switching = ["switch:catalog", "switch:commit", "switch:unlink", "switch:done"]
    assert steps == staging + switching
    for fatal, step in enumerate(steps):
        store = copy(original.path, tmp_path / f"killed-{fatal}")
        code, reached = run("reindex", store.path, fatal)
        assert (code, reached[-1]) == (-signal.SIGKILL, step)
        switched = step in ("switch:unlink", "switch:done")
        assert content_of(store) == (after if switched else before), step
        assert LocalStore.open(store.path).identity == ("other-1" if switched else "fake-1")
        sound(store)
        with store.writer():  # sweeps
            pass
        assert segment_files(store) == files_named_by_catalog(store), step
        staged = step == "commit:done" or step.startswith("switch:")
        left = [] if switched else switching if staged else steps
        assert run("reindex", store.path, -1) == (0, left)  # what was embedded is not embedded again
        assert content_of(store) == after, step
        sound(store)


def test_killed_while_it_is_made(run: Run, tmp_path: Path) -> None:
    code, steps = run("create", tmp_path / "whole", -1)
    assert code == 0
    assert steps == ["create:folder", "create:catalog", "create:rename", "create:folder-fsync"]
    for fatal, step in enumerate(steps):
        path = tmp_path / f"killed-{fatal}"
        assert run("create", path, fatal) == (-signal.SIGKILL, steps[: fatal + 1])
        assert is_index(path) == (step == "create:folder-fsync")
        if not is_index(path):
            with pytest.raises(IndexNotFound):
                Snapshot.open(path)
        store = make(path)
        assert content_of(store) == {}
        assert not (path / layout.NEW_CATALOG).exists()


def test_killed_while_it_is_migrated(run: Run, tmp_path: Path) -> None:
    original = prepare(tmp_path / "index")
    before = content_of(original)
    code, steps = run("migrate", copy(original.path, tmp_path / "whole").path, -1)
    assert code == 0
    one, two = layout.FORMAT_VERSION + 1, layout.FORMAT_VERSION + 2
    assert steps == [f"migrate:{one}", f"migrate:{two}", "migrate:commit"]
    for fatal in range(len(steps)):
        store = copy(original.path, tmp_path / f"killed-{fatal}")
        assert run("migrate", store.path, fatal) == (-signal.SIGKILL, steps[: fatal + 1])
        assert run("migrate", store.path, -1) == (0, steps)
        assert run("migrate", store.path, -1) == (0, [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layout, "FORMAT_VERSION", two)
            assert content_of(store) == before


def test_killed_while_a_kept_index_is_migrated(run: Run, tmp_path: Path) -> None:
    sample = Path(__file__).parent / "samples" / "format-1"
    formats = range(2, layout.FORMAT_VERSION + 1)
    steps = [*(f"migrate:{number}" for number in formats), "migrate:commit"]
    shutil.copytree(sample, tmp_path / "whole")
    after = content_of(LocalStore.open(tmp_path / "whole"))
    for fatal in range(len(steps)):
        path = tmp_path / f"killed-{fatal}"
        shutil.copytree(sample, path)
        assert run("merge", path, fatal) == (-signal.SIGKILL, steps[: fatal + 1])
        store = LocalStore.open(path)
        assert content_of(store) == after
        sound(store)


@pytest.mark.parametrize("scenario", ["commit", "merge", "reindex"])
def test_a_full_disk_at_every_step_loses_nothing(tmp_path: Path, scenario: str) -> None:
    original = prepare(tmp_path / "index")
    before = content_of(original)
    names: list[str] = []
    run_scenario(scenario, copy(original.path, tmp_path / "whole").path, names.append)
    for fatal, step in enumerate(names):
        if step.endswith((":done", ":unlink")):
            continue  # after the commit nothing is written
        left = [fatal]

        def full(name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(28, "No space left on device")

        store = copy(original.path, tmp_path / f"full-{fatal}")
        with LocalStore.open(store.path, steps=full).writer() as writer:
            with pytest.raises(IndexUnusable, match="No space left on device; everything committed before is safe"):
                if scenario == "commit":
                    change(writer, store.path.parent)
                elif scenario == "merge":
                    writer.merge()
                else:
                    reindex(store, writer)
            assert content_of(store) == before, step
            if scenario == "commit":  # the same writer goes on once there is room
                change(writer, store.path.parent)
                writer.merge()
            elif scenario == "reindex":
                reindex(store, writer)
        sound(store)
        with store.writer():
            pass
        assert segment_files(store) == files_named_by_catalog(store), step


def test_the_order_of_writes_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows reach the medium before the name does, and the name before the catalog speaks of it."""
    from mmsearch.retrieval.store import segments
    from mmsearch.retrieval.store.catalog import Catalog

    store = prepare(tmp_path / "index")
    events: list[str] = []

    def spy(owner: object, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (events.append(name), real(*args))[1])

    spy(segments, "sync_file")
    spy(segments, "sync_folder")
    spy(segments.os, "replace")
    spy(Catalog, "commit")
    with store.writer() as writer:
        change(writer, store.path.parent)
        connection = writer._catalog.connection
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL: the log is synced at commit
    assert events == ["sync_file", "replace", "sync_folder"] * 2 + ["commit"]
