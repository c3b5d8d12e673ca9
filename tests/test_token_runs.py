"""Tokens of pictures through index runs: made with their embeddings, and later for pictures that lack them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_kit import Result
from numpy.typing import NDArray
from PIL import Image
from store_kit import flaws, named_files, segment_files, sql

from mmsearch.index import Index
from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import Progress, index_sources
from mmsearch.indexers.plan import estimate_run
from mmsearch.indexers.reindex import reindex
from mmsearch.indexers.rescan import rescan_sources
from mmsearch.indexers.rows import Item
from mmsearch.retrieval.encoders import Encoder, as_token_encoder
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.encoders.models import load_encoder, token_identity
from mmsearch.retrieval.errors import ModelUnavailable
from mmsearch.retrieval.store import LocalStore, layout
from mmsearch.retrieval.types import Report

SHAPE = (4, 8)


class TokenSpy(FakeEncoder):
    """Makes tokens; counts its calls, and runs `on_batch` before each batch."""

    def __init__(self, name: str = "fake", batch_size: int = 4, dim: int = 32) -> None:
        super().__init__(name, batch_size=batch_size, dim=dim, tokens=SHAPE)
        self.batches: list[int] = []
        self.inside = False
        self.on_batch: Callable[[int], None] = lambda batch: None

    def encode_image_tokens(
        self, arrays: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        self.on_batch(len(self.batches))
        self.batches.append(len(arrays))
        self.inside = True
        encoded = super().encode_image_tokens(arrays)
        self.inside = False
        return encoded

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        assert self.inside, "pictures went through the tower without their tokens"
        return super().encode_images(arrays)


@pytest.fixture
def plain() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def spy() -> TokenSpy:
    return TokenSpy()


@pytest.fixture
def store(tmp_path: Path, plain: FakeEncoder) -> LocalStore:
    return LocalStore.create(tmp_path / "index", model="fake", identity=plain.identity, dim=plain.dim)


@pytest.fixture
def older(store: LocalStore, plain: FakeEncoder, pictures: Path) -> LocalStore:
    """An index of the pictures whose encoder made no tokens yet."""
    run(store, plain, pictures)
    return store


def run(
    store: LocalStore,
    encoder: Encoder | None,
    *paths: Path,
    identity: str | None = None,
    observer: Callable[[Progress], None] | None = None,
    commit_seconds: float = 4.0,
) -> Report:
    def load() -> Encoder:
        assert encoder is not None, "the model was loaded"
        return encoder

    known = [root.path for root in store.info().roots if root.whole]
    sources = open_sources(list(paths), index_path=store.path, known_roots=known) if paths else rescan_sources(store)
    return index_sources(
        sources,
        store,
        load,
        complete=not paths,
        token_identity=identity,
        observer=observer,
        commit_seconds=commit_seconds,
    )


def tokens_of(store: LocalStore, encoder: FakeEncoder) -> dict[str, NDArray[np.int8]]:
    """The stored tokens of each picture that has some, by path; and each is what the encoder makes of the file."""
    with store.snapshot() as snapshot:
        ids = snapshot.item_ids("image")
        records = snapshot.items(ids.tolist())
        there, rows = snapshot.tokens(ids, str(encoder.token_identity))
    found = {}
    for id_, here, row in zip(ids.tolist(), there.tolist(), rows, strict=True):
        path = records[id_].path
        if here and path is not None:
            from mmsearch.retrieval.media import load_image

            array = encoder.preprocess(load_image(Path(path).read_bytes(), target=encoder.image_size).image)
            drawn = FakeEncoder(tokens=encoder.token_shape)
            drawn.token_identity = encoder.token_identity
            assert np.array_equal(drawn.encode_image_tokens([array])[1][0], row), path
            found[os.path.basename(path)] = row
    return found


def missing(store: LocalStore, encoder: FakeEncoder) -> int:
    with store.snapshot() as snapshot:
        return len(snapshot.without_tokens(str(encoder.token_identity)))


def token_files(store: LocalStore) -> list[str]:
    return [name for (name,) in sql(store, "SELECT filename FROM tokens ORDER BY segment_id")]


IMAGES = 6  # of `pictures`


# With the embeddings


def test_pictures_get_tokens_in_the_pass_that_embeds_them(store: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    report = run(store, spy, pictures)
    assert (report.added, report.tokens) == (IMAGES + 2, 0)
    assert sum(spy.batches) == IMAGES
    assert len(tokens_of(store, spy)) == IMAGES
    assert flaws(store) == []
    generation = store.info().generation
    again = run(store, None, pictures, identity=spy.token_identity)
    assert (again.unchanged, again.tokens, store.info().generation) == (IMAGES + 2, 0, generation)


def test_every_commit_has_the_tokens_of_its_pictures(store: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    spy.batch_size = 1
    seen = []

    def look(batch: int) -> None:
        with store.snapshot() as snapshot:
            seen.append((snapshot.counts["image"], len(snapshot.without_tokens(str(spy.token_identity)))))

    spy.on_batch = look
    run(store, spy, pictures, commit_seconds=0.0)
    assert [lacking for _, lacking in seen] == [0] * IMAGES
    assert max(count for count, _ in seen) >= IMAGES - 2


def test_an_encoder_without_tokens_leaves_no_trace(older: LocalStore, plain: FakeEncoder) -> None:
    assert as_token_encoder(plain) is None
    assert token_files(older) == []
    assert not [name for name in segment_files(older) if layout.is_token_name(name)]


def test_changed_pictures_get_new_tokens(
    store: LocalStore, spy: TokenSpy, pictures: Path, draw: Callable[..., Path]
) -> None:
    run(store, spy, pictures)
    draw(pictures / "red-square.png", "cyan", size=(100, 64))
    shutil.copy(pictures / "green-circle.jpg", pictures / "copy.jpg")
    (pictures / "blue-triangle.png").rename(pictures / "moved.png")
    report = run(store, spy, pictures, identity=spy.token_identity)
    assert (report.updated, report.copied, report.moved, report.tokens) == (1, 1, 1, 0)
    assert len(tokens_of(store, spy)) == IMAGES + 1
    assert sum(spy.batches) == IMAGES + 1


def test_a_picture_without_a_usable_embedding_gets_no_tokens(store: LocalStore, pictures: Path) -> None:
    class Broken(TokenSpy):
        def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            rows = super().encode_images(arrays)
            rows[0] = np.nan
            return rows

    broken = Broken(batch_size=100)
    report = run(store, broken, pictures)
    assert len(report.failed) == 1
    assert len(tokens_of(store, broken)) == IMAGES - 1
    assert flaws(store) == []


# Later


def test_the_next_run_adds_tokens_to_an_older_index(older: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    stages = []
    report = run(older, spy, identity=spy.token_identity, observer=stages.append)
    assert (report.unchanged, report.added, report.tokens) == (IMAGES + 2, 0, IMAGES)
    assert len(tokens_of(older, spy)) == IMAGES
    assert max(spy.batches) <= spy.batch_size
    told = [(one.done, one.total) for one in stages if one.stage == "tokens"]
    assert told[-1] == (IMAGES, IMAGES) and told == sorted(told)
    generation = older.info().generation
    assert run(older, None, identity=spy.token_identity).tokens == 0
    assert older.info().generation == generation
    assert flaws(older) == []


def test_a_run_that_loads_the_model_anyway_finds_out_by_itself(
    older: LocalStore, spy: TokenSpy, pictures: Path, draw: Callable[..., Path]
) -> None:
    assert run(older, None, pictures).tokens == 0  # nobody says that the model makes tokens
    draw(pictures / "new.png", "cyan")
    report = run(older, spy, pictures)
    assert (report.added, report.tokens) == (1, IMAGES)
    assert len(tokens_of(older, spy)) == IMAGES + 1


def test_only_scanned_folders_are_read_again(
    older: LocalStore, plain: FakeEncoder, spy: TokenSpy, pictures: Path, tmp_path: Path, draw: Callable[..., Path]
) -> None:
    other = tmp_path / "other"
    draw(other / "cyan.png", "cyan")
    draw(other / "pink.png", "pink")
    run(older, plain, other)
    identity = spy.token_identity
    assert run(older, None, pictures / "red-square.png", identity=identity).tokens == 0
    assert run(older, spy, other, identity=identity).tokens == 2
    assert sorted(tokens_of(older, spy)) == ["cyan.png", "pink.png"]
    draw(tmp_path / "third" / "white.png", "white")
    report = run(older, spy, tmp_path / "third", identity=identity)
    assert (report.added, report.tokens) == (1, 0)
    assert run(older, spy, identity=identity).tokens == IMAGES
    assert missing(older, spy) == 0


def test_pictures_that_cannot_be_read_are_passed_over(older: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    identity = str(spy.token_identity)
    gone, changed, damaged = (pictures / name for name in ("red-square.png", "green-circle.jpg", "blue-triangle.png"))
    stamp = damaged.stat()
    sources = rescan_sources(older)  # scanned before the files change

    def disturb(progress: Progress) -> None:
        if progress.stage == "load":
            gone.unlink(missing_ok=True)
            Image.new("RGB", (30, 30), "pink").save(changed)
            damaged.write_bytes(b"\0" * stamp.st_size)
            os.utime(damaged, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # only reading it tells

    report = index_sources(
        sources, older, lambda: spy, complete=True, token_identity=identity, observer=disturb, threads=1
    )
    assert not report.failed
    assert report.tokens == IMAGES - 3
    assert missing(older, spy) == 3
    assert flaws(older) == []


def test_nothing_is_loaded_for_pictures_that_cannot_be_had(older: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    shutil.rmtree(pictures)
    report = run(older, None, identity=spy.token_identity)
    assert (report.tokens, report.kept) == (0, IMAGES + 2)
    assert missing(older, spy) == IMAGES


def test_another_file_of_the_same_picture_will_do(
    store: LocalStore, plain: FakeEncoder, spy: TokenSpy, pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    run(store, plain, pictures, other)
    shutil.rmtree(pictures)
    report = run(store, spy, other, identity=spy.token_identity)
    assert report.tokens == IMAGES
    assert missing(store, spy) == 0


def test_an_interrupted_run_keeps_what_is_done(store: LocalStore, plain: FakeEncoder, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(40):
        Image.new("RGB", (20, 20), (number * 6, 255 - number * 6, number)).save(many / f"{number:03}.png")
    run(store, plain, many)
    spy = TokenSpy(batch_size=4)
    spy.on_batch = lambda batch: os.kill(os.getpid(), signal.SIGINT) if batch == 3 else None
    report = run(store, spy, many, identity=spy.token_identity)
    assert report.interrupted
    assert report.tokens == len(tokens_of(store, spy)) == 4 * 4
    spy.on_batch = lambda batch: None
    report = run(store, spy, many, identity=spy.token_identity)
    assert (report.interrupted, report.tokens) == (False, 40 - 4 * 4)
    assert len(tokens_of(store, spy)) == 40
    assert flaws(store) == []


def test_a_model_that_is_not_here_fails_no_run(
    older: LocalStore, spy: TokenSpy, caplog: pytest.LogCaptureFixture
) -> None:
    def load() -> Encoder:
        raise ModelUnavailable("it cannot be downloaded here")

    with caplog.at_level(logging.WARNING):
        report = index_sources(rescan_sources(older), older, load, complete=True, token_identity=spy.token_identity)
    assert (report.unchanged, report.tokens) == (IMAGES + 2, 0)
    assert "6 pictures lack the tokens that a reranker reads, and get none: it cannot be downloaded" in caplog.text


def test_an_encoder_that_fails_loses_nothing(older: LocalStore, spy: TokenSpy) -> None:
    def fail(batch: int) -> None:
        if batch == 1:
            raise RuntimeError("the tower fell over")

    spy.on_batch = fail
    with pytest.raises(RuntimeError, match="fell over"):
        run(older, spy, identity=spy.token_identity)
    assert len(tokens_of(older, spy)) == spy.batch_size
    assert flaws(older) == []


def test_tokens_of_another_identity_are_made_anew(older: LocalStore, spy: TokenSpy) -> None:
    run(older, spy, identity=spy.token_identity)
    before = token_files(older)
    newer = TokenSpy()
    newer.token_identity = "fake-tokens-2"
    assert run(older, newer, identity=newer.token_identity).tokens == IMAGES
    assert len(tokens_of(older, newer)) == IMAGES
    assert tokens_of(older, spy) == {}
    assert set(before).isdisjoint(segment_files(older))
    assert segment_files(older) == named_files(older)
    assert flaws(older) == []


@pytest.mark.parametrize("damage", ["missing", "header", "checksum"])
def test_lost_tokens_are_made_anew(older: LocalStore, spy: TokenSpy, damage: str) -> None:
    run(older, spy, identity=spy.token_identity)
    (name,) = token_files(older)
    path = older.path / layout.SEGMENTS / name
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[1 if damage == "header" else -1] ^= 1
        path.write_bytes(content)
    if damage == "checksum":  # which nobody looks at in passing
        with Index(older.path) as index:
            assert [problem.kind for problem in index.doctor(repair=True).problems] == ["tokens-checksum"]
    assert run(older, spy, identity=spy.token_identity).tokens == IMAGES
    assert len(tokens_of(older, spy)) == IMAGES
    assert flaws(older) == []


def test_what_is_said_of_an_encoder_may_be_wrong(older: LocalStore, plain: FakeEncoder, spy: TokenSpy) -> None:
    assert run(older, plain, identity=spy.token_identity).tokens == 0
    assert token_files(older) == []
    run(older, spy, identity=spy.token_identity)
    assert run(older, spy, identity="of some other encoder").tokens == 0
    assert len(tokens_of(older, spy)) == IMAGES  # what it does make stays


# Another model


def test_a_change_of_model_makes_its_tokens_on_the_way(older: LocalStore, spy: TokenSpy) -> None:
    run(older, spy, identity=spy.token_identity)
    other = TokenSpy("other", dim=24)
    other.token_identity = "other-tokens"
    assert reindex(older, lambda: other).switched
    assert sum(other.batches) == IMAGES
    store = LocalStore.open(older.path)
    assert len(tokens_of(store, other)) == IMAGES
    assert tokens_of(store, spy) == {}
    assert flaws(store) == []
    assert run(store, None, identity=other.token_identity).tokens == 0


def test_a_change_to_a_model_without_tokens_drops_them(older: LocalStore, spy: TokenSpy) -> None:
    run(older, spy, identity=spy.token_identity)
    assert reindex(older, lambda: FakeEncoder("other")).switched
    assert token_files(older) == []
    assert segment_files(older) == named_files(older)


# Through the public face


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index", model="fake-tokens")


def test_names_tell_the_identity_without_loading(plain: FakeEncoder) -> None:
    made = as_token_encoder(load_encoder("fake-tokens"))
    assert made is not None
    assert token_identity("fake-tokens") == made.token_identity
    assert made.token_shape == SHAPE
    assert token_identity("fake") is None
    assert token_identity("vectors") is None


def test_items_with_bytes_get_tokens_when_they_are_added(index: Index, pictures: Path) -> None:
    red, green = ((pictures / name).read_bytes() for name in ("red-square.png", "green-circle.jpg"))
    index.add([Item(id="red", image=red)])
    with LocalStore.open(index.path).snapshot() as snapshot:
        assert snapshot.without_tokens(str(token_identity("fake-tokens"))).size == 0
    sql(LocalStore.open(index.path), "DELETE FROM tokens")
    index.add([Item(id="green", image=green)])
    assert index.add().tokens == 0  # nothing says where the red one is
    with LocalStore.open(index.path).snapshot() as snapshot:
        assert snapshot.without_tokens(str(token_identity("fake-tokens"))).size == 1
    index.close()


def test_the_command_line_tells_of_tokens(run: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    assert run("index", str(pictures), "--model", "fake-tokens").code == 0
    assert "8 unchanged; 8 items" in run("index").err
    sql(LocalStore.open(tmp_path / "index"), "DELETE FROM tokens")  # as in an older index
    dry = run("index", "--dry-run")
    assert "8 unchanged, 6 without tokens; to read: 6 files" in dry.out
    assert json.loads(run("index", "--dry-run", "--json").out)["tokens"] == 6
    done = run("index", "--json")
    assert json.loads(done.out)["tokens"] == 6
    assert "6 given tokens" in done.err
    assert "nothing to index" in run("index", "--dry-run").out
    assert json.loads(run("merge", "--json").out)["segments"] == 3
    assert run("doctor").code == 0


def test_a_dry_run_counts_what_a_run_would_read(older: LocalStore, spy: TokenSpy, pictures: Path) -> None:
    def estimate(*paths: Path, complete: bool = False) -> int:
        sources = open_sources(list(paths), index_path=older.path, known_roots=[str(pictures)])
        chosen = rescan_sources(older) if complete else sources
        identity = spy.token_identity
        return estimate_run(chosen, older, lambda: None, complete=complete, token_identity=identity).tokens

    assert estimate(complete=True) == estimate(pictures) == IMAGES
    assert estimate(pictures / "red-square.png") == 0
    (pictures / "red-square.png").unlink()
    assert estimate(complete=True) == IMAGES - 1
    run(older, spy, identity=spy.token_identity)
    assert estimate(complete=True) == 0
