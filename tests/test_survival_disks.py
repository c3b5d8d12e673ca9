"""Folders and drives that move, go, come back as something else, or are the wrong place for an index."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from survival_kit import command, state_of

import mmsearch
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.types import Report

Draw = Callable[..., Path]


def counts(report: Report) -> dict[str, int]:
    names = ("added", "updated", "moved", "copied", "removed", "unchanged", "kept")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def paths(index: mmsearch.Index) -> set[Path | None]:
    return {hit.path for hit in index.search("red", k=100)}


@pytest.fixture
def photos(tmp_path: Path, draw: Draw) -> Path:
    folder = tmp_path / "photos"
    for name, colour in (("a.png", "red"), ("trip/b.png", "green"), ("trip/c.png", "blue")):
        draw(folder / name, colour)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[mmsearch.Index]:
    with mmsearch.open(tmp_path / "index", model="fake") as opened:
        yield opened


# Moving


def test_a_folder_moves_with_its_index_and_a_second_root_does_not(tmp_path: Path, photos: Path, draw: Draw) -> None:
    draw(tmp_path / "elsewhere" / "d.png", "yellow")
    with mmsearch.open(photos / ".index", model="fake") as index:
        index.add(photos, tmp_path / "elsewhere")
    moved = tmp_path / "deeper" / "still" / "photos"
    moved.parent.mkdir(parents=True)
    photos.rename(moved)
    with mmsearch.open(moved / ".index") as index:
        assert paths(index) == {
            moved / "a.png",
            moved / "trip" / "b.png",
            moved / "trip" / "c.png",
            tmp_path / "elsewhere" / "d.png",
        }
        assert counts(index.add()) == {"unchanged": 4}
        assert counts(index.add(moved / "trip")) == {"unchanged": 2}
        assert {root.path for root in index.info().roots} == {str(moved), str(tmp_path / "elsewhere")}


def test_a_copy_of_a_folder_with_its_index_is_an_index_of_its_own(tmp_path: Path, photos: Path) -> None:
    with mmsearch.open(photos / ".index", model="fake") as index:
        index.add(photos)
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    (photos / "a.png").unlink()
    with mmsearch.open(copy / ".index") as index:
        assert paths(index) == {copy / "a.png", copy / "trip" / "b.png", copy / "trip" / "c.png"}
        assert counts(index.add()) == {"unchanged": 3}


def test_an_index_outside_its_root_moves_alone(tmp_path: Path, photos: Path) -> None:
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        index.add(photos)
    place = tmp_path / "other" / "place"
    place.parent.mkdir()
    (tmp_path / "index").rename(place)
    with mmsearch.open(place) as index:
        assert paths(index) == {photos / "a.png", photos / "trip" / "b.png", photos / "trip" / "c.png"}
        assert counts(index.add()) == {"unchanged": 3}


def test_an_index_that_is_taken_out_of_its_root_alone_keeps_what_it_has(tmp_path: Path, photos: Path) -> None:
    """Its root is where it lies now, and nothing is there: as with a drive that is not mounted."""
    with mmsearch.open(photos / ".index", model="fake") as index:
        index.add(photos)
    place = tmp_path / "backup" / ".index"
    place.parent.mkdir()
    (photos / ".index").rename(place)
    with mmsearch.open(place) as index:
        assert counts(index.add()) == {"kept": 3}
        assert len(index.search("red")) == 3
    place.rename(photos / ".index")  # and back
    with mmsearch.open(photos / ".index") as index:
        assert counts(index.add()) == {"unchanged": 3}


# Roots that go


@pytest.mark.parametrize("device", ["same", "other"])
def test_a_drive_that_is_not_mounted(
    index: mmsearch.Index, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Its mount point is an empty folder, of whatever device."""
    index.add(photos)
    photos.rename(tmp_path / "unplugged")
    photos.mkdir()
    if device == "other":
        stat = os.stat

        def elsewhere(path: Any, **how: Any) -> os.stat_result:
            found = stat(path, **how)
            return (
                os.stat_result((*found[:2], found.st_dev + 1, *found[3:])) if path in (str(photos), photos) else found
            )

        monkeypatch.setattr(os, "stat", elsewhere)
    for arguments in ((), (photos,), (photos,)):
        assert counts(index.add(*arguments)) == {"kept": 3}
    monkeypatch.undo()
    photos.rmdir()
    (tmp_path / "unplugged").rename(photos)
    assert counts(index.add()) == {"unchanged": 3}


def _file(place: Path) -> None:
    place.write_bytes(b"no folder")


def _dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def _link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def _pipe(place: Path) -> None:
    os.mkfifo(place)


def _nothing(place: Path) -> None:
    pass


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize("put", [_nothing, _file, _dangling_link, _link_to_itself, _pipe])
def test_a_root_with_something_else_in_its_place(
    index: mmsearch.Index, photos: Path, tmp_path: Path, draw: Draw, put: Callable[[Path], None]
) -> None:
    """Runs keep what they cannot see, go on with the other roots, and find all again when it is back."""
    other = draw(tmp_path / "other" / "d.png", "yellow").parent
    index.add(photos, other)
    photos.rename(tmp_path / "away")
    put(photos)
    draw(other / "e.png", "orange")
    assert counts(index.add()) == {"added": 1, "unchanged": 1, "kept": 3}
    assert counts(index.add()) == {"unchanged": 2, "kept": 3}
    assert {root.path: root.present for root in index.info().roots} == {str(photos): False, str(other): True}
    if put is not _file:
        ran = command("index", str(photos), "--index", str(index.path))
        assert ran["code"] == 2
        assert len(ran["stderr"].splitlines()) == 1
    if put is not _nothing:
        photos.unlink()
    (tmp_path / "away").rename(photos)
    assert counts(index.add()) == {"unchanged": 5}


def test_a_root_that_a_link_to_it_takes_the_place_of(index: mmsearch.Index, photos: Path, tmp_path: Path) -> None:
    """The folder moved to a larger disk, and a link was left in its place."""
    index.add(photos)
    photos.rename(tmp_path / "larger")
    photos.symlink_to(tmp_path / "larger")
    assert counts(index.add()) == {"unchanged": 3}
    assert counts(index.add(photos)) == {"unchanged": 3}
    assert paths(index) == {photos / "a.png", photos / "trip" / "b.png", photos / "trip" / "c.png"}


def test_a_root_that_another_folder_takes_the_place_of(
    index: mmsearch.Index, photos: Path, tmp_path: Path, draw: Draw
) -> None:
    """On the same drive it is the user's will: what is not there is gone."""
    index.add(photos)
    photos.rename(tmp_path / "away")
    draw(photos / "a.png", "purple")
    draw(photos / "new.png", "pink")
    assert counts(index.add()) == {"added": 1, "updated": 1, "removed": 2}
    shutil.rmtree(photos)
    (tmp_path / "away").rename(photos)
    assert counts(index.add()) == {"added": 2, "updated": 1, "removed": 1}


# Halves of trees


def test_half_of_a_tree_is_deleted(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos)
    shutil.rmtree(photos / "trip")
    assert counts(index.add()) == {"unchanged": 1, "removed": 2}


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ENOENT])
def test_half_of_a_tree_that_cannot_be_listed(
    index: mmsearch.Index, photos: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A failing disk, a lost server: only what is said to be gone is gone."""
    index.add(photos)
    scandir = os.scandir

    def fail(path: Any) -> Any:
        if os.fspath(path) == str(photos / "trip"):
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    report = index.add()
    if number == errno.ENOENT:  # deleted after it was listed
        assert (counts(report), report.failed) == ({"unchanged": 1, "removed": 2}, ())
        return
    assert counts(report) == {"unchanged": 1}
    assert [failure.path for failure in report.failed] == [str(photos / "trip")]
    monkeypatch.undo()
    assert counts(index.add()) == {"unchanged": 3}


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[[Path], Callable[[], None]]]:
    """Mounts a small drive at a folder; what it returns takes it away. Needs root on Linux."""
    mounted: list[Path] = []

    def unmount(place: Path) -> None:
        subprocess.run(["umount", place], check=True)
        mounted.remove(place)

    def mount(place: Path) -> Callable[[], None]:
        try:
            command = ["mount", "-t", "tmpfs", "-o", "size=4m", "mmsearch-test", place]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("nothing can be mounted here")
        mounted.append(place)
        return lambda: unmount(place)

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=False)


def test_a_real_drive_comes_and_goes(
    index: mmsearch.Index, tmp_path: Path, draw: Draw, drive: Callable[[Path], Callable[[], None]]
) -> None:
    root = tmp_path / "drive"
    root.mkdir()
    unmount = drive(root)
    for colour in ("red", "green"):
        draw(root / f"{colour}.png", colour)
    assert counts(index.add(root)) == {"added": 2}
    unmount()
    draw(root / "under.png", "blue")  # what is under a mount point is not what was on the drive
    for arguments in ((), (root,)):
        report = index.add(*arguments)
        assert report.kept == 2
        assert report.removed == 0
    (root / "under.png").unlink()
    drive(root)
    for colour in ("red", "green"):
        draw(root / f"{colour}.png", colour)
    report = index.add()
    assert report.items == 2
    assert {hit.uri for hit in index.search("red")} == {"red.png", "green.png"}


def test_a_real_drive_inside_a_root_comes_and_goes(
    index: mmsearch.Index, photos: Path, draw: Draw, drive: Callable[[Path], Callable[[], None]]
) -> None:
    inner = photos / "usb"
    inner.mkdir()
    unmount = drive(inner)
    draw(inner / "d.png", "yellow")
    assert counts(index.add(photos)) == {"added": 4}
    unmount()
    assert counts(index.add()) == {"unchanged": 3, "kept": 1}


def test_an_index_on_a_drive_that_is_full(
    tmp_path: Path, photos: Path, draw: Draw, drive: Callable[[Path], Callable[[], None]]
) -> None:
    """A real full disk: the run says so, what was committed stays, and it goes on when there is room."""
    place = tmp_path / "small"
    place.mkdir()
    drive(place)
    index = ("--index", str(place / "index"))
    assert command("index", str(photos), "--model", "fake", *index)["code"] == 0
    ballast = place / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    draw(photos / "new.png", "orange")
    (photos / "long.txt").write_text("A sentence that is to be found. " * 4000)
    ran = command("index", *index)
    assert ran["code"] == 1
    assert len(ran["stderr"].splitlines()) == 1
    assert "everything committed before is safe" in ran["stderr"]
    assert len(command("query", "red", *index)["stdout"].splitlines()) == 3
    ballast.unlink()
    assert command("index", *index)["code"] == 0
    assert len(command("query", "red", *index)["stdout"].splitlines()) == 4


# Where an index may lie

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:40 / {place}/nfs rw - nfs4 server:/export rw
24 22 0:41 / {place}/cifs rw - cifs //server/share rw
25 22 0:42 / {place}/sshfs rw - fuse.sshfs me@there:/home rw
26 22 8:1 /srv/data {place}/bind rw - ext4 /dev/sda1 rw
27 22 0:43 / {place}/overlay rw - overlay overlay rw,lowerdir=/a,upperdir=/b
28 22 0:44 / {place}/tmpfs rw - tmpfs tmpfs rw
29 23 8:2 / {place}/nfs/local rw - xfs /dev/sdb1 rw
30 26 0:45 / {place}/bind/nfs rw - nfs server:/other rw
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose folders are on drives of the kind of their names, as far as mmsearch can tell."""
    place = tmp_path / "mounts"
    place.mkdir()
    table = layout.parse_mountinfo(os.fsencode(MOUNTS.format(place=place)))
    monkeypatch.setattr(layout, "mount_table", lambda _: table)
    return place


@pytest.mark.parametrize("kind", ["nfs", "cifs", "sshfs", "bind/nfs"])
def test_an_index_is_not_made_on_a_network_drive(mounts: Path, photos: Path, kind: str) -> None:
    place = mounts / kind
    place.mkdir(parents=True)
    before = state_of(mounts)
    for index in (place, place / "index", place / "deeper" / "index"):
        for arguments in (("index", str(photos), "--model", "fake"), ("index", str(photos)), ("index",)):
            ran = command(*arguments, "--index", str(index))
            assert (ran["code"], ran["stdout"]) == (1, "")
            assert f"{index} is on a network drive" in ran["stderr"]
            assert len(ran["stderr"].splitlines()) == 1
    link = mounts.parent / "link"
    link.symlink_to(place)
    assert command("index", str(photos), "--model", "fake", "--index", str(link / "index"))["code"] == 1
    assert state_of(mounts) == before


@pytest.mark.parametrize("kind", ["nfs", "cifs", "sshfs"])
def test_an_index_that_was_put_on_a_network_drive_is_refused(mounts: Path, photos: Path, kind: str) -> None:
    index = mounts.parent / "index"
    assert command("index", str(photos), "--model", "fake", "--index", str(index))["code"] == 0
    place = mounts / kind / "index"
    shutil.copytree(index, place)
    before = state_of(mounts)
    for arguments in (("query", "red"), ("info",), ("index",), ("index", str(photos)), ("index", "--dry-run")):
        ran = command(*arguments, "--index", str(place))
        assert (ran["code"], ran["stdout"]) == (1, "")
        assert "is on a network drive" in ran["stderr"]
    assert state_of(mounts) == before


@pytest.mark.parametrize("kind", ["bind", "overlay", "tmpfs", "nfs/local", "plain"])
def test_an_index_on_a_drive_of_this_machine(mounts: Path, photos: Path, kind: str) -> None:
    index = mounts / kind / "index"
    assert command("index", str(photos), "--model", "fake", "--index", str(index))["code"] == 0
    assert len(command("query", "red", "--index", str(index))["stdout"].splitlines()) == 3


def test_pictures_on_a_network_drive_may_be_indexed_elsewhere(mounts: Path, draw: Draw) -> None:
    draw(mounts / "nfs" / "red.png", "red")
    index = ("--index", str(mounts.parent / "index"))
    assert command("index", str(mounts / "nfs"), "--model", "fake", *index)["code"] == 0
    assert len(command("query", "red", *index)["stdout"].splitlines()) == 1
