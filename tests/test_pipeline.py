"""Index runs with the fake encoder: what is read, kept, re-used, committed, and when."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmsearch.index import Index
from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import Progress, index_sources
from mmsearch.indexers.rescan import rescan_sources
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import IndexLocked, ModelMismatch
from mmsearch.retrieval.store import LocalStore
from mmsearch.retrieval.types import Report, Root

Draw = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path, encoder: FakeEncoder) -> LocalStore:
    return LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)


def no_encoder() -> Encoder:
    raise AssertionError("nothing had to be encoded")


def run(
    store: LocalStore,
    encoder: Encoder | None,
    *paths: Path,
    prune: bool = False,
    retry: bool = False,
    observer: Callable[[Progress], None] | None = None,
    commit_seconds: float = 4.0,
) -> Report:
    known = [root.path for root in store.info().roots if root.whole]
    sources = open_sources(list(paths), index_path=store.path, known_roots=known) if paths else rescan_sources(store)
    return index_sources(
        sources,
        store,
        no_encoder if encoder is None else lambda: encoder,
        prune=prune,
        retry=retry,
        observer=observer,
        commit_seconds=commit_seconds,
    )


def uris(store: LocalStore) -> dict[str, int]:
    """Every item's uri and fragment, with its id."""
    with store.snapshot() as snapshot:
        ids = [int(id_) for space in ("image", "text") for id_ in snapshot.item_ids(space)]
        return {
            record.uri + (f"#{record.fragment}" if record.fragment else ""): id_
            for id_, record in snapshot.items(ids).items()
        }


def counts(report: Report) -> dict[str, int]:
    names = ("added", "updated", "moved", "copied", "removed", "unchanged", "kept")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


class Spy(FakeEncoder):
    """Counts pictures; runs `on_batch` before each batch of them."""

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size)
        self.prepared = 0
        self.encoded = 0
        self.most_waiting = 0
        self.on_batch: Callable[[int], None] = lambda batch: None
        self.batches = 0

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        self.prepared += 1
        return super().preprocess(image)

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        self.batches += 1
        self.most_waiting = max(self.most_waiting, self.prepared - self.encoded)
        self.on_batch(self.batches)
        self.encoded += len(arrays)
        return super().encode_images(arrays)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (20, 20), (number * 4, 255 - number * 4, number)).save(folder / f"{number:03}.png")
    return folder


def test_first_run_adds_everything(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    report = run(store, encoder, pictures)
    assert counts(report) == {"added": 8}
    assert report.items == 8
    assert report.model == "fake"
    assert not report.interrupted
    assert not report.failed
    assert set(uris(store)) >= {"red-square.png", "more/orange-triangle.jpg", "roses.txt#char=0-14"}


def test_second_run_needs_no_encoder_and_makes_no_generation(
    store: LocalStore, encoder: FakeEncoder, pictures: Path
) -> None:
    run(store, encoder, pictures)
    before = store.info().generation
    assert counts(run(store, None, pictures)) == {"unchanged": 8}
    assert counts(run(store, None)) == {"unchanged": 8}
    assert store.info().generation == before


def test_new_content_at_the_same_uri(store: LocalStore, encoder: FakeEncoder, pictures: Path, draw: Draw) -> None:
    run(store, encoder, pictures)
    draw(pictures / "red-square.png", "cyan", size=(100, 64))
    assert counts(run(store, encoder, pictures)) == {"updated": 1, "unchanged": 7}
    with store.snapshot() as snapshot:
        best = snapshot.search("image", encoder.encode_texts(["cyan"]), 1)[0][0]
        assert snapshot.items([best.item_id])[best.item_id].uri == "red-square.png"
        assert snapshot.counts["image"] == 6


def test_a_touched_file_is_unchanged(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    run(store, encoder, pictures)
    before = uris(store)
    os.utime(pictures / "red-square.png", ns=(1, 1))
    os.utime(pictures / "roses.txt", ns=(1, 1))
    assert counts(run(store, None, pictures)) == {"unchanged": 8}
    assert counts(run(store, None, pictures)) == {"unchanged": 8}
    assert uris(store) == before


def test_moved_and_copied_files_are_not_decoded(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, encoder, pictures)
    before = uris(store)

    def no_decode(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("mmsearch.indexers.ingest.decode_image", no_decode)
    (pictures / "red-square.png").rename(pictures / "more" / "rot.png")
    (pictures / "roses.txt").rename(pictures / "flowers.txt")
    (pictures / "copy.gif").write_bytes((pictures / "black-circle.gif").read_bytes())
    assert counts(run(store, None, pictures)) == {"moved": 2, "copied": 1, "unchanged": 6}
    after = uris(store)
    assert after["more/rot.png"] == before["red-square.png"]
    assert after["flowers.txt#char=0-14"] == before["roses.txt#char=0-14"]
    assert "red-square.png" not in after
    with store.snapshot() as snapshot:
        copy = snapshot.items([after["copy.gif"]])[after["copy.gif"]]
        assert (copy.width, copy.height) == (96, 64)


def test_a_file_moves_between_roots(store: LocalStore, encoder: FakeEncoder, tmp_path: Path, draw: Draw) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        draw(folder / "stays.png", "blue" if folder == here else "green")
    draw(here / "goes.png", "red")
    run(store, encoder, here, there)
    before = uris(store)
    (here / "goes.png").rename(there / "gone.png")
    assert counts(run(store, None)) == {"moved": 1, "unchanged": 2}
    assert uris(store)["gone.png"] == before["goes.png"]


def test_same_content_twice_in_one_run_is_encoded_once(store: LocalStore, tmp_path: Path, draw: Draw) -> None:
    first = draw(tmp_path / "in" / "a.png", "red")
    for name in "bcd":
        (tmp_path / "in" / f"{name}.png").write_bytes(first.read_bytes())
    spy = Spy()
    report = run(store, spy, tmp_path / "in")
    assert counts(report) == {"added": 1, "copied": 3}
    assert spy.encoded == 1
    assert len(uris(store)) == 4


def test_equal_size_head_and_tail_are_not_equal_content(store: LocalStore, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        picture = Image.new("RGB", (200, 200), "white")
        picture.paste(colour, (0, 50, 200, 150))
        picture.save(folder / f"{name}.bmp")
    a, b = (folder / "a.bmp").read_bytes(), (folder / "b.bmp").read_bytes()
    assert len(a) == len(b)
    assert a[:4096] == b[:4096]
    assert a[-4096:] == b[-4096:]
    spy = Spy()
    assert counts(run(store, spy, folder)) == {"added": 2}
    assert spy.encoded == 2


def test_removed_files_leave_after_a_completed_scan(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    run(store, encoder, pictures)
    (pictures / "red-square.png").unlink()
    (pictures / "more" / "天空.txt").unlink()
    report = run(store, None, pictures)
    assert counts(report) == {"removed": 2, "unchanged": 6}
    assert report.items == 6


def test_an_emptied_root_keeps_its_items_unless_pruned(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(store, encoder, pictures)
    pictures.rename(tmp_path / "elsewhere")
    pictures.mkdir()
    report = run(store, None, pictures)
    assert counts(report) == {"kept": 8}
    assert report.items == 8
    assert "looks unmounted" in caplog.text
    assert counts(run(store, None, pictures, prune=True)) == {"removed": 8}


@pytest.mark.parametrize("what", ["more", "more/*.jpg"])
def test_an_emptied_part_of_a_root_that_is_there(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, what: str
) -> None:
    run(store, encoder, pictures)
    for path in (pictures / "more").iterdir():
        path.unlink()
    report = run(store, None, pictures / what)
    assert counts(report) == {"removed": 2 if what == "more" else 1}


def test_an_emptied_part_of_an_emptied_root_keeps_its_items(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, tmp_path: Path
) -> None:
    run(store, encoder, pictures)
    pictures.rename(tmp_path / "elsewhere")
    (pictures / ".Trash").mkdir(parents=True)
    assert counts(run(store, None, pictures / "more*")) == {"kept": 2}
    assert counts(run(store, None, pictures)) == {"kept": 8}


def test_an_absent_root_keeps_its_items_unless_pruned(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, tmp_path: Path
) -> None:
    run(store, encoder, pictures)
    pictures.rename(tmp_path / "elsewhere")
    assert counts(run(store, None)) == {"kept": 8}
    assert counts(run(store, None)) == {"kept": 8}
    assert counts(run(store, None, prune=True)) == {"removed": 8}


def test_a_changed_device_keeps_what_is_missing(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    run(store, encoder, pictures)

    def change_device() -> None:
        with sqlite3.connect(store.path / "catalog.sqlite") as catalog:
            catalog.execute("UPDATE roots SET device = device + 1")
        catalog.close()

    change_device()
    assert counts(run(store, None)) == {"unchanged": 8}, "nothing missing: the drive has a new number"
    (pictures / "red-square.png").unlink()
    change_device()
    assert counts(run(store, None)) == {"unchanged": 7, "kept": 1}
    assert counts(run(store, None)) == {"unchanged": 7, "kept": 1}, "still not taken for the right drive"
    assert counts(run(store, None, prune=True)) == {"unchanged": 7, "removed": 1}


def test_a_folder_that_cannot_be_read_loses_nothing(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, encoder, pictures)
    real = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("mmsearch.indexers.sources.os.scandir", refuse)
    report = run(store, None, pictures)
    assert counts(report) == {"unchanged": 6}
    assert report.items == 8
    assert [(Path(failure.path).name, failure.error) for failure in report.failed] == [
        ("more", "cannot be read: Permission denied")
    ]


def test_a_bad_file_is_listed_and_not_retried(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    bad = pictures / "bad.jpg"
    bad.write_bytes(b"no picture")
    (pictures / "empty.txt").write_bytes(b"")
    (pictures / "bytes.txt").write_bytes(b"\xff\xfe\xfa\x80 caf\xe9"[1:])
    report = run(store, encoder, pictures)
    assert counts(report) == {"added": 8}
    assert {Path(failure.path).name for failure in report.failed} == {"bad.jpg", "bytes.txt", "empty.txt"}
    assert all("\n" not in failure.error and failure.error for failure in report.failed)
    again = run(store, None, pictures)
    assert again.failed == report.failed
    assert {failure.path for failure in store.info().failed} == {failure.path for failure in report.failed}
    assert counts(run(store, encoder, pictures, retry=True)) == {"unchanged": 8}
    Image.new("RGB", (8, 8), "red").save(bad)
    report = run(store, encoder, pictures)
    assert counts(report) == {"added": 1, "unchanged": 8}
    assert {Path(failure.path).name for failure in report.failed} == {"bytes.txt", "empty.txt"}


def test_a_good_file_gone_bad_keeps_its_old_items(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    run(store, encoder, pictures)
    before = uris(store)
    (pictures / "red-square.png").write_bytes(b"half a downl")
    report = run(store, encoder, pictures)
    assert [Path(failure.path).name for failure in report.failed] == ["red-square.png"]
    assert uris(store) == before


def test_a_file_deleted_while_being_read(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    def delete(progress: Progress) -> None:
        if progress.stage == "index":
            (pictures / "blue-triangle.png").unlink(missing_ok=True)

    report = run(store, encoder, pictures, observer=delete)
    assert counts(report) == {"added": 7}
    assert [failure.error for failure in report.failed] == ["it vanished before it could be read"]
    assert run(store, None, pictures).failed == ()


def test_an_unreadable_file_is_tried_again(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, mode: str, **options: Any) -> object:
        if path.endswith("roses.txt"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.indexers.readahead.open", refuse, raising=False)
        report = run(store, encoder, pictures)
    assert [failure.error for failure in report.failed] == ["cannot be read: Permission denied"]
    assert counts(run(store, encoder, pictures)) == {"added": 1, "unchanged": 7}


def test_what_failed_before_is_added_or_updated_by_what_it_had(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, draw: Draw
) -> None:
    run(store, encoder, pictures)
    rows = np.full((4, encoder.dim), np.nan, np.float32)

    class Broken(FakeEncoder):
        def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            return rows[: len(arrays)]

    draw(pictures / "red-square.png", "cyan")
    draw(pictures / "new.png", "pink")
    report = run(store, Broken(), pictures)
    assert [Path(failure.path).name for failure in report.failed] == ["new.png", "red-square.png"]
    assert counts(run(store, encoder, pictures, retry=True)) == {"added": 1, "updated": 1, "unchanged": 7}


def test_a_picture_and_a_text_of_one_name(store: LocalStore, encoder: FakeEncoder, tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "in" / "x.jpg", "red")
    (tmp_path / "in" / "x.txt").write_text("a green bird", encoding="utf-8")
    assert counts(run(store, encoder, tmp_path / "in")) == {"added": 2}
    found = uris(store)
    assert set(found) == {"x.jpg", "x.txt#char=0-12"}
    with store.snapshot() as snapshot:
        assert snapshot.items([found["x.txt#char=0-12"]])[found["x.txt#char=0-12"]].owner == "x.jpg"


@pytest.mark.parametrize("name", ["a\nb.png", "100%_real.png", "'quoted\".png", "😀.png", "猫 照片.png", "%41.png"])
def test_names_of_all_kinds(store: LocalStore, encoder: FakeEncoder, tmp_path: Path, draw: Draw, name: str) -> None:
    draw(tmp_path / "in" / "other.png", "blue")
    path = draw(tmp_path / "in" / name, "red")
    run(store, encoder, tmp_path / "in")
    with store.snapshot() as snapshot:
        records = snapshot.items([int(id_) for id_ in snapshot.item_ids("image")])
    assert str(path) in {record.path for record in records.values()}
    path.unlink()
    assert counts(run(store, None, tmp_path / "in")) == {"removed": 1, "unchanged": 1}


def test_single_files_do_not_pull_in_their_folder(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    assert counts(run(store, encoder, pictures / "red-square.png")) == {"added": 1}
    assert counts(run(store, None)) == {"unchanged": 1}
    (pictures / "red-square.png").unlink()
    assert counts(run(store, None)) == {"removed": 1}


@pytest.mark.parametrize("glob", ["a.jpg", "*.jpg"])
def test_a_folder_above_files_that_were_named_finds_them_once(
    store: LocalStore, encoder: FakeEncoder, tmp_path: Path, draw: Draw, glob: str
) -> None:
    draw(tmp_path / "in" / "photos" / "a.jpg", "red")
    draw(tmp_path / "in" / "photos" / "b.png", "blue")
    with Index(store.path, model="fake") as index:
        assert index.add(tmp_path / "in" / "photos" / glob).added == 1
        report = index.add(tmp_path / "in")
        assert (report.added, report.copied, report.unchanged, report.items) == (1, 0, 1, 2)
        assert [root.whole for root in index.info().roots] == [True, True]


def test_a_folder_below_a_glob_takes_its_files_over(store: LocalStore, tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "in" / "a.jpg", "red")
    draw(tmp_path / "in" / "my photos" / "b.jpg", "blue")
    draw(tmp_path / "in" / "my photos" / "c.png", "green")
    with Index(store.path, model="fake") as index:
        assert index.add(tmp_path / "in" / "**" / "*.jpg").added == 2
        report = index.add(tmp_path / "in" / "my photos")
        assert (counts(report), report.items) == ({"added": 1, "moved": 1}, 3)
        report = index.add()
        assert (counts(report), report.items) == ({"unchanged": 3}, 3)


def test_a_file_that_was_globbed_and_is_named_is_found_once(store: LocalStore, tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "in" / "photos" / "a.jpg", "red")
    with Index(store.path, model="fake") as index:
        index.add(tmp_path / "in" / "**" / "*.jpg")
        assert index.add(tmp_path / "in" / "photos" / "a.jpg").items == 1


def test_a_root_that_comes_or_goes_during_its_first_scan(
    store: LocalStore, encoder: FakeEncoder, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = open_sources([pictures], index_path=store.path)
    source.root = Root(pictures, device=source.root.device + 1)  # an automounter answers the first listing
    report = index_sources([source], store, lambda: encoder)
    assert report.added == 8
    assert "went away" in report.failed[0].error
    assert run(store, None, pictures).unchanged == 8


def test_a_long_run_merges_on_its_way(store: LocalStore, tmp_path: Path, draw: Draw) -> None:
    for number in range(60):
        draw(tmp_path / "in" / f"{number}.png", "red", size=(30 + number, 30))
    most = 0

    def observe(progress: Progress) -> None:
        nonlocal most
        most = max(most, store.info().segments)

    report = run(store, FakeEncoder(batch_size=1), tmp_path / "in", observer=observe, commit_seconds=0.0)
    assert report.added == 60
    assert 15 <= most <= 20


def test_a_damaged_old_segment_does_not_end_a_run(
    store: LocalStore, tmp_path: Path, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "in" / "a.png", "red")
    run(store, FakeEncoder(), tmp_path / "in")
    (segment,) = (store.path / "segments").iterdir()
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    for number in range(30):
        draw(tmp_path / "in" / f"{number}.png", "blue", size=(30 + number, 30))
    report = run(store, FakeEncoder(batch_size=1), tmp_path / "in", commit_seconds=0.0)
    assert counts(report) == {"added": 30, "unchanged": 1}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert segment.name in warning
    assert "mmsearch doctor" in warning
    assert "saved" in warning


def test_chunks_are_no_longer_than_the_model_reads(tmp_path: Path) -> None:
    text = "".join(f"Предложение номер {number} рассказывает о красной птице. " for number in range(40))
    text += "".join(f"第{number}只猫坐在红色的沙发上。" for number in range(40))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "long.txt").write_text(text, encoding="utf-8")
    with Index(tmp_path / "index", model="fake") as index:
        index.add(tmp_path / "in")
        texts = [hit.text or "" for hit in index.search("red", modality="text", k=100)]
    assert FakeEncoder().max_tokens == 64
    assert len("".join(texts)) > 0.95 * len(text)
    assert max(len(text) for text in texts if "П" in text) in range(150, 193)
    assert max(len(text) for text in texts if "П" not in text) in range(40, 59)


def test_long_texts_are_chunked(store: LocalStore, encoder: FakeEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    text = "".join(f"Sentence number {number} is about a red bird. " for number in range(400))
    (folder / "long.md").write_text(text, encoding="utf-8")
    run(store, encoder, folder)
    with store.snapshot() as snapshot:
        records = snapshot.items([int(id_) for id_ in snapshot.item_ids("text")])
    assert len(records) > 10
    for record in records.values():
        start, end = map(int, (record.fragment or "").removeprefix("char=").split("-"))
        assert text[start:end] == record.text
    with (folder / "long.md").open("a", encoding="utf-8") as file:
        file.write("And one more about a blue one.")
    assert counts(run(store, encoder, folder)) == {"updated": 1}


def test_ctrl_c_keeps_the_work(store: LocalStore, many: Path) -> None:
    spy = Spy()
    spy.on_batch = lambda batch: os.kill(os.getpid(), signal.SIGINT) if batch == 5 else None
    report = run(store, spy, many)
    assert report.interrupted
    assert counts(report) == {"added": 20}, "the batch at hand is finished, nothing is half-done"
    assert report.items == len(uris(store)) == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    report = run(store, Spy())
    assert counts(report) == {"added": 40, "unchanged": 20}


def test_ctrl_c_while_the_model_loads(store: LocalStore, many: Path) -> None:
    def load() -> Encoder:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal is raised first")

    report = index_sources(open_sources([many]), store, load)
    assert report.interrupted
    assert report.items == 0
    assert counts(run(store, Spy())) == {"added": 60}


def test_a_keyboard_interrupt_out_of_nowhere_keeps_what_was_committed(store: LocalStore, many: Path) -> None:
    def press(batch: int) -> None:
        if batch == 5:
            raise KeyboardInterrupt

    spy = Spy()
    spy.on_batch = press
    report = run(store, spy, many, commit_seconds=0.0)
    assert report.interrupted
    assert counts(report) == {"added": 16}
    assert report.items == 16


def test_a_failing_encoder_deletes_nothing(store: LocalStore, many: Path) -> None:
    def fail(batch: int) -> None:
        if batch == 3:
            raise RuntimeError("out of memory")

    run(store, Spy(), many)
    before = uris(store)
    for number, path in enumerate(sorted(many.iterdir())):
        Image.new("RGB", (21, 20), (number, 9, 99)).save(path)
    spy = Spy()
    spy.on_batch = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        run(store, spy, many)
    assert set(uris(store)) == set(before)
    assert counts(run(store, Spy(), many)) == {"updated": 52, "unchanged": 8}


def test_rows_that_are_not_finite_are_failures(store: LocalStore, many: Path) -> None:
    class Broken(Spy):
        def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            rows = super().encode_images(arrays)
            if self.batches == 1:
                rows[1] = np.nan
            return rows

    report = run(store, Broken(), many)
    assert counts(report) == {"added": 59}
    assert [failure.error for failure in report.failed] == ["the model gives no usable embedding for it"]


def test_commits_during_the_run(store: LocalStore, many: Path) -> None:
    seen: list[int] = []
    spy = Spy()
    spy.on_batch = lambda batch: seen.append(len(uris(store)))
    run(store, spy, many, commit_seconds=0.0)
    assert seen == list(range(0, 60, 4)), "a reader sees every batch before the next"


def test_decoding_is_ahead_and_bounded(store: LocalStore, many: Path) -> None:
    spy = Spy(batch_size=4)
    run(store, spy, many)
    assert spy.encoded == 60
    assert spy.batches == 15, "full batches"
    assert spy.most_waiting <= 32, "the first model-sized guess at most"


def test_progress_counts_files(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    seen: list[Progress] = []
    (pictures / "bad.jpg").write_bytes(b"no")
    run(store, encoder, pictures, observer=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["scan", "index", "load", "merge"]
    last = [progress for progress in seen if progress.stage == "index"][-1]
    assert (last.done, last.total, last.failed) == (9, 9, 1)


def test_one_writer_at_a_time(store: LocalStore, encoder: FakeEncoder, pictures: Path) -> None:
    with store.writer(), pytest.raises(IndexLocked, match=str(os.getpid())):
        run(store, encoder, pictures)


def test_another_model_is_refused(store: LocalStore, pictures: Path) -> None:
    with pytest.raises(ModelMismatch, match="--index"):
        run(store, FakeEncoder(dim=48), pictures)
    assert store.info().items == 0
