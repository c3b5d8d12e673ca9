"""Several processes at one index: locks, dead writers, and readers that must see one generation each."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_kit import add, content_of, make, prepare
from survival_kit import command, start, state_of, wrong_answers

from mmsearch.retrieval.errors import IndexLocked
from mmsearch.retrieval.store import LocalStore, layout

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX locks and signals")


# Writers


def test_one_of_many_threads_gets_the_lock(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    together = threading.Barrier(8)
    done = threading.Event()
    errors: list[IndexLocked] = []

    def write(number: int) -> bool:
        together.wait(10)
        try:
            with store.writer() as writer:
                done.wait(10)
                add(writer, tmp_path, f"thread-{number}.jpg", f"{number}")
                writer.commit()
                return True
        except IndexLocked as error:
            errors.append(error)
            if len(errors) == 7:
                done.set()
            return False

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(write, range(8)))
    assert sum(wrote) == 1
    said = {str(error) for error in errors}  # the winner may not have written its name yet
    assert all(f"(pid {os.getpid()})" in line or "(pid unknown)" in line for line in said)
    assert f"thread-{wrote.index(True)}.jpg" in content_of(store)


def test_a_process_keeps_others_out_until_it_is_killed(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    before = content_of(store)
    with start("hold", store.path) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IndexLocked, match=rf"another mmsearch \(pid {holder.pid}\) is writing to .*; wait for it"):
            store.writer()
        with start("try_to_write", store.path) as other:
            said = other.communicate(timeout=60)[0]
        assert f"pid {holder.pid}" in said
        assert content_of(store) == before  # readers are not kept out
        holder.kill()
        assert holder.wait(60) == -signal.SIGKILL
    assert (store.path / layout.LOCK).read_text() == f"{holder.pid}\n"  # the dead writer's, and it binds nobody
    with store.writer() as writer:
        assert (store.path / layout.LOCK).read_text() == f"{os.getpid()}\n"
        add(writer, tmp_path, "after.jpg", "after")
        writer.commit()
    assert set(content_of(store)) == {*before, "after.jpg"}
    assert store.verify() == []


@pytest.mark.parametrize("garbage", [b"", b"\xff\xfe\0\0", b"12345\n" * 9000, "１２\n".encode(), b"-1", b"\x1b[2J7"])
def test_garbage_in_the_lock_file(tmp_path: Path, garbage: bytes) -> None:
    store = prepare(tmp_path / "index")
    lock = store.path / layout.LOCK
    lock.write_bytes(garbage)
    with store.writer():
        assert lock.read_text() == f"{os.getpid()}\n"
        lock.write_bytes(garbage)
        with pytest.raises(IndexLocked, match=r"another mmsearch \(pid (unknown|\d+)\) is writing to"):
            store.writer()
    with store.writer():
        pass


def test_a_lock_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    (store.path / layout.LOCK).unlink()
    with store.writer(), pytest.raises(IndexLocked):
        store.writer()


def test_the_same_index_is_made_by_several_at_once(tmp_path: Path) -> None:
    """All find none, one makes it, the others use what was made."""
    together = threading.Barrier(4)

    def create(number: int) -> LocalStore:
        together.wait(10)
        while True:
            try:
                return make(tmp_path / "index")
            except IndexLocked:
                continue

    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(create, range(4)))
    assert {store.identity for store in stores} == {"fake-1"}
    log = {"catalog.sqlite-shm", "catalog.sqlite-wal"}  # stays where a reader was the last to leave
    assert set(os.listdir(tmp_path / "index")) - log == {"catalog.sqlite", "lock", "segments"}
    with stores[0].writer() as writer:
        add(writer, tmp_path, "a.jpg", "a")
        writer.commit()
    assert [set(content_of(store)) for store in stores] == [{"a.jpg"}] * 4


# Readers


def _one_writer_and_many_readers(tmp_path: Path, seconds: float) -> int:
    """Returns the last generation."""
    store = make(tmp_path / "index")
    plans = tmp_path / "plans"
    plans.mkdir()
    (plans / "0.json").write_text("{}")
    stop = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        readers = [start("read_in_a_loop", store.path, plans) for _ in range(3)]
        try:
            assert all(reader.stdout is not None and reader.stdout.readline() == "ready\n" for reader in readers)
            threads = [pool.submit(wrong_answers, store.path, plans, stop.is_set) for _ in range(8)]
            with start("write_in_a_loop", store.path, plans, seconds) as writer:
                last = int(writer.communicate(timeout=seconds + 60)[0])
                assert writer.returncode == 0
        finally:
            stop.set()
            (plans / "stop").touch()
            outputs = [reader.communicate(timeout=60)[0] for reader in readers]
        answers = [thread.result() for thread in threads]
    answers += [(count, set(seen), wrong) for count, seen, wrong in map(json.loads, outputs)]
    for count, seen, wrong in answers:
        assert wrong == []
        assert count > 1
        assert len(seen) > 1, "the writer did not get on while this one read"
    assert store.verify() == []
    assert store.info().generation == last
    assert len(os.listdir(store.path / layout.SEGMENTS)) < 12, "merged away, in spite of the readers"
    return last


def test_every_answer_is_that_of_one_generation(tmp_path: Path) -> None:
    assert _one_writer_and_many_readers(tmp_path, 4) > 10


@pytest.mark.slow
def test_every_answer_is_that_of_one_generation_for_a_minute(tmp_path: Path) -> None:
    assert _one_writer_and_many_readers(tmp_path, 60) > 100


# Another user

SomebodyElse = Callable[..., dict[str, Any]]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, as pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        Path(folder).chmod(0o755)
        for path in Path(folder).rglob("*"):  # before the folder is removed by a user whom permissions bind
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


@pytest.fixture
def somebody_else() -> Iterator[SomebodyElse]:
    """Runs a command line of mmsearch as a user whom permissions bind."""
    with start("as_somebody_else") as process:
        assert process.stdin is not None and process.stdout is not None

        def run(*arguments: object) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            return dict(json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()
        assert process.wait(60) == 0


def _indexed(folder: Path, draw: Callable[..., Path]) -> tuple[Path, Path]:
    """Pictures and their index; both can be read by everybody, and written to by nobody but root."""
    pictures, index = folder / "pictures", folder / "index"
    draw(pictures / "red.png", "red")
    draw(pictures / "green.png", "green")
    assert command("index", str(pictures), "--model", "fake", "--index", str(index))["code"] == 0
    return pictures, index


def _make_read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_an_index_of_somebody_else_is_read_and_not_written_to(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    pictures, index = _indexed(open_folder, draw)
    draw(pictures / "blue.png", "blue")
    _make_read_only(open_folder)
    before = state_of(open_folder)
    for _ in range(2):
        found = somebody_else("query", "red", "--json", "--index", index)
        assert (found["code"], found["stderr"]) == (0, "")
        assert Path(json.loads(found["stdout"].splitlines()[0])["path"]).read_bytes()
        assert somebody_else("info", "--index", index)["code"] == 0
        for arguments in ((), (pictures,), (pictures / "blue.png",)):
            refused = somebody_else("index", *arguments, "--index", index)
            assert refused["code"] == 1
            assert refused["stdout"] == ""
            assert len(refused["stderr"].splitlines()) == 1
            assert f"cannot lock the index at {index}: Permission denied; check that you may" in refused["stderr"]
    assert state_of(open_folder) == before


def test_a_log_that_was_left_in_a_folder_of_somebody_else(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    """The writer died and the folder became read-only: the last commit is in the log, and it counts."""
    pictures, index = _indexed(open_folder, draw)
    with start("leave_a_log", index, pictures, "green.png") as writer:
        assert writer.wait(60) == 0
    assert (index / f"{layout.CATALOG}-wal").stat().st_size
    _make_read_only(open_folder)
    before = state_of(open_folder)
    found = somebody_else("query", "green", "--json", "--index", index)
    assert found["code"] == 0
    assert [json.loads(line)["uri"] for line in found["stdout"].splitlines()] == ["red.png"]
    refused = somebody_else("index", "--index", index)
    assert refused["code"] == 1
    assert len(refused["stderr"].splitlines()) == 1
    assert state_of(open_folder) == before


def test_a_log_that_cannot_be_read_in_a_folder_of_somebody_else(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    """SQLite cannot make the shared memory of the log there: the older generation must not pass for the newest."""
    pictures, index = _indexed(open_folder, draw)
    with start("leave_a_log", index, pictures, "green.png") as writer:
        assert writer.wait(60) == 0
    (index / f"{layout.CATALOG}-shm").unlink()
    _make_read_only(open_folder)
    before = state_of(open_folder)
    for arguments in (("query", "green"), ("info",), ("index",)):
        refused = somebody_else(*arguments, "--index", index)
        assert (refused["code"], refused["stdout"]) == (1, "")
        assert len(refused["stderr"].splitlines()) == 1
    assert state_of(open_folder) == before


def test_a_private_index_of_somebody_else(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    """As an index is made: its folder has mode 0700."""
    if os.getuid() != 0:
        pytest.skip("needs a second user")
    pictures, index = _indexed(open_folder, draw)
    before = state_of(open_folder)
    for arguments in (("query", "red"), ("info",), ("index", pictures), ("index",)):
        refused = somebody_else(*arguments, "--index", index)
        assert (refused["code"], refused["stdout"]) == (2, "")
        assert f"path '{index}' is not readable" in refused["stderr"]
    assert state_of(open_folder) == before


def test_an_index_whose_files_may_not_be_read(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    """As it is made, but for the mode of its folder. To make another one is the wrong advice."""
    _, index = _indexed(open_folder, draw)
    index.chmod(0o755)
    for name in (layout.CATALOG, layout.LOCK):
        (index / name).chmod(0o000)
    before = state_of(open_folder) if os.getuid() == 0 else {}
    for arguments in (("query", "red"), ("info",), ("index",)):
        refused = somebody_else(*arguments, "--index", index)
        assert (refused["code"], refused["stdout"]) == (1, "")
        assert "Permission denied" in refused["stderr"]
    assert os.getuid() != 0 or state_of(open_folder) == before


def test_pictures_of_somebody_else_that_may_not_be_read(
    open_folder: Path, draw: Callable[..., Path], somebody_else: SomebodyElse
) -> None:
    pictures = open_folder / "pictures"
    draw(pictures / "red.png", "red")
    draw(pictures / "secret.png", "green").chmod(0)
    draw(pictures / "closed" / "blue.png", "blue")
    (pictures / "closed").chmod(0)
    index = open_folder / "theirs"
    index.mkdir()
    index.chmod(0o777)
    ran = somebody_else("index", pictures, "--model", "fake", "--json", "--index", index)
    assert ran["code"] == 0
    report = json.loads(ran["stdout"])
    assert report["added"] == 1
    assert {Path(one["path"]).name: one["error"] for one in report["failed"]} == {
        "closed": "cannot be read: Permission denied",
        "secret.png": "cannot be read: Permission denied",
    }
    (pictures / "secret.png").chmod(0o644)
    (pictures / "closed").chmod(0o755)
    again = json.loads(somebody_else("index", "--json", "--index", index)["stdout"])
    assert (again["added"], again["unchanged"], again["failed"]) == (2, 1, [])
