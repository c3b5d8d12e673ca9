"""The Python facade: what it creates, what it refuses, threads, and other processes that write."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.store import LocalStore

Draw = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path, pictures: Path) -> mmsearch.Index:
    opened = mmsearch.open(tmp_path / "index", model="fake")
    opened.add(pictures)
    return opened


def test_importing_costs_nothing() -> None:
    code = "import mmsearch, sys; print([m for m in ('numpy', 'torch', 'typer', 'sqlite3') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_a_text_query_loads_no_writer(index: mmsearch.Index) -> None:
    index.close()
    code = (
        f"import mmsearch, sys; mmsearch.open({str(index.path)!r}).search('red'); "
        "print([m for m in ('torch', 'sqlalchemy', 'faiss', 'PIL', 'rich', 'typer', 'onnxruntime')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_add_and_search(index: mmsearch.Index, pictures: Path) -> None:
    hits = index.search("red", k=2)
    assert hits[0].path == pictures / "red-square.png"
    assert dataclasses.is_dataclass(hits[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        hits[0].rank = 3  # type: ignore[misc]
    found = index.info()
    assert (found.items, found.images, found.texts, found.model) == (8, 6, 2, "fake")


def test_nothing_is_created_before_files_are_found(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "index"
    with mmsearch.open(path, model="fake") as index:
        for call in (index.info, index.add, lambda: index.search("red"), index.estimate):
            with pytest.raises(mmsearch.IndexNotFound, match="there is no index"):
                call()
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "film.mkv").write_bytes(b"x")
        report = index.add(empty)
        assert (report.added, report.items, report.skipped) == (0, 0, {".mkv": 1})
        with pytest.raises(mmsearch.PathNotFound):
            index.add(tmp_path / "nowhere")
    assert not path.parent.exists()


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mmsearch.open().path.name == "index"
    monkeypatch.setenv("MMSEARCH_INDEX", str(tmp_path / "mine"))
    assert mmsearch.open().path == tmp_path / "mine"
    monkeypatch.setenv("MMSEARCH_INDEX", "")
    assert mmsearch.open().path.name == "index"


def test_add_without_paths_rescans_all_roots(index: mmsearch.Index, tmp_path: Path, pictures: Path, draw: Draw) -> None:
    draw(tmp_path / "other" / "pink.png", "pink")
    assert index.add(tmp_path / "other").added == 1
    draw(tmp_path / "other" / "purple.png", "purple")
    draw(pictures / "cyan.png", "cyan")
    report = index.add()
    assert (report.added, report.unchanged, report.items) == (2, 9, 11)


def test_include_and_exclude(tmp_path: Path, pictures: Path) -> None:
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        assert index.add(pictures, include=["*.png", "*.jpg"], exclude=["more"]).items == 3
        report = index.add(pictures, include=["*.gif"])
        assert (report.added, report.removed, report.items) == (1, 0, 4)


def test_a_network_drive_is_refused_before_a_model_is_loaded(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", load)
    monkeypatch.setattr("mmsearch.retrieval.store.layout.mount_table", lambda *place: [("/", "nfs4")])
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        with pytest.raises(mmsearch.UnsafeFilesystem, match="network drive"):
            index.add(pictures)
    assert not (tmp_path / "index").exists()


def test_threads_decode_too(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers: int | None = None, **options: str) -> None:
            asked.append(max_workers)
            super().__init__(max_workers, **options)

    monkeypatch.setattr("mmsearch.indexers.ingest.ThreadPoolExecutor", Pool)
    with mmsearch.open(tmp_path / "index", model="fake", threads=1) as index:
        assert index.add(pictures).added == 8
    assert asked == [1]


def test_an_index_keeps_its_model(index: mmsearch.Index, pictures: Path) -> None:
    with mmsearch.open(index.path) as same:
        assert same.add(pictures).model == "fake"
    with mmsearch.open(index.path, model="starter") as other:
        for call in (lambda: other.add(pictures), lambda: other.search("red"), lambda: other.estimate(pictures)):
            with pytest.raises(mmsearch.ModelMismatch, match=r"made by the model fake.*--index"):
                call()


def test_a_preset_and_its_tag_are_one_model(tmp_path: Path, encoder: FakeEncoder) -> None:
    LocalStore.create(tmp_path / "index", model="balanced", identity=encoder.identity, dim=encoder.dim)
    with mmsearch.open(tmp_path / "index", model="ViT-B-32-SigLIP2-256/webli") as index:
        assert list(index.search(vector=[1.0] * encoder.dim)) == []


def test_a_model_that_changed_under_its_name(
    index: mmsearch.Index, pictures: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mmsearch.retrieval.encoders.fake.FakeEncoder.__init__.__kwdefaults__",
        {
            "dim": 48,
            "image_size": (16, 16),
            "max_tokens": 64,
            "batch_size": 8,
        },
    )
    draw(pictures / "new.png", "pink")
    with mmsearch.open(index.path) as again:
        with pytest.raises(mmsearch.ModelMismatch):
            again.search("red")
        with pytest.raises(mmsearch.ModelMismatch):
            again.add(pictures)
        assert again.info().items == 8


def test_bad_numbers(tmp_path: Path) -> None:
    with pytest.raises(mmsearch.UsageError, match="threads must be 1"):
        mmsearch.open(tmp_path, threads=0)
    with pytest.raises(mmsearch.UsageError, match="batch_size must be 1"):
        mmsearch.open(tmp_path, batch_size=-1)


def test_a_folder_of_other_things_is_not_taken_over(tmp_path: Path, pictures: Path) -> None:
    with mmsearch.open(pictures, model="fake") as index, pytest.raises(mmsearch.IndexUnusable, match="other files"):
        index.add(pictures)


def test_estimate_changes_nothing(index: mmsearch.Index, pictures: Path, tmp_path: Path, draw: Draw) -> None:
    draw(pictures / "cyan.png", "cyan")
    (pictures / "roses.txt").unlink()
    estimate = index.estimate(pictures)
    assert (estimate.new, estimate.changed, estimate.missing, estimate.unchanged) == (1, 0, 1, 7)
    assert estimate.seconds is not None
    assert index.info().items == 8
    with mmsearch.open(tmp_path / "none", model="fake") as other:
        estimate = other.estimate(pictures)
    assert estimate.new == 8
    assert estimate.bytes == sum(path.stat().st_size for path in pictures.rglob("*") if path.is_file())
    assert not (tmp_path / "none").exists()


def test_a_search_sees_what_another_process_committed(index: mmsearch.Index, pictures: Path, draw: Draw) -> None:
    assert index.search("cyan", k=1)[0].uri != "cyan.png"
    draw(pictures / "cyan.png", "cyan")
    code = f"import mmsearch; mmsearch.open({str(index.path)!r}).add()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert index.search("cyan", k=1)[0].uri == "cyan.png"
    assert index.info().items == 9


def test_threads_search_while_another_index_writes(index: mmsearch.Index, pictures: Path, draw: Draw) -> None:
    stop = False

    def search(query: str) -> int:
        count = 0
        while not stop or count == 0:
            hits = index.search(query, k=3)
            assert len(hits) == 3
            assert query in hits[0].uri
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(search, colour) for colour in ("red", "green", "blue", "black")]
        with mmsearch.open(index.path) as writer:
            for number in range(6):
                draw(pictures / f"pink-{number}.png", "pink", size=(60 + number, 60))
                writer.add()
        stop = True
        assert all(count.result() >= 1 for count in counts)
    assert index.info().images == 12


def test_the_index_folder_is_deleted_under_a_reader(index: mmsearch.Index, pictures: Path) -> None:
    index.search("red")
    shutil.rmtree(index.path)
    with pytest.raises(mmsearch.IndexNotFound, match="there is no index"):
        index.search("red")
    index.add(pictures)
    assert index.search("red", k=1)[0].uri == "red-square.png"


def test_closed(index: mmsearch.Index, pictures: Path) -> None:
    index.search("red")
    index.close()
    index.close()
    for call in (lambda: index.search("red"), lambda: index.add(pictures), index.info):
        with pytest.raises(mmsearch.UsageError, match="closed"):
            call()


def test_an_index_and_its_pictures_move_together(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "photos" / "red.png", "red")
    with mmsearch.open(tmp_path / "photos" / ".index", model="fake") as index:
        index.add(tmp_path / "photos")
    (tmp_path / "photos").rename(tmp_path / "moved")
    with mmsearch.open(tmp_path / "moved" / ".index") as index:
        hit = index.search("red")[0]
        assert hit.path == tmp_path / "moved" / "red.png"
        assert index.add().unchanged == 1


def test_doctor_tells_how_far_it_is(index: mmsearch.Index) -> None:
    told: list[tuple[int, int]] = []
    assert index.doctor(progress=lambda done, total: told.append((done, total))).sound
    total = sum(path.stat().st_size for path in (index.path / "segments").iterdir())
    assert told[-1] == (total, total)
    assert told == sorted(told)
    told.clear()
    assert index.doctor(repair=True, progress=lambda done, total: told.append((done, total))).sound
    assert told[-1] == (total, total)
