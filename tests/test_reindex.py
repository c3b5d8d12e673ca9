"""Changing the model of an index: what is embedded again, what is kept, what readers see, and what a crash costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmsearch.indexers import reindex as reindexing
from mmsearch.indexers import staging
from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import Progress, index_sources
from mmsearch.indexers.reindex import reindex
from mmsearch.indexers.rescan import rescan_sources
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import IndexLocked, IndexUnusable
from mmsearch.retrieval.media import content_hash, text_hash
from mmsearch.retrieval.probes import PROBES
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, ReindexReport, Report, Root, Stamp

Draw = Callable[..., Path]
Answers = dict[str, list[tuple[str, str | None, float]]]

QUERIES = ("red", "a blue sky", "green grass and yellow roses", "black")
RED = 3  # its axis in the space of the fake encoder
PRECISION = {"precision": "fp32", "device": "cpu", "backend": "fake"}


class Other(FakeEncoder):
    """Another model than the fixture's; notes all that it embeds, and can fail or be stopped on the way.

    The probes by which its scores are judged are no part of that.
    """

    def __init__(self, name: str = "other", *, dim: int = 20, max_tokens: int = 64, batch_size: int = 2) -> None:
        super().__init__(name, dim=dim, max_tokens=max_tokens, batch_size=batch_size)
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.bad = -1  # pictures mostly of this colour get rows of NaN
        self.prepared = self.most_waiting = 0
        self.on_call: Callable[[int], None] = lambda call: None
        self.calls = 0

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        self.prepared += 1
        return super().preprocess(image)

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        self._called()
        self.most_waiting = max(self.most_waiting, self.prepared - len(self.images))
        rows = super().encode_images(arrays)
        for row, array in zip(rows, arrays, strict=True):
            self.images.append(array.tobytes())
            if self.bad >= 0 and row[self.bad] > 0.5:
                row[:] = np.nan
        return rows

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if texts is not PROBES:
            self._called()
            self.texts += texts
        return super().encode_texts(texts)

    @property
    def embedded(self) -> int:
        return len(self.images) + len(self.texts)

    def _called(self) -> None:
        self.calls += 1
        self.on_call(self.calls)


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small corpora take several pages and batches of texts, and merge on the way."""
    monkeypatch.setattr(staging, "_PAGE", 3)
    monkeypatch.setattr(staging, "_COMMITS_PER_MERGE", 3)
    monkeypatch.setattr(reindexing, "_TEXT_BATCH", 2)


@pytest.fixture
def corpus(pictures: Path) -> Path:
    """Eight pictures, two of them equal to others, and texts, one of them long."""
    shutil.copy(pictures / "red-square.png", pictures / "more" / "red-again.png")
    shutil.copy(pictures / "green-circle.jpg", pictures / "a-green.jpg")
    story = " ".join(
        f"Sentence {number} is about a {colour} thing." for number in range(20) for colour in ("red", "blue")
    )
    (pictures / "story.md").write_text(f"  # A story\n\n{story}\n\n天空是蓝色的。草是绿色的。\n", encoding="utf-8")
    (pictures / "roses-again.txt").write_text("Roses are red.\n", encoding="utf-8")
    return pictures


def make(path: Path, encoder: FakeEncoder, *folders: Path, steps: Any = None, **options: Any) -> LocalStore:
    """An index of some folders."""
    store = LocalStore.create(
        path, model=encoder.name, identity=encoder.identity, dim=encoder.dim, max_tokens=encoder.max_tokens, **options
    )
    if folders:
        index(store, encoder, *folders)
    return store


def index(store: LocalStore, encoder: FakeEncoder, *folders: Path) -> Report:
    sources = open_sources(list(folders), index_path=store.path) if folders else rescan_sources(store)
    return index_sources(sources, store, lambda: encoder)


def change(path: Path, encoder: FakeEncoder, **options: Any) -> ReindexReport:
    """Reindexes, sees to it that the index is sound whatever comes of it."""
    try:
        return reindex(LocalStore.open(path), lambda: encoder, **options)
    finally:
        sound(path)


def sound(path: Path) -> None:
    store = LocalStore.open(path)
    assert store.verify() == []
    with store.snapshot() as snapshot:
        for space, count in snapshot.counts.items():
            ids = snapshot.item_ids(space)
            assert len(ids) == count
            assert len(snapshot.vectors(space, ids)) == count
            assert len(snapshot.search(space, np.ones((1, snapshot.dim), np.float32), count + 5)[0]) == count


def answers(snapshot: Snapshot, encoder: FakeEncoder) -> Answers:
    """All hits of some queries, in both spaces; scores of equal vectors are equal to the bit."""
    found: Answers = {}
    for space in snapshot.counts:
        for query, row in zip(QUERIES, encoder.encode_texts(QUERIES), strict=True):
            hits = snapshot.search(space, row[None], 1000)[0]
            records = snapshot.items([hit.item_id for hit in hits])
            found[f"{space}: {query}"] = sorted(
                (records[hit.item_id].uri, records[hit.item_id].fragment or "", hit.score) for hit in hits
            )
    return found


def all_answers(path: Path, encoder: FakeEncoder) -> Answers:
    with LocalStore.open(path).snapshot() as snapshot:
        assert snapshot.identity == encoder.identity
        return answers(snapshot, FakeEncoder(encoder.name, dim=encoder.dim, max_tokens=encoder.max_tokens))


def ids(path: Path) -> dict[tuple[str, str | None], int]:
    with LocalStore.open(path).snapshot() as snapshot:
        return {(record.uri, record.fragment): record.item_id for record in snapshot.all_items()}


def models(path: Path) -> list[str]:
    with LocalStore.open(path).writer() as writer:
        return [model.name for model in writer.models().values()]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("commit_seconds", [0.0, 60.0])
def test_as_if_made_afresh(
    tmp_path: Path, encoder: FakeEncoder, corpus: Path, dtype: Any, commit_seconds: float
) -> None:
    path = make(tmp_path / "index", encoder, corpus, dtype=dtype).path
    before = ids(path)
    new = Other()
    report = change(path, new, commit_seconds=commit_seconds)
    fresh = make(tmp_path / "fresh", Other(), corpus, dtype=dtype)
    assert all_answers(path, new) == all_answers(fresh.path, new)
    assert ids(path) == before
    contents = len(set(new.images)) + len(set(new.texts))
    assert report == ReindexReport(
        model="other",
        previous_model="fake",
        switched=True,
        items=len(before),
        embedded=contents,
        reused=len(before) - contents,
        seconds=report.seconds,
    )
    assert (len(new.images), contents) == (6, new.embedded)
    opened = LocalStore.open(path)
    assert (opened.model, opened.identity, opened.dim) == ("other", new.identity, 20)
    assert models(path) == ["other"]
    assert len(os.listdir(path / "segments")) <= 4  # merged by size
    unchanged = index(opened, new)
    assert unchanged.unchanged == 12
    assert new.embedded == contents


def test_an_empty_index(tmp_path: Path, encoder: FakeEncoder) -> None:
    path = make(tmp_path / "index", encoder).path
    assert change(path, Other()).switched
    assert models(path) == ["other"]


def test_and_back_again(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before, names = all_answers(path, encoder), ids(path)
    change(path, Other())
    assert change(path, encoder).previous_model == "other"
    assert all_answers(path, encoder) == before
    assert ids(path) == names


def test_the_same_model_has_nothing_to_do(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = LocalStore.open(path).info()
    alias = Other()
    alias.identity = encoder.identity
    report = change(path, alias)
    assert (report.switched, report.interrupted, report.embedded, alias.embedded) == (False, False, 0, 0)
    assert (report.model, report.previous_model, report.items) == ("fake", "fake", before.items)
    assert LocalStore.open(path).info() == before


def test_readers_keep_what_they_opened(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = all_answers(path, encoder)
    new = Other()
    during: list[Answers] = []
    with LocalStore.open(path).snapshot() as old:

        def look(progress: Progress) -> None:
            during.extend((answers(old, encoder), all_answers(path, encoder)))

        change(path, new, commit_seconds=0, observer=look)
        assert len(during) > 10
        assert all(one == before for one in during)
        assert answers(old, encoder) == before
        assert not old.is_current()
    assert all_answers(path, new) != before


def test_a_reader_beside_it_sees_the_old_and_then_the_new(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    new = Other()
    fresh = all_answers(make(tmp_path / "fresh", Other(), corpus).path, new)
    expected = {encoder.identity: all_answers(path, encoder), new.identity: fresh}
    encoders = {encoder.identity: encoder, new.identity: FakeEncoder("other", dim=20)}
    seen: list[str] = []
    wrong: list[str] = []
    end = threading.Event()

    def read() -> None:
        last = False
        while not last:
            last = end.is_set()  # one more look afterwards
            with LocalStore.open(path).snapshot() as snapshot:
                seen.append(snapshot.identity)
                if answers(snapshot, encoders[snapshot.identity]) != expected[snapshot.identity]:
                    wrong.append(snapshot.identity)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        change(path, new, commit_seconds=0)
    finally:
        end.set()
        reader.join(60)
    assert wrong == []
    assert (seen[0], seen[-1]) == (encoder.identity, new.identity)
    assert seen == sorted(seen, key=[encoder.identity, new.identity].index)


# Interrupted


class Killed(BaseException):
    """The end of the process, as far as one test process can have several."""


def test_ended_at_every_step_and_continued(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    """Nothing visible changes before the switch; nothing that was committed is embedded again."""
    original = make(tmp_path / "index", encoder, corpus).path
    before = all_answers(original, encoder)
    names: list[str] = []
    whole = shutil.copytree(original, tmp_path / "whole")
    expected = Other()
    reindex(LocalStore.open(whole, steps=names.append), lambda: expected, commit_seconds=0)
    after = all_answers(whole, expected)
    assert names.count("commit:done") > 6
    assert names[-4:] == ["switch:catalog", "switch:commit", "switch:unlink", "switch:done"]
    for fatal, step in enumerate(names):
        if step.startswith("segment:") and step != "segment:folder-fsync":
            continue  # the tests of the store end there
        path = shutil.copytree(original, tmp_path / "killed" / str(fatal))
        left = [fatal]
        new = Other()
        saved: list[int] = []  # what had been embedded at each commit

        def end(name: str, left: list[int] = left, new: Other = new, saved: list[int] = saved) -> None:
            if name == "commit:done":
                saved.append(new.embedded)
            left[0] -= 1
            if left[0] == -1:
                raise Killed

        with pytest.raises(Killed):
            reindex(LocalStore.open(path, steps=end), lambda new=new: new, commit_seconds=0)
        sound(path)
        switched = step in ("switch:unlink", "switch:done")
        assert all_answers(path, new if switched else encoder) == (after if switched else before), step
        again = Other()
        assert change(path, again).switched == (not switched)
        assert all_answers(path, again) == after, step
        assert (saved[-1] if saved else 0) + again.embedded == expected.embedded, step
        shutil.rmtree(path)


_KILLED = """
import json, os, signal, sys
from mmsearch.indexers.reindex import reindex
from mmsearch.retrieval.store import LocalStore
from test_reindex import Other

path, commits = sys.argv[1], int(sys.argv[2])
new = Other()

def step(name):
    global commits
    if name == "commit:done" and new.embedded:
        print(json.dumps([[image.hex() for image in new.images], new.texts]), flush=True)
        commits -= 1
        if not commits:
            os.kill(os.getpid(), signal.SIGKILL)

reindex(LocalStore.open(path, steps=step), lambda: new, commit_seconds=0)
print(json.dumps([[image.hex() for image in new.images], new.texts]), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_again_and_again(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    """Each process dies after its second commit with vectors, and all of them together embed everything once."""
    path = make(tmp_path / "index", encoder, corpus).path
    before = all_answers(path, encoder)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OPENBLAS_NUM_THREADS": "1"}
    embedded: list[str] = []
    deaths = 0
    while True:
        command = [sys.executable, "-c", _KILLED, str(path), "2"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
        images, texts = json.loads(done.stdout.splitlines()[-1])
        embedded += images + texts
        if done.returncode == 0:
            break
        assert images or texts
        assert done.returncode == -signal.SIGKILL, done.stderr
        deaths += 1
        sound(path)
        assert all_answers(path, encoder) == before
    fresh = Other()
    expected = all_answers(make(tmp_path / "fresh", fresh, corpus).path, fresh)
    assert deaths >= 2
    assert all_answers(path, Other()) == expected
    assert sorted(embedded) == sorted([*{image.hex() for image in fresh.images}, *set(fresh.texts)])


@pytest.mark.parametrize("call", [1, 2, 5, 6])
def test_ctrl_c_keeps_the_work(tmp_path: Path, encoder: FakeEncoder, corpus: Path, call: int) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = all_answers(path, encoder)
    first = Other()
    first.on_call = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == call else None
    report = change(path, first)
    assert (report.interrupted, report.switched, report.embedded) == (True, False, first.embedded)
    assert first.calls == call
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all_answers(path, encoder) == before
    assert models(path) == ["fake", "other"]
    second = Other()
    report = change(path, second)
    assert (report.switched, report.embedded) == (True, second.embedded)
    assert not set(first.images) & set(second.images)
    assert not set(first.texts) & set(second.texts)
    assert report.reused == report.items - second.embedded


def test_ctrl_c_while_the_model_loads(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path

    def load() -> FakeEncoder:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    report = reindex(LocalStore.open(path), load)
    assert (report.interrupted, report.switched, report.model, report.previous_model) == (True, False, "", "fake")
    assert models(path) == ["fake"]


def test_a_second_ctrl_c_keeps_what_was_committed(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    first = Other()

    def twice(call: int) -> None:
        if call == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    first.on_call = twice
    report = change(path, first, commit_seconds=0)
    assert (report.interrupted, report.switched) == (True, False)
    second = Other()
    assert change(path, second).switched
    assert not set(first.texts + first.images) & set(second.texts + second.images)  # the fourth call embedded nothing


def test_another_model_gives_up_the_first_attempt(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    first = Other("first", dim=24)
    first.on_call = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 7 else None
    assert change(path, first).interrupted
    second = Other()
    assert change(path, second).model == "other"
    assert models(path) == ["other"]
    assert len(os.listdir(path / "segments")) <= 4
    assert all_answers(path, second) == all_answers(make(tmp_path / "fresh", Other(), corpus).path, second)


def test_a_failing_encoder_keeps_what_it_had_done(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    first = Other()

    def fail(call: int) -> None:
        if len(first.images) == 2:
            raise RuntimeError("out of memory")

    first.on_call = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        change(path, first)
    second = Other()
    assert change(path, second).switched
    assert not set(first.texts + first.images) & set(second.texts + second.images)


def test_an_index_run_between_two_attempts(
    tmp_path: Path, encoder: FakeEncoder, corpus: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_PAGE", 1000)
    path = make(tmp_path / "index", encoder, corpus).path
    first = Other()
    first.on_call = lambda number: os.kill(os.getpid(), signal.SIGINT) if number == 9 else None
    assert change(path, first).interrupted
    assert first.images
    draw(corpus / "added.png", "purple")
    (corpus / "added.txt").write_text("Something green.", encoding="utf-8")
    (corpus / "red-square.png").unlink()
    (corpus / "roses.txt").unlink()
    draw(corpus / "blue-triangle.png", "cyan", size=(50, 40))
    draw(corpus / "a-green.jpg", "brown", size=(50, 40))
    shutil.move(corpus / "black-circle.gif", corpus / "more" / "black.gif")
    report = index(LocalStore.open(path), encoder)
    assert (report.added, report.updated, report.removed, report.moved) == (2, 2, 2, 1)
    sound(path)
    assert models(path) == ["fake", "other"]
    names = ids(path)
    second = Other()
    report_ = change(path, second)
    assert (report_.switched, report_.changed, report_.dropped) == (True, 0, 0)
    assert not set(first.texts + first.images) & set(second.texts + second.images)
    assert all_answers(path, second) == all_answers(make(tmp_path / "fresh", Other(), corpus).path, second)
    assert ids(path) == names
    assert index(LocalStore.open(path), second).unchanged == len({uri for uri, _ in names})


# Pictures that are not what they were


def test_equal_content_is_embedded_once(tmp_path: Path, encoder: FakeEncoder, draw: Draw) -> None:
    folder = tmp_path / "pictures"
    draw(folder / "00.png", "red")
    for number in range(1, 12):
        shutil.copy(folder / "00.png", folder / f"{number:02}.png")
    path = make(tmp_path / "index", encoder, folder).path
    new = Other()
    report = change(path, new)
    assert (len(new.images), new.prepared, report.embedded, report.reused) == (1, 1, 1, 11)


@pytest.mark.parametrize("gone", [("0.png",), ("0.png", "1.png"), ("1.png", "2.png")])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_any_file_of_a_content_will_do(
    tmp_path: Path, encoder: FakeEncoder, draw: Draw, gone: Sequence[str], how: str
) -> None:
    folder = tmp_path / "pictures"
    draw(folder / "0.png", "red")
    for number in range(1, 3):
        shutil.copy(folder / "0.png", folder / f"{number}.png")
    path = make(tmp_path / "index", encoder, folder).path
    before = ids(path)
    for name in gone:
        (folder / name).unlink()
        if how == "changed":
            draw(folder / name, "blue")
    new = Other()
    report = change(path, new)
    assert (report.switched, report.changed, report.dropped, report.reused) == (True, 0, 0, 2)
    assert ids(path) == before
    with LocalStore.open(path).snapshot() as snapshot:
        rows = snapshot.vectors("image", list(before.values()))
    assert (rows[:, RED] > 0.5).all()


def test_changed_files_are_embedded_as_they_are_now(
    tmp_path: Path, encoder: FakeEncoder, corpus: Path, draw: Draw
) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = ids(path)
    changed = corpus / "blue-triangle.png"
    stamp = changed.stat()
    content = changed.read_bytes()
    draw(changed, "cyan", "circle")
    now = changed.read_bytes()
    changed.write_bytes(now + bytes(max(0, len(content) - len(now))))  # what follows the end of a PNG is ignored
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    draw(corpus / "yellow-square.webp", "purple", size=(50, 40))
    new = Other()
    report = change(path, new)
    assert (report.switched, report.changed, report.dropped, report.items) == (True, 2, 0, len(before) - 2)
    assert set(before) - set(ids(path)) == {("blue-triangle.png", None), ("yellow-square.webp", None)}
    embedded = new.embedded
    found = index(LocalStore.open(path), new)
    assert (found.updated + found.added + found.copied, found.items) == (2, len(before))
    assert new.embedded == embedded
    sound(path)
    assert all_answers(path, new) == all_answers(make(tmp_path / "fresh", Other(), corpus).path, new)


def test_missing_files_stop_the_switch(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before, names = all_answers(path, encoder), ids(path)
    away = tmp_path / "away"
    shutil.move(corpus / "more", away)
    for name in ("blue-triangle.png", "yellow-square.webp", "black-circle.gif"):
        shutil.move(corpus / name, away / name)
    new = Other()
    with pytest.raises(IndexUnusable) as refused:
        change(path, new)
    message = str(refused.value)
    assert f"4 items of the index at {path} cannot be embedded again: " in message
    assert message.count("it vanished before it could be read") == 3
    for part in (str(corpus / "black-circle.gif"), " and 1 more", "mount it", "`mmsearch index`", "--drop", "fake as"):
        assert part in message
    assert str(away) not in message
    assert all_answers(path, encoder) == before
    assert len(new.images) == 2  # red and green; the texts of `more` need no file
    second = Other()
    with pytest.raises(IndexUnusable, match="4 items"):
        change(path, second)
    assert second.embedded == 0
    for name in ("blue-triangle.png", "yellow-square.webp", "black-circle.gif"):
        shutil.move(away / name, corpus / name)
    shutil.move(away, corpus / "more")
    third = Other()
    assert change(path, third).embedded == 4
    assert ids(path) == names


def test_missing_files_are_dropped_when_asked(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = ids(path)
    (corpus / "blue-triangle.png").rename(tmp_path / "blue.png")
    (corpus / "black-circle.gif").unlink()
    (corpus / "black-circle.gif").mkdir()
    new = Other()
    report = change(path, new, drop=True)
    assert (report.switched, report.dropped, report.changed, report.items) == (True, 2, 0, len(before) - 2)
    assert set(before) - set(ids(path)) == {("blue-triangle.png", None), ("black-circle.gif", None)}
    (tmp_path / "blue.png").rename(corpus / "blue-triangle.png")  # its drive is back
    report_ = index(LocalStore.open(path), new)
    assert (report_.added + report_.updated, report_.removed) == (1, 1)
    sound(path)
    assert all_answers(path, new) == all_answers(make(tmp_path / "fresh", Other(), corpus).path, new)


def test_a_good_file_gone_bad_is_not_let_go(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    """The index run after it could not put anything in its place."""
    path = make(tmp_path / "index", encoder, corpus).path
    for name in ("blue-triangle.png", "black-circle.gif"):  # equal, too
        (corpus / name).write_bytes(b"no picture")
    with pytest.raises(IndexUnusable, match="2 items"):
        change(path, Other())
    report = change(path, Other(), drop=True)
    assert (report.switched, report.dropped, report.changed) == (True, 2, 0)


def test_pictures_that_the_model_cannot_embed(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    new = Other()
    new.bad = RED
    with pytest.raises(IndexUnusable, match=r"2 items .*the model gives no usable embedding for it.*red"):
        change(path, new)
    assert len(new.images) == 6  # once, though two files have it
    report = change(path, new, drop=True)
    assert (report.switched, report.dropped, report.reused) == (True, 2, report.items)


def test_other_files_may_fail_while_a_damaged_old_segment_stays_apart(
    tmp_path: Path, encoder: FakeEncoder, corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The old vectors are not needed: an index with damaged ones is sound afterwards."""
    store = make(tmp_path / "index", encoder, corpus / "more")
    index(store, encoder, corpus)
    for segment in (store.path / "segments").glob("image-*"):
        content = bytearray(segment.read_bytes())
        content[-1] ^= 1
        segment.write_bytes(content)
    assert store.verify()
    assert reindex(store, Other, commit_seconds=0).switched
    sound(store.path)


# Texts


def test_long_texts_are_cut_further(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    before = ids(path)
    story = (corpus / "story.md").read_text("utf-8")
    long = {
        name for name in before if name[0] == "story.md" and name[1] != f"char={story.index('天')}-{len(story) - 1}"
    }
    new = Other(max_tokens=20)
    report = change(path, new)
    after = ids(path)
    assert report.recut == len(long) > 3
    assert {name: after[name] for name in before if name not in long} == {
        name: id_ for name, id_ in before.items() if name not in long
    }
    spans = []
    with LocalStore.open(path).snapshot() as snapshot:
        for record in snapshot.all_items():
            if record.uri == "story.md":
                assert record.fragment is not None
                assert record.text is not None
                start, end = map(int, record.fragment.removeprefix("char=").split("-"))
                assert story[start:end] == record.text
                assert len(record.text) <= 60
                assert record.item_id > max(before.values()) or (record.uri, record.fragment) in before
                spans.append((start, end))
    spans.sort()
    gaps = [story[end:start] for (_, end), (start, _) in pairwise(spans)]
    assert "".join([story[: spans[0][0]], *gaps, story[spans[-1][1] :]]).strip() == ""
    assert report.items == len(after) == sum(LocalStore.open(path).snapshot().counts.values())
    assert index(LocalStore.open(path), new).unchanged == 12
    assert change(path, Other("third", max_tokens=20)).recut == 0


def test_a_model_that_reads_more_leaves_texts_as_they_are(tmp_path: Path, corpus: Path) -> None:
    path = make(tmp_path / "index", FakeEncoder(max_tokens=20), corpus).path
    before = ids(path)
    report = change(path, Other(max_tokens=64))
    assert report.recut == 0
    assert ids(path) == before


ROWS = Root(Path("rows:"), 0, kind="rows")


def give(path: Path, uri: str, items: Sequence[NewItem], modality: Modality = "text") -> None:
    """Adds what a program gives: items with vectors of its own."""
    with LocalStore.open(path).writer() as writer:
        writer.root(ROWS)
        ref = ItemRef("rows:", uri, "", modality, Stamp(1, 1))
        writer.add(ref, content_hash=content_hash(uri.encode()), metadata=AssetMetadata(), items=items)
        for item in items:
            row = np.ones((1, LocalStore.open(path).dim), np.float32)
            writer.embed(item.modality, [item.content_key], row, **PRECISION)
        writer.commit()


def texts_of(path: Path) -> dict[str, list[tuple[str | None, str | None]]]:
    found: dict[str, list[tuple[str | None, str | None]]] = {}
    with LocalStore.open(path).snapshot() as snapshot:
        for record in snapshot.all_items():
            found.setdefault(record.id or "", []).append((record.fragment, record.text))
    return found


def test_texts_that_a_program_gave(tmp_path: Path, encoder: FakeEncoder) -> None:
    """They get vectors of their texts, whatever they had; whole ones keep their ids."""
    path = make(tmp_path / "index", encoder).path
    long = "Red apples, green apples; and blue ones. " * 4
    given = content_hash(b"a vector")
    give(path, "id=1", [NewItem("text", given, None, "a red rose")])
    give(path, "id=2", [NewItem("text", text_hash("a red rose"), None, "a red rose")])
    give(path, "id=3", [NewItem("text", content_hash(b"another"), None, long)])
    give(path, "id=4", [NewItem("text", text_hash(long), "page=7", long)])
    give(path, "id=5", [NewItem("text", content_hash(b"third"), "char=1000-1164", long)])
    give(path, "id=6", [NewItem("text", text_hash("  "), None, "  ")])
    with LocalStore.open(path).snapshot() as snapshot:
        before = [record.item_id for record in snapshot.all_items()]
    new = Other(max_tokens=12)
    report = change(path, new)
    assert (report.switched, report.recut, report.items) == (True, 3, 3 + 3 * 8)
    assert len(new.texts) == len(set(new.texts)) == 2 + len({text for _, text in texts_of(path)["3"]})
    found = texts_of(path)
    assert found["1"] == found["2"] == [(None, "a red rose")]
    assert found["6"] == [(None, "  ")]
    for id_, before_, first in (("3", "", 0), ("4", "page=7&", 0), ("5", "", 1000)):
        for fragment, text in found[id_]:
            assert fragment is not None
            start, end = map(int, fragment.removeprefix(f"{before_}char=").split("-"))
            assert long[start - first : end - first] == text
    with LocalStore.open(path).snapshot() as snapshot:
        ids_ = [record.item_id for record in snapshot.all_items()]
        assert ids_[:3] == [before[0], before[1], before[5]]
        rows = snapshot.vectors("text", ids_[:2])
        assert (rows == FakeEncoder("other", dim=20).encode_texts(["a red rose"])).all()
    third = FakeEncoder("third")
    assert change(path, third).switched


def test_what_a_program_gave_without_a_file_or_text(tmp_path: Path, encoder: FakeEncoder) -> None:
    path = make(tmp_path / "index", encoder).path
    give(path, "id=1", [NewItem("image", content_hash(b"pixels"))], "image")
    give(path, "id=2", [NewItem("text", content_hash(b"vector"))])
    give(path, "id=3", [NewItem("text", text_hash("a rose"), None, "a rose")])
    with pytest.raises(IndexUnusable, match=r"2 items .*given without the text.*given without a file"):
        change(path, Other())
    report = change(path, Other(), drop=True)
    assert (report.switched, report.dropped, report.items, report.reused) == (True, 2, 1, 1)


# The rest


def test_decoding_is_ahead_and_bounded(tmp_path: Path, encoder: FakeEncoder) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (20, 20), (number * 4, 255 - number * 4, number)).save(folder / f"{number:03}.png")
    path = make(tmp_path / "index", encoder, folder).path
    new = Other(batch_size=4)
    assert change(path, new, threads=2).embedded == 60
    assert 4 < new.most_waiting <= 3 * 4


def test_progress_counts_items(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    total = LocalStore.open(path).info().items
    (corpus / "blue-triangle.png").unlink()
    told: list[Progress] = []
    change(path, Other(), observer=told.append, drop=True)
    assert [progress.stage for progress in told if progress.stage != "index"] == ["load", "merge"]
    done = [progress.done for progress in told if progress.stage == "index"]
    assert (done[0], done[-1]) == (0, total)
    assert done == sorted(done)
    assert {progress.total for progress in told if progress.stage == "index"} == {total}
    assert told[-1].failed == 1


def test_one_writer_at_a_time(tmp_path: Path, encoder: FakeEncoder, corpus: Path) -> None:
    path = make(tmp_path / "index", encoder, corpus).path
    with LocalStore.open(path).writer(), pytest.raises(IndexLocked):
        reindex(LocalStore.open(path), Other)
