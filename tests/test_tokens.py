"""Tokens in the store: kept beside embeddings, merged, lost and repaired as what they are: derived."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_kit import (
    OTHER,
    TOKENS,
    add,
    add_tokens,
    content_of,
    embed,
    flaws,
    found,
    key,
    make,
    named_files,
    prepare,
    recut,
    ref,
    reindex,
    segment_files,
    sql,
    stage,
    tokens_in,
    tokens_of,
)

from mmsearch.retrieval.errors import IndexUnusable
from mmsearch.retrieval.store import LocalStore, layout
from mmsearch.retrieval.store.doctor import Diagnosis, examine, repair
from mmsearch.retrieval.store.segments import Segment
from mmsearch.retrieval.types import Root

BOTH = {"a.jpg": tokens_of(key("a")).tolist(), "a-again.jpg": tokens_of(key("a")).tolist()}
ALL = {**BOTH, "c.jpg": tokens_of(key("c")).tolist()}
NONE = dict.fromkeys(ALL)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return prepare(tmp_path / "photos" / "index")


@pytest.fixture
def full(store: LocalStore) -> LocalStore:
    """All pictures have tokens, in two files."""
    for content in ("a", "c"):
        with store.writer() as writer:
            add_tokens(writer, content)
            writer.commit()
    return store


def files(store: LocalStore) -> list[Path]:
    names = [name for (name,) in sql(store, "SELECT filename FROM tokens ORDER BY segment_id")]
    return [store.path / layout.SEGMENTS / name for name in names]


def flip(path: Path, at: int) -> None:
    """Damages a byte of a file, without a change of its size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.chmod(0o600)
    path.write_bytes(content)


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [problem.kind for problem in diagnosis.problems]


# Written and read


def test_equal_content_shares_tokens_and_the_rest_has_none(store: LocalStore) -> None:
    assert tokens_in(store) == NONE
    with store.writer() as writer:
        add_tokens(writer, "a")
        writer.commit()
    assert tokens_in(store) == {**BOTH, "c.jpg": None}
    assert len(files(store)) == 1
    assert flaws(store) == []


def test_tokens_come_in_the_order_asked_for_and_only_pictures_have_any(full: LocalStore) -> None:
    with full.snapshot() as snapshot:
        uris = {record.uri: record.item_id for record in snapshot.all_items()}
        asked = [uris["c.jpg"], uris["notes.txt"], 10**6, uris["a.jpg"], uris["c.jpg"]]
        there, rows = snapshot.tokens(asked, TOKENS)
        assert there.tolist() == [True, False, False, True, True]
        assert rows.dtype == np.int8 and rows.shape == (5, 2, 3)
        assert np.array_equal(rows[0], tokens_of(key("c"))) and np.array_equal(rows[4], rows[0])
        assert np.array_equal(rows[3], tokens_of(key("a")))
        assert not rows[1:3].any()
        there, rows = snapshot.tokens(asked, "of another encoder")
        assert not there.any() and rows.shape == (5, 0, 0)
        assert snapshot.tokens([], TOKENS)[0].shape == (0,)


def test_tokens_of_new_pictures_come_with_their_commit(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        add(writer, photos, "d.jpg", "d")
        add_tokens(writer, "d", "a")
        assert tokens_in(store) == NONE
        writer.commit()
        assert tokens_in(store)["d.jpg"] == tokens_of(key("d")).tolist()
        add(writer, photos, "e.jpg", "e")
        add_tokens(writer, "e", "c")
        writer.rollback()
        writer.commit()
    assert tokens_in(store) == {**BOTH, "c.jpg": None, "d.jpg": tokens_of(key("d")).tolist()}
    assert len(files(store)) == 1
    with store.snapshot() as snapshot:
        assert len(snapshot.without_tokens(TOKENS)) == 1
        assert len(snapshot.without_tokens("of another encoder")) == 3


def test_a_picture_keeps_the_tokens_that_it_has(full: LocalStore) -> None:
    before = files(full)
    with full.writer() as writer:
        for _ in range(2):  # twice in a commit
            writer.embed_tokens([key("a"), key("c")], np.ones((2, 2, 3), np.int8), identity=TOKENS)
        writer.commit()
    assert tokens_in(full) == ALL
    assert files(full) == before


def test_what_is_no_tokens_is_refused(store: LocalStore) -> None:
    keys = [key("a"), key("c")]
    with store.writer() as writer:
        for wrong in (np.zeros((2, 6), np.int8), np.zeros((1, 2, 3), np.int8), np.zeros((2, 2, 3), np.float32)):
            with pytest.raises(ValueError, match=r"tokens must be int8 \(2, length, width\)"):
                writer.embed_tokens(keys, wrong, identity=TOKENS)
        with pytest.raises(ValueError, match="1 pictures with tokens have no embedding"):
            writer.embed_tokens([key("a"), key("unknown")], np.zeros((2, 2, 3), np.int8), identity=TOKENS)
        writer.embed_tokens([], np.zeros((0, 2, 3), np.int8), identity=TOKENS)
        generation = store.info().generation
        assert writer.commit() == generation


def test_a_file_says_what_it_is(full: LocalStore) -> None:
    path = files(full)[0]
    header = Segment(path).header
    assert path.name == "tokens-000001.seg"
    assert (header["space"], header["dtype"], header["identity"], header["shape"]) == ("tokens", "int8", TOKENS, [2, 3])
    assert "faiss_offset" not in header and "roots" not in header
    assert path.stat().st_size == header["bytes"] == header["vectors_offset"] + 6
    assert full.info().segments == 5
    assert full.info().bytes >= sum(one.stat().st_size for one in full.path.rglob("*.seg"))


def test_searches_open_no_tokens(full: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    before = content_of(full)
    hits = found(full, "c")
    for path in files(full):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert content_of(full) == before
        assert found(full, "c") == hits
        assert full.info().images == 3
    assert caplog.records == []


def test_only_the_pictures_that_were_asked_for_are_read(full: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a file stays on the disk: nothing takes its checksum, or a copy of it."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the whole file was read")

    for name in ("checksum", "scan", "prefetch"):
        monkeypatch.setattr(Segment, name, refuse)
    assert tokens_in(full) == ALL


# Merges


def test_merges_join_files_and_drop_what_is_gone(full: LocalStore) -> None:
    with full.writer() as writer:
        writer.remove(str(full.path.parent), ["c.jpg"])
        writer.commit()
        assert writer.merge(all_segments=True) == 2 + 2  # the texts have one segment
        assert writer.merge(all_segments=True) == 0
    assert tokens_in(full) == BOTH
    assert sql(full, "SELECT count FROM tokens") == [(1,)]
    assert len(files(full)) == 1
    assert flaws(full) == []
    assert segment_files(full) == named_files(full)


def test_the_last_tokens_go_without_a_file(full: LocalStore) -> None:
    with full.writer() as writer:
        writer.remove(str(full.path.parent), ["a.jpg", "a-again.jpg", "c.jpg"])
        writer.commit()
        writer.merge(all_segments=True)
    assert files(full) == []
    assert segment_files(full) == named_files(full)


def test_a_picture_that_comes_back_after_a_merge_lacks_its_tokens(full: LocalStore) -> None:
    photos = full.path.parent
    with full.writer() as writer:
        writer.remove(str(photos), ["c.jpg"])
        writer.commit()
        add(writer, photos, "c.jpg", "c")  # its embedding was not merged away yet
        writer.commit()
        assert tokens_in(full) == ALL
        writer.remove(str(photos), ["c.jpg"])
        writer.merge(all_segments=True)
        add(writer, photos, "c.jpg", "c")
        writer.commit()
    assert tokens_in(full) == {**BOTH, "c.jpg": None}
    with full.snapshot() as snapshot:
        assert len(snapshot.without_tokens(TOKENS)) == 1


def test_few_files_are_left_of_many_commits(tmp_path: Path) -> None:
    store = make(tmp_path / "index")
    contents = [str(number) for number in range(64)]
    with store.writer() as writer:
        for content in contents:
            add(writer, tmp_path, f"{content}.jpg", content)
            add_tokens(writer, content)
            writer.commit()
            writer.merge()
    assert tokens_in(store) == {f"{content}.jpg": tokens_of(key(content)).tolist() for content in contents}
    assert len(files(store)) <= 7


def test_a_snapshot_keeps_what_a_merge_removes(full: LocalStore) -> None:
    with full.snapshot() as reading, full.snapshot() as unopened:
        ids = reading.item_ids("image")
        before = reading.tokens(ids, TOKENS)
        with full.writer() as writer:
            writer.remove(str(full.path.parent), ["c.jpg"])
            writer.commit()
            writer.merge(all_segments=True)
        for one, other in zip(reading.tokens(ids, TOKENS), before, strict=True):
            assert np.array_equal(one, other)
        there, rows = unopened.tokens(ids, TOKENS)  # finds them in the new file; but not what has left the index
        uris = [unopened.items([id_])[id_].uri for id_ in ids.tolist()]
        assert dict(zip(uris, there.tolist(), strict=True)) == {"a.jpg": True, "a-again.jpg": True, "c.jpg": False}
        assert np.array_equal(rows[there], before[1][there])


def test_a_snapshot_of_an_index_that_was_replaced_finds_no_tokens(full: LocalStore) -> None:
    with full.snapshot() as snapshot:
        ids = snapshot.item_ids("image")
        full.path.rename(full.path.with_name("moved"))
        other = prepare(full.path)
        with other.writer() as writer:
            writer.embed_tokens([key("a"), key("c")], np.ones((2, 2, 3), np.int8), identity=TOKENS)
            writer.commit()
        there, _ = snapshot.tokens(ids, TOKENS)
        assert not there.any()


# Damage


def test_a_missing_file_is_made_anew(full: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    lost = files(full)[1]
    lost.unlink()
    with caplog.at_level(logging.WARNING):
        assert tokens_in(full) == {**BOTH, "c.jpg": None}
    assert [lost.name in record.getMessage() for record in caplog.records] == [True]
    with full.snapshot() as snapshot:
        assert len(snapshot.without_tokens(TOKENS)) == 1
    with full.writer() as writer:
        add_tokens(writer, "c")
        writer.commit()
    assert tokens_in(full) == ALL
    assert lost not in files(full)
    assert flaws(full) == []


@pytest.mark.parametrize("at", [0, 40])
def test_a_file_with_a_damaged_header_is_made_anew(full: LocalStore, at: int) -> None:
    flip(files(full)[1], at)
    assert tokens_in(full) == {**BOTH, "c.jpg": None}
    with full.writer() as writer:
        add_tokens(writer, "a", "c")
        writer.commit()
    assert tokens_in(full) == ALL
    with full.writer():  # sweeps
        pass
    assert segment_files(full) == named_files(full)
    assert flaws(full) == []


def test_another_file_of_tokens_is_not_taken_for_the_right_one(full: LocalStore) -> None:
    with full.writer() as writer:
        writer.embed_tokens([key("c")], np.ones((1, 2, 3), np.int8), identity="of another encoder")
        writer.commit()
    first, second, third = files(full)
    shutil.copyfile(third, second)
    assert tokens_in(full) == {**BOTH, "c.jpg": None}
    assert tokens_in(full, "of another encoder")["c.jpg"] == [[1] * 3] * 2
    assert first.exists()


def test_a_merge_drops_a_damaged_file_and_goes_on(full: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    first, second = files(full)
    flip(first, -1)  # a token: only the checksum tells
    before = content_of(full)
    with caplog.at_level(logging.WARNING), full.writer() as writer:
        writer.merge(all_segments=True)
    assert f"{first} is damaged and was dropped" in caplog.text
    assert tokens_in(full) == {**dict.fromkeys(BOTH), "c.jpg": ALL["c.jpg"]}
    assert content_of(full) == before
    assert flaws(full) == []
    assert segment_files(full) == named_files(full)
    assert not first.exists() and not second.exists()


@pytest.mark.parametrize("damage", ["missing", "checksum", "damaged", "ids"])
def test_doctor_finds_and_drops_damaged_tokens(full: LocalStore, damage: str) -> None:
    first, second = files(full)
    if damage == "missing":
        second.unlink()
    elif damage == "ids":
        sql(full, "UPDATE tokens SET identity = 'of another encoder' WHERE filename = ?", second.name)
    else:
        flip(second, -1 if damage == "checksum" else 0)
    before = content_of(full)
    diagnosis = examine(full.path)
    assert kinds(diagnosis) == [f"tokens-{damage}"]
    problem = diagnosis.problems[0]
    assert (problem.where, problem.damage, problem.lost_items) == (second.name, True, 0)
    assert problem.remedy == (
        "`mmsearch doctor --repair`, then `mmsearch index`, which makes the tokens of 1 picture anew"
    )
    assert (diagnosis.sound, diagnosis.segments, diagnosis.items) == (False, 3, 5)
    done = repair(full.path)
    assert [(one.kind, one.repaired) for one in done.problems] == [(f"tokens-{damage}", True)]
    assert done.problems[0].remedy == "`mmsearch index`, which makes the tokens of 1 picture anew"
    assert files(full) == [first]
    assert not second.exists()
    assert (full.path / layout.DAMAGED / second.name).exists() == (damage != "missing")
    assert tokens_in(full) == {**BOTH, "c.jpg": None}
    assert content_of(full) == before
    assert flaws(full) == []
    assert kinds(examine(full.path)) == []


def test_files_of_tokens_that_nothing_names_are_swept(full: LocalStore) -> None:
    orphan = full.path / layout.SEGMENTS / "tokens-000009.seg"
    half = full.path / layout.SEGMENTS / "tokens-000010.seg.tmp"
    for path in (orphan, half):
        shutil.copyfile(files(full)[0], path)
    assert sorted(kinds(examine(full.path))) == ["leftover", "orphan"]
    with full.writer():
        pass
    assert segment_files(full) == named_files(full)
    assert tokens_in(full) == ALL
    shutil.copyfile(files(full)[0], orphan)
    assert kinds(repair(full.path)) == ["orphan"]
    assert segment_files(full) == named_files(full)


def test_orphans_do_not_speak_against_a_catalog(full: LocalStore) -> None:
    """A file of vectors that the catalog does not name may be what it has lost; tokens are nothing to wait for."""
    sql(full, "DELETE FROM segments WHERE space = 'text'")
    for path in (full.path / layout.SEGMENTS).glob("text-*"):
        path.unlink()
    shutil.copyfile(files(full)[0], full.path / layout.SEGMENTS / "tokens-000009.seg")
    with full.writer():
        pass
    assert segment_files(full) == named_files(full)


def test_a_lost_catalog_takes_the_tokens_with_it(full: LocalStore) -> None:
    before = content_of(full)
    (full.path / layout.CATALOG).unlink()
    diagnosis = repair(full.path)
    assert diagnosis.sound
    assert files(full) == []
    assert segment_files(full) == named_files(full)
    photos = full.path.parent
    with full.writer() as writer:
        writer.root(Root(photos, 1))
        for uri, content in (("a.jpg", "a"), ("a-again.jpg", "a"), ("c.jpg", "c")):
            add(writer, photos, uri, content)
        add(writer, photos, "notes.txt", "one", "two", modality="text")
        add_tokens(writer, "a", "c")
        writer.commit()
    assert content_of(full) == before
    assert tokens_in(full) == ALL
    assert [path.name for path in files(full)] == ["tokens-000003.seg"]  # no number is used twice
    assert flaws(full) == []


def test_tokens_alone_are_no_ruins(full: LocalStore, tmp_path: Path) -> None:
    """Without catalog and vectors nothing is left that an index could be saved from."""
    (full.path / layout.CATALOG).unlink()
    for path in (full.path / layout.SEGMENTS).glob("*.seg"):
        if not layout.is_token_name(path.name):
            path.unlink()
    make(full.path)
    with full.writer():
        pass
    assert segment_files(full) == set()


def test_a_full_disk_keeps_the_tokens_that_are_there(full: LocalStore) -> None:
    def fail(name: str) -> None:
        if name == "segment:rows":
            raise OSError(28, "No space left on device")

    with LocalStore.open(full.path, steps=fail).writer() as writer:
        writer.root(Root(full.path.parent, 1))
        with pytest.raises(IndexUnusable, match="No space left"):
            writer.merge(all_segments=True)
    assert tokens_in(full) == ALL
    assert flaws(full) == []


# Other models, other tokens


def test_tokens_go_with_their_model(full: LocalStore) -> None:
    with full.writer() as writer:
        assert reindex(full, writer) == 0
        assert files(full) == []
        assert segment_files(full) == named_files(full)
    assert LocalStore.open(full.path).identity == OTHER["identity"]
    assert tokens_in(full) == NONE


def test_staged_tokens_are_there_after_the_switch(full: LocalStore) -> None:
    with full.writer() as writer:
        with full.snapshot() as snapshot:
            model_id = stage(writer, snapshot)
        writer.embed_tokens([key("a")], np.ones((1, 4, 5), np.int8), identity="new", model_id=model_id)
        writer.commit()
        writer.merge(all_segments=True)
        assert tokens_in(full) == ALL
        assert tokens_in(full, "new") == NONE
        writer.switch(model_id, recut)
    ones = [[1] * 5] * 4
    assert tokens_in(full, "new") == {"a.jpg": ones, "a-again.jpg": ones, "c.jpg": None}
    assert tokens_in(full) == NONE
    assert flaws(full) == []


def test_a_change_of_model_that_is_given_up_takes_its_tokens_along(full: LocalStore) -> None:
    with full.writer() as writer:
        model_id = writer.stage(**OTHER)
        writer.embed(
            "image", [key("a")], np.ones((1, 10), np.float32), model_id=model_id, precision="", device="", backend=""
        )
        writer.embed_tokens([key("a")], np.ones((1, 4, 5), np.int8), identity="new", model_id=model_id)
        writer.stage("third", "third-1", 3, None)  # before anything of the other was committed
        writer.commit()
    assert len(files(full)) == 2
    assert tokens_in(full) == ALL
    assert flaws(full) == []


def test_tokens_of_another_identity_can_be_dropped(full: LocalStore) -> None:
    generation = full.info().generation
    with full.writer() as writer:
        assert writer.drop_other_tokens(TOKENS) == 0
        assert full.info().generation == generation
        writer.embed_tokens([key("c")], np.ones((1, 2, 3), np.int8), identity="new")
        assert writer.drop_other_tokens("new") == 2
        assert full.info().generation == generation + 2
        assert segment_files(full) == named_files(full)
    assert tokens_in(full) == NONE
    assert tokens_in(full, "new")["c.jpg"] == [[1] * 3] * 2
    assert flaws(full) == []


def test_one_identity_has_one_shape(full: LocalStore) -> None:
    """An encoder that changes its shape without a new identity gets the newest."""
    with full.writer() as writer:
        writer.embed_tokens([key("c")], np.ones((1, 4, 1), np.int8), identity=TOKENS)
        writer.commit()
    assert tokens_in(full) == {"a.jpg": None, "a-again.jpg": None, "c.jpg": [[1]] * 4}
    with full.writer():
        pass
    assert segment_files(full) == named_files(full)


# Any sequence, against a dict


_FOLDERS: list[Path] = []
CONTENTS = ("p", "q", "r", "s", "t")
URIS = ("1", "2", "3", "4")
IDENTITIES = st.sampled_from(["old", "new"])


class TokenMachine(RuleBasedStateMachine):
    """Pictures by uri, and which contents have tokens: for certain, or perhaps.

    Perhaps is what no picture had in some generation: a merge may have dropped it by then, or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = _FOLDERS[0] / str(len(list(_FOLDERS[0].iterdir())))
        self.store = make(self.folder / "index")
        self.writer = self.store.writer()
        self.photos: dict[str, str] = {}
        self.given: set[tuple[str, str]] = set()  # (identity, content), in this transaction
        self.certain: set[tuple[str, str]] = set()  # the same, committed
        self.perhaps: set[tuple[str, str]] = set()
        self.damaged = False
        self.publish()

    def teardown(self) -> None:
        self.writer.close()

    @initialize()
    def start(self) -> None:
        self.writer.root(Root(self.folder, 1))
        self.writer.commit()

    def publish(self) -> None:
        self.certain |= self.given
        self.perhaps -= self.given
        self.perhaps |= {one for one in self.certain if one[1] not in self.photos.values()}
        self.certain -= self.perhaps
        self.given.clear()
        self.committed = dict(self.photos)

    def forget(self) -> None:
        self.given.clear()
        self.photos = dict(self.committed)

    @rule(uri=st.sampled_from(URIS), content=st.sampled_from(CONTENTS))
    def add(self, uri: str, content: str) -> None:
        add(self.writer, self.folder, uri, content)
        self.photos[uri] = content

    @rule(uri=st.sampled_from(URIS))
    def remove(self, uri: str) -> None:
        self.writer.remove(str(self.folder), [uri])
        self.photos.pop(uri, None)

    @rule(uri=st.sampled_from(URIS), to=st.sampled_from(URIS))
    def move(self, uri: str, to: str) -> None:
        if uri in self.photos:
            self.writer.move(str(self.folder), uri, ref(self.folder, to))
            self.photos[to] = self.photos.pop(uri)

    @rule(contents=st.sets(st.sampled_from(CONTENTS), min_size=1), identity=IDENTITIES)
    def give(self, contents: set[str], identity: str) -> None:
        chosen = sorted(contents)
        embed(self.writer, "image", chosen)
        add_tokens(self.writer, *chosen, identity=identity)
        self.given |= {(identity, content) for content in chosen}

    @rule()
    def commit(self) -> None:
        self.writer.commit()
        self.publish()

    @rule()
    def roll_back(self) -> None:
        self.writer.rollback()
        self.forget()

    @rule(all_segments=st.booleans())
    def merge(self, all_segments: bool) -> None:
        self.writer.merge(all_segments=all_segments)
        self.publish()

    @rule(identity=IDENTITIES)
    def drop_others(self, identity: str) -> None:
        self.writer.drop_other_tokens(identity)
        self.publish()
        self.certain = {one for one in self.certain if one[0] == identity}
        self.perhaps = {one for one in self.perhaps if one[0] == identity}

    @rule(number=st.integers(0, 5), how=st.sampled_from(["unlink", "header"]))
    def lose(self, number: int, how: str) -> None:
        self.roll_back()
        there = files(self.store)
        if number >= len(there):
            return
        gone = Segment(there[number])
        ids = dict(sql(self.store, "SELECT content_key, embedding_id FROM embeddings"))
        lost = {content for content in CONTENTS if ids.get(key(content)) in gone.ids}
        if how == "unlink":
            there[number].unlink()
        else:
            flip(there[number], 1)
        self.certain -= {(gone.header["identity"], content) for content in lost}
        self.damaged = True

    @rule()
    def repair(self) -> None:
        self.writer.close()
        self.forget()
        assert repair(self.store.path).sound
        self.damaged = False
        assert segment_files(self.store) == named_files(self.store)
        self.writer = self.store.writer()

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.forget()
        self.writer = self.store.writer()
        assert segment_files(self.store) <= named_files(self.store)

    @invariant()
    def readers_see_what_was_committed(self) -> None:
        for identity in ("old", "new"):
            seen = tokens_in(self.store, identity)
            assert seen.keys() == self.committed.keys()
            for uri, content in self.committed.items():
                one, tokens = (identity, content), tokens_of(key(content), identity).tolist()
                if one in self.certain:
                    assert seen[uri] == tokens
                elif one in self.perhaps:
                    assert seen[uri] in (tokens, None)
                else:
                    assert seen[uri] is None
        if not self.damaged:
            assert flaws(self.store) == []


def test_any_sequence_of_operations(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    _FOLDERS[:] = [tmp_path]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        TokenMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
