"""`mmsearch demo`: the folder it makes, and what it says."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmsearch
from mmsearch import UsageError, demo
from mmsearch.retrieval.encoders.fake import FakeEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo") / "mmsearch-demo"
    demo.make_folder(made)
    return made


@pytest.fixture
def fake_starter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: FakeEncoder(name="starter")
    )
    yield


def test_pictures_are_pictures(folder: Path) -> None:
    from PIL import Image

    drawn = sorted((folder / "pictures").glob("*.jpg"))
    assert len(drawn) >= 30
    for path in (folder / "pictures").iterdir():
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 300, path


def test_drawn_pictures_are_the_same_each_time() -> None:
    from mmsearch.demo import food

    assert food.PICTURES["red-apple"]().picture().tobytes() == food.PICTURES["red-apple"]().picture().tobytes()


def test_photographs_come_from_scikit_image_and_are_credited(folder: Path) -> None:
    pytest.importorskip("skimage", reason="the photographs come with the extra demo")
    credits = (folder / "CREDITS").read_text("utf-8")
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        assert (folder / "pictures" / name).is_file()
        assert f"pictures/{name}: " in credits


def test_without_scikit_image_there_are_drawn_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    monkeypatch.setattr("mmsearch.demo.canvas._SCALE", 1)  # quicker
    assert demo.make_folder(tmp_path / "new") == 0
    assert not (tmp_path / "new" / "pictures" / "coffee.png").exists()
    assert (tmp_path / "new" / "pictures" / "red-apple.jpg").is_file()


def test_notes_are_in_two_languages(folder: Path) -> None:
    texts = [path.read_text("utf-8") for path in (folder / "notes").iterdir()]
    assert any("海" in text for text in texts)
    assert any("oven" in text for text in texts)


def test_a_second_run_makes_only_what_is_missing(folder: Path) -> None:
    gone = folder / "pictures" / "pizza.jpg"
    kept = folder / "pictures" / "guitar.jpg"
    before = kept.stat()
    content = gone.read_bytes()
    gone.unlink()
    demo.make_folder(folder)
    assert gone.read_bytes() == content
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    assert list(folder.rglob(".*")) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        demo.make_folder(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        demo.make_folder(tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("fake_starter")
def test_it_indexes_answers_and_says_what_to_type(folder: Path) -> None:
    lines: list[str] = []
    demo.run(folder, echo=lines.append)
    hits = [line for line in lines if line.startswith("  1  ")]
    assert len(hits) >= 4
    for line in hits:
        assert Path(line.split(maxsplit=2)[2]).is_file()
    assert any("一匹马" in line for line in lines)
    assert any(f"--index {folder / 'index'}" in line for line in lines)
    again: list[str] = []
    demo.run(folder, echo=again.append)
    assert [line for line in again if line.startswith("  1  ")] == hits


def test_the_starter_finds_the_photographs_that_the_demo_asks_for(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="the photographs come with the extra demo")
    with mmsearch.open(tmp_path / "index", model="starter") as index:
        index.add(folder / "pictures")
        for query, name in (("a cup of coffee", "coffee.png"), ("一匹马", "horse.png"), ("a horse", "horse.png")):
            best = index.search(query, k=1)[0]
            assert best.path is not None
            assert best.path.name == name


def test_the_default_folder_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo._default_folder() == tmp_path / "mmsearch-demo"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert demo._default_folder() != tmp_path / "mmsearch-demo"
    assert demo._default_folder().is_relative_to(Path.home())
