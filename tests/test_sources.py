from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmsearch.indexers.paths import FileSource, FolderSource, Source, open_sources
from mmsearch.indexers.patterns import Filter
from mmsearch.retrieval.errors import PathNotFound, UsageError
from mmsearch.retrieval.uris import absolute_path


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def uris(*sources: Source) -> list[str]:
    return [ref.uri for source in sources for ref in source.scan()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    put(folder, "b.jpg", "a.PNG", "notes.txt", "sub/c.heic", "sub/deep/d.webp", "sub/e.md", "song.mp3", "Makefile")
    return folder


def test_a_folder_is_scanned_with_everything_in_it(photos: Path) -> None:
    (source,) = open_sources([photos])
    refs = list(source.scan())
    assert [ref.uri for ref in refs] == ["a.PNG", "b.jpg", "notes.txt", "sub/c.heic", "sub/e.md", "sub/deep/d.webp"]
    assert [ref.modality for ref in refs] == ["image", "image", "text", "image", "text", "image"]
    assert source.skipped == {".mp3": 1, "": 1}
    assert source.complete
    assert not source.errors
    for ref in refs:
        stat = os.stat(ref.path)
        assert (ref.stamp.size, ref.stamp.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert ref.root == str(photos) == str(source.root.path)
        assert absolute_path(ref.root, ref.uri) == ref.path
    assert source.root.device == photos.stat().st_dev


def test_a_second_scan_counts_afresh(photos: Path) -> None:
    (source,) = open_sources([photos])
    assert uris(source) == uris(source)
    assert source.skipped == {".mp3": 1, "": 1}


def test_hidden_files_and_folders_are_passed_over(photos: Path) -> None:
    put(photos, ".hidden.jpg", "._b.jpg", ".git/x.jpg", ".DS_Store")
    (source,) = open_sources([photos])
    assert not any("." in (uri[0], uri.rpartition("/")[2][0]) for uri in uris(source))
    assert source.skipped == {".mp3": 1, "": 1}
    assert not source.scope(".git/x.jpg")
    assert not source.scope("sub/.hidden.jpg")


def test_an_empty_folder_has_no_items(tmp_path: Path) -> None:
    (source,) = open_sources([tmp_path])
    assert uris(source) == []
    assert source.complete


AWKWARD_NAMES = [
    "50%.jpg",
    "a_b.jpg",
    "it's.jpg",
    'say "hi".jpg',
    "line\nbreak.jpg",
    "猫 沙发.jpg",
    "🐈.jpg",
    "a#b?c.jpg",
    " x.jpg",
]


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_awkward_names(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{name} folder/{name}")
    (ref,) = next(iter(open_sources([tmp_path]))).scan()
    assert ref.uri.isascii()
    assert ref.uri.isprintable()
    assert Path(absolute_path(ref.root, ref.uri)).read_bytes() == b"content"


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        Path(os.fsdecode(raw)).write_bytes(b"content")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (source,) = open_sources([tmp_path])
    (ref,) = source.scan()
    assert ref.uri == "caf%E9.jpg"
    assert os.fsencode(ref.path) == raw
    assert source.scope(ref.uri)


def test_links_are_followed_once_and_real_paths_win(tmp_path: Path) -> None:
    put(tmp_path, "photos/real/x.jpg", "elsewhere/y.jpg")
    photos = tmp_path / "photos"
    (photos / "a_link").symlink_to(photos / "real")
    (photos / "real" / "loop").symlink_to(photos)
    (photos / "other").symlink_to(tmp_path / "elsewhere")
    (photos / "file.jpg").symlink_to(photos / "real" / "x.jpg")
    (photos / "broken.jpg").symlink_to(photos / "nothing")
    (photos / "self.jpg").symlink_to(photos / "self.jpg")
    (source,) = open_sources([photos])
    assert uris(source) == ["file.jpg", "real/x.jpg", "other/y.jpg"]


def test_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (source,) = open_sources([tmp_path])
    assert uris(source) == []


def test_the_index_folder_is_not_scanned(photos: Path) -> None:
    put(photos, "index/thumb.jpg")
    (source,) = open_sources([photos], index_path=photos / "index")
    assert "index/thumb.jpg" not in uris(source)


def test_sidecar_texts_belong_to_their_picture(tmp_path: Path) -> None:
    put(tmp_path, "a b/x.jpg", "a b/x.txt", "a b/y.txt", "a b/x.md", "a b/._y.jpg", "z.JPG", "z.png", "z.txt")
    (source,) = open_sources([tmp_path])
    owners = {ref.uri: ref.owner for ref in source.scan() if ref.modality == "text"}
    assert owners == {"a%20b/x.txt": "a%20b/x.jpg", "a%20b/y.txt": None, "a%20b/x.md": None, "z.txt": "z.JPG"}
    (single,) = open_sources([tmp_path / "a b" / "x.txt"])
    assert [ref.owner for ref in single.scan()] == ["x.jpg"]
    (nested,) = open_sources([tmp_path / "a b" / "x.txt"], known_roots=[tmp_path])
    assert [(ref.uri, ref.owner) for ref in nested.scan()] == [("a%20b/x.txt", "a%20b/x.jpg")]


def deny(monkeypatch: pytest.MonkeyPatch, denied: Path, error: type[OSError] = PermissionError) -> None:
    """A folder that cannot be listed, also for root."""
    real = os.scandir

    def scandir(path: Any = ".") -> Iterator[Any]:
        if os.fspath(path) == str(denied):
            raise error(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_a_folder_that_cannot_be_read_is_listed_and_its_files_are_not_gone(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(photos, "sub2/f.jpg", "z.jpg")
    deny(monkeypatch, photos / "sub")
    (source,) = open_sources([photos])
    assert uris(source) == ["a.PNG", "b.jpg", "notes.txt", "z.jpg", "sub2/f.jpg"]
    (failure,) = source.errors
    assert failure.path == str(photos / "sub")
    assert failure.error == "cannot be read: Permission denied"
    assert source.complete
    assert source.incomplete_prefixes == ["sub"]
    assert not source.scope("sub/c.heic")
    assert not source.scope("sub/deep/d.webp")
    assert source.scope("sub2/f.jpg")
    assert source.scope("gone.jpg")


def test_a_root_that_cannot_be_read_loses_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, photos)
    (source,) = open_sources([photos])
    assert uris(source) == []
    assert not source.complete
    assert len(source.errors) == 1
    assert not source.scope("a.PNG")


def test_a_file_deleted_while_scanning_is_not_found(photos: Path) -> None:
    (source,) = open_sources([photos])
    scan = source.scan()
    assert next(scan).uri == "a.PNG"
    (photos / "notes.txt").unlink()
    shutil.rmtree(photos / "sub" / "deep")
    assert [ref.uri for ref in scan] == ["b.jpg", "sub/c.heic", "sub/e.md"]
    assert source.complete
    assert not source.errors
    assert source.scope("notes.txt")


def test_a_root_that_vanishes_while_it_is_scanned_loses_nothing(photos: Path) -> None:
    (source,) = open_sources([photos])
    scan = source.scan()
    next(scan)
    shutil.rmtree(photos)
    list(scan)
    assert not source.complete
    assert not source.scope("sub/c.heic")
    assert "went away" in source.errors[0].error


def test_an_interrupted_scan_is_not_complete(photos: Path) -> None:
    (source,) = open_sources([photos])
    next(source.scan())
    assert not source.complete


def test_single_files(photos: Path) -> None:
    put(photos, ".named.jpg")
    (source,) = open_sources([photos / "b.jpg", photos / ".named.jpg", photos / "song.mp3", str(photos / "b.jpg")])
    assert isinstance(source, FileSource)
    assert source.root.path == photos
    assert uris(source) == [".named.jpg", "b.jpg"]
    assert source.skipped == {".mp3": 1}
    assert source.complete
    assert source.scope("b.jpg")
    assert not source.scope("a.PNG")
    (photos / "b.jpg").unlink()
    assert uris(source) == [".named.jpg"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("photos/**/*.jpg", ["b.jpg"]),
        ("photos/**/*.[hw]e*", ["sub/c.heic", "sub/deep/d.webp"]),
        ("photos/?.PNG", ["a.PNG"]),
        ("photos/*", ["a.PNG", "b.jpg", "notes.txt", "sub/c.heic", "sub/e.md", "sub/deep/d.webp"]),
        ("photos/s*", ["sub/c.heic", "sub/e.md", "sub/deep/d.webp"]),
        ("photos/*/deep", ["sub/deep/d.webp"]),
        ("photos/**", ["a.PNG", "b.jpg", "notes.txt", "sub/c.heic", "sub/e.md", "sub/deep/d.webp"]),
        ("photos/**/deep/**", ["sub/deep/d.webp"]),
        ("photos/*.jgp", []),
    ],
)
def test_globs(photos: Path, monkeypatch: pytest.MonkeyPatch, glob: str, expected: list[str]) -> None:
    monkeypatch.chdir(photos.parent)
    (source,) = open_sources([glob])
    assert source.root.path == photos
    assert uris(source) == expected
    assert all(source.scope(uri) for uri in expected)


def test_a_globs_scope_is_what_it_matches(photos: Path) -> None:
    (source,) = open_sources([f"{photos}/*.jpg"])
    assert source.scope("gone.jpg")
    assert not source.scope("a.PNG")
    assert not source.scope("sub/gone.jpg")


def test_an_existing_name_with_brackets_is_no_glob(tmp_path: Path) -> None:
    put(tmp_path, "photos [2020]/a.jpg")
    (source,) = open_sources([tmp_path / "photos [2020]"])
    assert uris(source) == ["a.jpg"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.png"], [], ["a.PNG"]),
        (["*.jpg", "*.md"], [], ["b.jpg", "sub/e.md"]),
        ([], ["*.md", "*.txt"], ["a.PNG", "b.jpg", "sub/c.heic", "sub/deep/d.webp"]),
        ([], ["deep"], ["a.PNG", "b.jpg", "notes.txt", "sub/c.heic", "sub/e.md"]),
        ([], ["sub/"], ["a.PNG", "b.jpg", "notes.txt"]),
        ([], ["sub/*.heic"], ["a.PNG", "b.jpg", "notes.txt", "sub/e.md", "sub/deep/d.webp"]),
        (["sub/**"], ["*.md"], ["sub/c.heic", "sub/deep/d.webp"]),
        (["SUB"], [], ["sub/c.heic", "sub/e.md", "sub/deep/d.webp"]),
    ],
)
def test_include_and_exclude(photos: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    (source,) = open_sources([photos], include, exclude)
    assert uris(source) == expected
    everything = uris(*open_sources([photos]))
    assert [uri for uri in everything if source.scope(uri)] == expected, "what was not wanted is not gone"


def test_a_pattern_takes_brackets_and_odd_characters() -> None:
    assert Filter.of(["[!a-c]*.jpg"]).takes("x/d.jpg")
    assert not Filter.of(["[!a-c]*.jpg"]).takes("x/b.jpg")
    assert Filter.of(["a[.jpg"]).takes("a[.jpg")
    assert Filter.of(["50%_(1)+.jpg"]).takes("line\nbreak/50%_(1)+.jpg")
    assert not Filter.of(["a.jpg"]).takes("aXjpg")


def test_missing_paths(tmp_path: Path) -> None:
    for missing in ("nothing", "nothing/*.jpg", "a.jpg"):
        with pytest.raises(PathNotFound, match="no such file or folder"):
            open_sources([tmp_path / missing])
    with pytest.raises(PathNotFound):
        open_sources([str(tmp_path / "\0")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a folder"):
        open_sources([tmp_path / "pipe"])


def test_overlapping_paths_are_found_once(photos: Path) -> None:
    sources = open_sources([photos / "b.jpg", photos / "sub", photos, photos / "sub" / "deep" / "d.webp", photos])
    (source,) = sources
    assert source.root.path == photos
    overlapping = open_sources([f"{photos}/*.jpg", f"{photos}/b*", photos / "b.jpg"])
    assert uris(*overlapping) == ["b.jpg"]
    assert [source.scope("b.jpg") for source in overlapping] == [True, False, False]


def test_hidden_paths_inside_a_scanned_folder_are_taken_when_named(photos: Path) -> None:
    put(photos, ".private/p.jpg", ".h.jpg")
    sources = open_sources([photos, photos / ".private", photos / ".h.jpg"])
    found = uris(*sources)
    assert len(found) == len(set(found)) == 8
    assert {".private/p.jpg", ".h.jpg"} < set(found)


def test_paths_inside_a_known_root_are_scanned_under_it(photos: Path) -> None:
    folder, file = open_sources([photos / "sub" / "deep", photos / "sub" / "c.heic"], known_roots=[photos])
    assert isinstance(folder, FolderSource)
    assert folder.root.path == file.root.path == photos
    assert uris(folder, file) == ["sub/deep/d.webp", "sub/c.heic"]
    assert folder.scope("sub/deep/gone.jpg")
    assert not folder.scope("sub/deeper/gone.jpg")
    assert not folder.scope("b.jpg")


def test_patterns_see_paths_from_the_scanned_folder(photos: Path) -> None:
    (source,) = open_sources([photos / "sub"], include=["deep/*"], known_roots=[photos])
    assert uris(source) == ["sub/deep/d.webp"]
    assert source.scope("sub/deep/d.webp")


def test_a_known_root_inside_a_path_stays_a_root_of_its_own(photos: Path) -> None:
    sources = open_sources([photos], known_roots=[photos / "sub", photos / "gone"])
    assert [str(source.root.path) for source in sources] == [str(photos), str(photos / "sub")]
    assert [uris(source) for source in sources] == [
        ["a.PNG", "b.jpg", "notes.txt"],
        ["c.heic", "e.md", "deep/d.webp"],
    ]
    globbed = open_sources([f"{photos}/**/*.heic"], known_roots=[photos / "sub"])
    assert uris(*globbed) == ["c.heic"]
    assert globbed[1].scope("c.heic")
    assert not globbed[1].scope("e.md")


def test_a_path_through_a_link_is_the_same_root(photos: Path) -> None:
    link = photos.parent / "link"
    link.symlink_to(photos)
    (source,) = open_sources([link / "sub"], known_roots=[photos])
    assert source.root.path == photos
    assert uris(source) == ["sub/c.heic", "sub/e.md", "sub/deep/d.webp"]


def test_a_drive_root(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = open_sources([photos / "b.jpg"], known_roots=["/"])
    assert uris(file) == [str(photos / "b.jpg")[1:]]
    (source,) = open_sources([photos], known_roots=["/"])
    assert uris(source)[0] == str(photos / "a.PNG")[1:]
    assert source.scope(str(photos / "gone.jpg")[1:])
    (whole,) = open_sources(["/"], exclude=["*"])
    assert whole.root.path == Path("/")
    assert uris(whole) == []


def test_relative_paths_and_the_home_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    monkeypatch.setenv("HOME", str(photos.parent))
    for given in (".", "~/photos", "sub/.."):
        (source,) = open_sources([given])
        assert source.root.path == photos
