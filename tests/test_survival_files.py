"""What files do while they are indexed: clocks that jump, content that changes under the reader, odd and many names."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from survival_kit import command, start

import mmsearch
from mmsearch.indexers import readahead
from mmsearch.retrieval.store import LocalStore
from mmsearch.retrieval.types import Report

Draw = Callable[..., Path]
RED, GREEN, BLUE = b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"


def picture(pixel: bytes, side: int = 4) -> bytes:
    """All pictures of one side are files of one size."""
    return b"P6 %d %d 255\n" % (side, side) + pixel * side * side


def counts(report: Report) -> dict[str, int]:
    names = ("added", "updated", "moved", "copied", "removed", "unchanged", "kept")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def failed(report: Report) -> dict[str, str]:
    return {Path(failure.path).name: failure.error for failure in report.failed}


def best(index: mmsearch.Index, query: str) -> str:
    return index.search(query, k=1)[0].uri


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixel in (("a.ppm", RED), ("b.ppm", GREEN)):
        (folder / name).write_bytes(picture(pixel))
        os.utime(folder / name, (1_000_000_000, 1_000_000_000))
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[mmsearch.Index]:
    with mmsearch.open(tmp_path / "index", model="fake") as opened:
        yield opened


# Clocks


@pytest.mark.parametrize("mtime", [999_999_999, 1, 0, -1, -(2**31), 2**31, 2**32, 2**33])
def test_a_change_is_seen_whatever_time_it_bears(index: mmsearch.Index, photos: Path, mtime: int) -> None:
    """Of the same size, and older than what it replaces; or from before 1970, or from the future."""
    index.add(photos)
    (photos / "b.ppm").write_bytes(picture(BLUE))
    os.utime(photos / "b.ppm", (mtime, mtime))
    assert counts(index.add()) == {"updated": 1, "unchanged": 1}
    assert best(index, "blue") == "b.ppm"
    for _ in range(2):
        assert counts(index.add()) == {"unchanged": 2}
    os.utime(photos / "b.ppm", (mtime + 1, mtime + 1))  # touched only
    assert counts(index.add()) == {"unchanged": 2}


def test_a_time_beyond_the_range_of_the_catalog(index: mmsearch.Index, photos: Path) -> None:
    seconds = 2**33 + 2**30
    os.utime(photos / "b.ppm", (seconds, seconds))
    if os.stat(photos / "b.ppm").st_mtime_ns < 2**63:
        pytest.skip("the file system keeps no such time")
    report = index.add(photos)
    assert report.added + len(report.failed) == 2
    assert counts(index.add()) == {"unchanged": report.added}


@pytest.mark.parametrize("shift", [-86_400 * 400, -3600, -0.01, 3600])
def test_a_clock_that_is_wrong(
    index: mmsearch.Index, photos: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """The file system stamps by one clock, the run reads another; both jump back between two runs."""
    now = time.time_ns
    clock = time.time
    monkeypatch.setattr(time, "time_ns", lambda: now() + int(shift * 1e9))
    monkeypatch.setattr(time, "time", lambda: clock() + shift)
    (photos / "b.ppm").write_bytes(picture(GREEN))
    stamp = os.stat(photos / "b.ppm").st_mtime_ns
    assert counts(index.add(photos)) == {"added": 2}
    monkeypatch.undo()
    (photos / "b.ppm").write_bytes(picture(BLUE))
    os.utime(photos / "b.ppm", ns=(stamp - 86_400 * 10**9,) * 2)
    assert counts(index.add()) == {"updated": 1, "unchanged": 1}
    assert best(index, "blue") == "b.ppm"
    assert counts(index.add()) == {"unchanged": 2}


def test_a_write_in_the_tick_of_the_last_one(
    index: mmsearch.Index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the clock stands still no stamp can be trusted: the next write leaves it as it is."""
    stamp = 1_700_000_000_123_456_789
    os.utime(photos / "b.ppm", ns=(stamp, stamp))
    monkeypatch.setattr(time, "time_ns", lambda: stamp)
    assert counts(index.add(photos)) == {"added": 2}
    (photos / "b.ppm").write_bytes(picture(BLUE))
    os.utime(photos / "b.ppm", ns=(stamp, stamp))
    assert counts(index.add()) == {"updated": 1, "unchanged": 1}
    assert best(index, "blue") == "b.ppm"


def test_a_second_write_in_the_second_of_a_memory_card(index: mmsearch.Index, photos: Path) -> None:
    """FAT keeps every other second only."""
    second = int(time.time())
    os.utime(photos / "b.ppm", (second, second))
    assert counts(index.add(photos)) == {"added": 2}
    (photos / "b.ppm").write_bytes(picture(BLUE))
    os.utime(photos / "b.ppm", (second, second))
    assert counts(index.add()) == {"updated": 1, "unchanged": 1}
    assert best(index, "blue") == "b.ppm"


# Files that change under the reader

Meanwhile = Callable[[Callable[[str], None]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Lets something happen to each file (by its path) after its content was read, and before that is used."""
    read = readahead._content

    def set_up(what: Callable[[str], None]) -> None:
        def content(file: BinaryIO, size: int) -> bytes:
            found = read(file, size)
            what(str(file.name))
            return found

        monkeypatch.setattr(readahead, "_content", content)

    return set_up


def once_for(name: str, change: Callable[[Path], object]) -> Callable[[str], None]:
    """Changes the file of that name, the first time that it is read."""
    done: list[str] = []

    def what(path: str) -> None:
        if os.path.basename(path) == name and not done:
            done.append(path)
            change(Path(path))

    return what


def always_for(name: str, change: Callable[[Path], object]) -> Callable[[str], None]:
    def what(path: str) -> None:
        if os.path.basename(path) == name:
            change(Path(path))

    return what


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(picture(BLUE)), id="same size"),
        pytest.param(lambda path: path.write_bytes(picture(BLUE, 9)), id="grows"),
        pytest.param(lambda path: path.write_bytes(picture(BLUE, 2)), id="shrinks"),
    ],
)
def test_a_file_that_changes_once_while_it_is_read(
    index: mmsearch.Index, photos: Path, meanwhile: Meanwhile, change: Callable[[Path], object]
) -> None:
    meanwhile(once_for("b.ppm", change))
    assert counts(index.add(photos)) == {"added": 2}
    assert best(index, "blue") == "b.ppm"
    assert counts(index.add()) == {"unchanged": 2}


@pytest.mark.parametrize("change", [append, lambda path: os.truncate(path, path.stat().st_size - 1)])
def test_a_file_that_never_holds_still(
    index: mmsearch.Index,
    photos: Path,
    meanwhile: Meanwhile,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
) -> None:
    index.add(photos)
    os.utime(photos / "b.ppm", (5, 5))
    meanwhile(always_for("b.ppm", change))
    report = index.add()
    assert counts(report) == {"unchanged": 1}
    assert failed(report) == {"b.ppm": "it is being written to; the next run tries again"}
    assert best(index, "green") == "b.ppm"  # what was there is kept
    monkeypatch.undo()
    (photos / "b.ppm").write_bytes(picture(BLUE))
    report = index.add()
    assert (counts(report), report.failed) == ({"updated": 1, "unchanged": 1}, ())
    assert best(index, "blue") == "b.ppm"


def test_a_file_that_is_replaced_while_it_is_read(index: mmsearch.Index, photos: Path, meanwhile: Meanwhile) -> None:
    """As editors save: the old content is read whole, and the new one is found by the next run."""

    def replace(path: Path) -> None:
        other = path.with_name(".new")
        other.write_bytes(picture(BLUE))
        os.utime(other, (1_000_000_000, 2_000_000_000))
        other.rename(path)

    meanwhile(once_for("b.ppm", replace))
    assert counts(index.add(photos)) == {"added": 2}
    assert best(index, "green") == "b.ppm" or best(index, "blue") == "b.ppm"
    index.add()
    assert best(index, "blue") == "b.ppm"
    assert counts(index.add()) == {"unchanged": 2}


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "it vanished before it could be read"),
        (_pipe, "it is no file any more"),
        (_folder, "it is no file any more"),
        (_device, "it is no file any more"),
    ],
)
def test_a_file_that_becomes_something_else_before_it_is_read(
    index: mmsearch.Index,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    """Between the scan and the read: nothing hangs, the others are indexed, what was in the index is kept."""
    index.add(photos)
    for name in ("b.ppm", "c.ppm"):
        (photos / name).write_bytes(picture(BLUE))
    read = readahead.read_file

    def read_file(ref: Any, max_tokens: int | None) -> readahead.ReadFile:
        if ref.uri == "b.ppm" and os.path.isfile(ref.path):
            change(Path(ref.path))
        return read(ref, max_tokens)

    monkeypatch.setattr("mmsearch.indexers.ingest.read_file", read_file)
    report = index.add()
    assert counts(report) == {"added": 1, "unchanged": 1}
    assert failed(report) == {"b.ppm": reason}
    assert best(index, "green") == "b.ppm"
    monkeypatch.undo()
    report = index.add()  # by then a scan has seen that it is no file
    assert (counts(report), report.failed) == ({"unchanged": 2, "removed": 1}, ())
    assert {hit.uri for hit in index.search("green")} == {"a.ppm", "c.ppm"}


def test_a_link_that_leads_to_itself(index: mmsearch.Index, photos: Path) -> None:
    """No scan can see what is there, so what was there is kept."""
    index.add(photos)
    (photos / "b.ppm").unlink()
    (photos / "b.ppm").symlink_to("b.ppm")
    for _ in range(2):
        report = index.add()
        assert counts(report) == {"unchanged": 1}
        assert failed(report) == {"b.ppm": f"cannot be read: {os.strerror(errno.ELOOP)}"}
        assert best(index, "green") == "b.ppm"


def test_a_log_that_is_written_all_the_time(index: mmsearch.Index, photos: Path) -> None:
    """Runs beside a writer that never stops: each says what it has, and the one after it has all."""
    log = photos / "log.txt"
    log.write_text("begin\n")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with open(log, "a") as file:
                file.write(f"line {number}\n")
            time.sleep(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            report = index.add(photos)
            assert set(failed(report).values()) <= {"it is being written to; the next run tries again"}
    finally:
        stop.set()
        writer.join()
    assert index.add(photos).failed == ()
    text = "".join(hit.text or "" for hit in index.search("line", k=10_000, modality="text"))
    assert log.read_text().splitlines()[-1] in text
    assert index.add(photos).unchanged == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ETIMEDOUT])
def test_a_disk_that_fails_while_a_file_is_read(
    index: mmsearch.Index, photos: Path, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    index.add(photos)
    (photos / "b.ppm").write_bytes(picture(BLUE))
    (photos / "c.ppm").write_bytes(picture(BLUE, 5))

    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    meanwhile(always_for("b.ppm", fail))
    for expected in ({"added": 1, "unchanged": 1}, {"unchanged": 2}):
        report = index.add()
        assert counts(report) == expected
        assert failed(report) == {"b.ppm": f"cannot be read: {os.strerror(number)}"}
        assert best(index, "green") == "b.ppm"
    monkeypatch.undo()
    report = index.add()
    assert (counts(report), report.failed) == ({"updated": 1, "unchanged": 2}, ())


def test_a_file_that_memory_cannot_hold(index: mmsearch.Index, photos: Path, meanwhile: Meanwhile) -> None:
    def fail(path: Path) -> None:
        raise MemoryError

    meanwhile(always_for("b.ppm", fail))
    report = index.add(photos)
    assert counts(report) == {"added": 1}
    assert failed(report) == {"b.ppm": "not enough memory to read it"}


# Many files


def test_ten_thousand_files_of_equal_content(index: mmsearch.Index, tmp_path: Path) -> None:
    folder = tmp_path / "equal"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number:05}.ppm").write_bytes(picture(RED))
        os.utime(folder / f"{number:05}.ppm", (10**9, 10**9))
    report = index.add(folder)
    assert (counts(report), report.items) == ({"added": 1, "copied": 9999}, 10_000)
    store = LocalStore.open(index.path)
    (segment,) = (store.path / "segments").iterdir()
    assert segment.stat().st_size < 10_000  # one row
    hits = index.search("red", k=20_000)
    assert [hit.uri for hit in hits] == [f"{number:05}.ppm" for number in range(10_000)]
    assert len({hit.score for hit in hits}) == 1
    (folder / "00000.ppm").unlink()
    (folder / "00700.ppm").write_bytes(picture(BLUE))
    assert counts(index.add()) == {"updated": 1, "removed": 1, "unchanged": 9998}
    uris = [hit.uri for hit in index.search("red", k=20_000)]
    assert (len(uris), uris[0], uris[-1]) == (9999, "00001.ppm", "00700.ppm")
    assert store.verify() == []


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path: Path) -> None:
    """Prints how long they take and the most memory that was in use; the second run finds all unchanged."""
    folder = tmp_path / "many"
    for number in range(100_000):
        path = folder / f"{number // 1000:03}" / f"{number:06}.ppm"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(b"P6 2 2 255\n" + number.to_bytes(3, "big") * 4)
    for expected in ({"added": 100_000}, {"unchanged": 100_000}):
        with start("index_and_measure", folder, tmp_path / "index") as process:
            report, seconds, peak = json.loads(process.communicate(timeout=1800)[0])
        sys.stdout.write(f"{expected}: {seconds:.1f} s, at most {peak / 2**20:.0f} MiB\n")
        assert {name: report[name] for name in expected} == expected
        assert report["failed"] == []
        assert peak < 2**30
    assert LocalStore.open(tmp_path / "index").verify() == []


# Long and odd paths

PATH_MAX = 4096
"""Linux's, with the zero at the end."""


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Callable[[int], bytes]]:
    """Makes a picture at a path of exactly that many bytes below `tmp_path`, of folders with names of 255."""
    top = os.open(tmp_path, os.O_RDONLY)
    opened = [top]

    def make(length: int) -> bytes:
        folder, at = os.fsencode(tmp_path), top
        while length - len(folder) > 300:
            name = b"d" * min(255, length - len(folder) - 40)
            try:
                os.mkdir(name, dir_fd=at)
            except FileExistsError:
                pass
            at = os.open(name, os.O_RDONLY, dir_fd=at)
            opened.append(at)
            folder += b"/" + name
        name = b"f" * (length - len(folder) - 5) + b".ppm"
        file = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=at)
        os.write(file, picture(RED))
        os.close(file)
        path = folder + b"/" + name
        assert len(path) == length
        return path

    yield make
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other limits")
@pytest.mark.parametrize("length", [4000, PATH_MAX - 1])
def test_paths_as_long_as_the_system_takes(tmp_path: Path, deep: Callable[[int], bytes], length: int) -> None:
    path = deep(length)
    index = ("--index", str(tmp_path / "index"))
    ran = command("index", str(tmp_path), "--model", "fake", "--json", *index)
    report = json.loads(ran["stdout"])
    assert (ran["code"], report["added"], report["failed"]) == (0, 1, [])
    (line,) = command("query", "red", "--json", *index)["stdout"].splitlines()
    found = os.fsencode(json.loads(line)["path"])
    assert found == path
    with open(found, "rb") as file:
        assert file.read() == picture(RED)
    assert json.loads(command("index", "--json", *index)["stdout"])["unchanged"] == 1
    assert os.fsdecode(path) in command("query", "red", *index)["stdout"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other limits")
@pytest.mark.parametrize("length", [PATH_MAX, PATH_MAX + 2000])
def test_paths_that_are_too_long_are_reported(tmp_path: Path, deep: Callable[[int], bytes], length: int) -> None:
    deep(length)
    near = os.fsdecode(deep(PATH_MAX - 1))
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        report = index.add(tmp_path)
        assert counts(report) == {"added": 1}
        (failure,) = report.failed
        assert failure.error == f"cannot be read: {os.strerror(errno.ENAMETOOLONG)}"
        assert [str(hit.path) for hit in index.search("red")] == [near]
        report = index.add()
        assert counts(report) == {"unchanged": 1}
        assert report.failed == (failure,)


def test_every_awkward_file_is_indexed_or_failed(shared: Path, tmp_path: Path) -> None:
    folder = shared / "awkward"
    index = ("--index", str(tmp_path / "index"))
    first = command("index", str(folder), "--model", "fake", "--json", *index)
    report = json.loads(first["stdout"])
    assert first["code"] == 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    done = report["added"] + report["copied"] + len(report["failed"]) + sum(report["skipped"].values())
    assert done == len(files)
    assert all(one["error"] and len(one["error"].splitlines()) == 1 for one in report["failed"])
    assert "Traceback" not in first["stderr"]
    second = json.loads(command("index", "--json", *index)["stdout"])
    assert second["failed"] == report["failed"]
    assert second["unchanged"] == report["added"] + report["copied"]
    assert {name: second[name] for name in ("added", "updated", "moved", "copied", "removed", "kept")} == dict.fromkeys(
        ("added", "updated", "moved", "copied", "removed", "kept"), 0
    )
    assert second["items"] == report["items"]
    found = command("query", "red", "--json", "--modality", "all", "-k", "1000", *index)["stdout"].splitlines()
    assert len(found) == report["items"]
    for line in found:
        assert Path(json.loads(line)["path"]).read_bytes()
