"""Copies of the files of hits: whole, and never over what is there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from answer_kit import hit
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.copies import copy_hits, copy_lines
from mmsearch.retrieval.errors import MMSearchError, UsageError


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_same_names_get_numbers_and_a_second_run_nothing(tmp_path: Path) -> None:
    hits = [hit(n, _file(tmp_path / str(n) / "a.jpg", b"%d" % n)) for n in (1, 2, 3)]
    target = tmp_path / "deep" / "target"
    assert copy_hits(hits, target).copied == 3
    assert _tree(target) == {"a.jpg": b"1", "a (2).jpg": b"2", "a (3).jpg": b"3"}
    again = copy_hits(hits, target)
    assert (again.copied, again.present) == (0, 3)
    assert len(_tree(target)) == 3


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "target"
    _file(target / "a.jpg", b"precious")
    (target / "a (2).jpg").symlink_to(tmp_path / "nowhere")
    (target / "a (3).jpg").mkdir()
    report = copy_hits([hit(1, _file(tmp_path / "a.jpg", b"new"))], target)
    assert report.copied == 1
    assert _tree(target) == {"a.jpg": b"precious", "a (4).jpg": b"new"}
    assert not (tmp_path / "nowhere").exists()


def test_a_target_that_is_the_folder_of_the_hits(tmp_path: Path) -> None:
    one = _file(tmp_path / "in" / "a.jpg", b"1")
    two = _file(tmp_path / "in" / "below" / "b.jpg", b"2")
    report = copy_hits([hit(1, one), hit(2, two), hit(3, tmp_path / "in" / "gone.jpg")], tmp_path / "in")
    assert (report.copied, report.present) == (1, 1)
    assert [failure.error for failure in report.failed] == ["the file is gone"]
    assert _tree(tmp_path / "in") == {"a.jpg": b"1", "b.jpg": b"2"}


def test_missing_originals_rows_and_texts(tmp_path: Path) -> None:
    text = _file(tmp_path / "a.txt", b"words")
    hits = [
        hit(1, tmp_path / "gone.jpg"),
        hit(2, None, text="row", modality="text"),
        hit(3, text, text="words", modality="text", fragment="char=0-2"),
        hit(4, text, text="words", modality="text", fragment="char=2-5"),
    ]
    report = copy_hits(hits, tmp_path / "target")
    assert (report.copied, report.pathless, len(report.failed)) == (1, 1, 1)
    shown = copy_lines(report)
    assert shown[0] == f"1 file copied to {tmp_path / 'target'}"
    assert "1 hit without a file on this machine left out" in shown
    assert f"  {tmp_path / 'gone.jpg'}: the file is gone" in shown


def test_links_are_followed_and_times_and_permissions_kept(tmp_path: Path) -> None:
    original = _file(tmp_path / "a.jpg", b"1")
    original.chmod(0o600)
    os.utime(original, ns=(1_000_000_000, 2_000_000_000))
    (tmp_path / "link.jpg").symlink_to(original)
    copy_hits([hit(1, tmp_path / "link.jpg")], tmp_path / "target")
    copied = tmp_path / "target" / "link.jpg"
    assert not copied.is_symlink()
    assert copied.stat().st_mtime_ns == 2_000_000_000
    assert copied.stat().st_mode & 0o777 == 0o600


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    report = copy_hits([hit(1, tmp_path / "pipe.jpg"), hit(2, tmp_path / "folder.jpg")], tmp_path / "target")
    assert [failure.error for failure in report.failed] == ["not a file", "not a file"]
    assert _tree(tmp_path / "target") == {}


def test_a_full_disk_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object, block: int) -> None:
        target.write(b"half")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    one = _file(tmp_path / "a.jpg", b"whole")
    monkeypatch.setattr(shutil, "copyfileobj", full)
    report = copy_hits([hit(1, one)], tmp_path / "target")
    assert [failure.error for failure in report.failed] == [os.strerror(errno.ENOSPC)]
    assert _tree(tmp_path / "target") == {}


def test_ctrl_c_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: object, target: object, block: int) -> None:
        target.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copy_hits([hit(1, _file(tmp_path / "a.jpg", b"whole"))], tmp_path / "target")
    assert _tree(tmp_path / "target") == {}


def test_a_disk_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hits = [hit(n, _file(tmp_path / str(n) / "a.jpg", b"1")) for n in (1, 2)]
    known = os.open

    def refuses(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return known(path, flags, mode)

    monkeypatch.setattr(os, "open", refuses)
    report = copy_hits(hits, tmp_path / "target")
    assert [failure.error for failure in report.failed] == [os.strerror(errno.EROFS)] * 2
    assert report.copied == report.present == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_that_may_not_be_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o500)
    report = copy_hits([hit(1, _file(tmp_path / "a.jpg", b"1"))], target)
    assert [failure.error for failure in report.failed] == ["Permission denied"]
    with pytest.raises(MMSearchError, match="cannot make the folder"):
        copy_hits([], target / "below")


def test_a_target_that_is_no_folder(tmp_path: Path) -> None:
    one = _file(tmp_path / "a.jpg", b"1")
    for target in (one, one / "below"):
        with pytest.raises(UsageError, match="name a folder"):
            copy_hits([hit(1, one)], target)
    assert one.read_bytes() == b"1"
    with pytest.raises(MMSearchError, match="cannot make the folder"):
        copy_hits([], Path("a\0b"))


def test_long_names_keep_their_ending(tmp_path: Path) -> None:
    name = "é" * 125 + ".jpg"
    hits = [hit(n, _file(tmp_path / str(n) / name, b"%d" % n)) for n in (1, 2)]
    assert copy_hits(hits, tmp_path / "target").copied == 2
    assert sorted(path.suffix for path in (tmp_path / "target").iterdir()) == [".jpg", ".jpg"]


def test_names_that_mean_harm_are_shown_escaped(tmp_path: Path) -> None:
    report = copy_hits([hit(1, tmp_path / "\x1b[31m\n.jpg")], tmp_path / "target\x1b")
    shown = copy_lines(report)
    assert all("\x1b" not in line and "\n" not in line for line in shown)


@settings(max_examples=40, deadline=None)
@given(
    there=st.dictionaries(st.sampled_from(["a.jpg", "a (2).jpg", "b", "b (2)"]), st.binary(max_size=2)),
    wanted=st.lists(st.tuples(st.sampled_from(["a.jpg", "a (2).jpg", "b"]), st.binary(max_size=2)), max_size=6),
)
def test_nothing_is_lost_and_everything_arrives(
    there: dict[str, bytes], wanted: list[tuple[str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("copies")
    for name, content in there.items():
        _file(base / "target" / name, content)
    hits = [hit(n, _file(base / f"from{n}" / name, content)) for n, (name, content) in enumerate(wanted)]
    report = copy_hits(hits, base / "target")
    after = _tree(base / "target")
    assert {name: after[name] for name in there} == there
    assert {content for _, content in wanted} <= set(after.values())
    assert report.copied == len(after) - len(there)
    assert report.copied + report.present == len(wanted)
    assert copy_hits(hits, base / "target").copied == 0
