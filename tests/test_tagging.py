"""Tags: against a naive loop, in the index, and as a person asks for them."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_kit import Result, run_alone
from numpy.typing import NDArray
from store_kit import PRECISION, key, sql

import mmsearch
from mmsearch.indexers import tagging
from mmsearch.indexers.labels import Label, listed_labels, parse_label
from mmsearch.indexers.tagging import LEAST, WEIGHTS, lean_of, tag, untag
from mmsearch.retrieval.calibrate import FEWEST, REFERENCES, reference_of
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import FilterSyntaxError, IndexLocked, ModelMismatch, UsageError
from mmsearch.retrieval.probes import PROBES
from mmsearch.retrieval.store import LocalStore, NewItem
from mmsearch.retrieval.store.doctor import examine
from mmsearch.retrieval.store.words import refill_words
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Root, Stamp

Run = Callable[..., Result]

COLOURS = ("red", "green", "blue", "yellow", "purple")
Tags = dict[str, dict[str, float | None]]


def rows_of(count: int, encoder: FakeEncoder) -> NDArray[np.float32]:
    """Vectors of pictures that are of one colour, a little of another, and mostly of what nobody has asked for."""
    chance = np.random.default_rng(0)
    rows = encoder.encode_texts([COLOURS[number % len(COLOURS)] for number in range(count)])
    rows = rows + chance.uniform(0, 0.7, (count, 1)) * encoder.encode_texts([*chance.choice(COLOURS, count)])
    rows = rows + 1.3 * chance.standard_normal(rows.shape) / np.sqrt(rows.shape[1])
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def store_of(path: Path, rows: NDArray[np.float32], encoder: FakeEncoder, commits: int = 3) -> LocalStore:
    """An index of pictures `0.jpg`, `1.jpg`..., in several segments, with texts between them."""
    store = LocalStore.create(path / "index", model=encoder.name, identity=encoder.identity, dim=encoder.dim)
    with store.writer() as writer:
        writer.root(Root(path, 1))
        for part in np.array_split(np.arange(len(rows)), commits):
            for number in part.tolist():
                add(writer, path, f"{number}.jpg", rows[number])
                if number % 7 == 0:
                    add(writer, path, f"{number}.txt", rows[number], text="words")
            writer.commit()
    return store


def add(
    writer: mmsearch.retrieval.store.Writer, path: Path, uri: str, row: NDArray[np.float32], text: str | None = None
) -> None:
    space = "image" if text is None else "text"
    writer.embed(space, [key(uri)], row[None], **PRECISION)
    writer.add(
        ItemRef(str(path), uri, str(path / uri), space, Stamp(1, 1)),
        content_hash=key(uri),
        metadata=AssetMetadata(width=int(Path(uri).stem) + 1, height=1),
        items=[NewItem(space, key(uri), None, text)],
    )


@pytest.fixture
def store(tmp_path: Path, encoder: FakeEncoder) -> LocalStore:
    return store_of(tmp_path, rows_of(90, encoder), encoder)


def labels_of(*texts: str) -> list[Label]:
    return [parse_label(text) for text in texts]


def tags_of(store: LocalStore) -> Tags:
    """Tags and their relevance by uri."""
    found: Tags = {}
    for uri, name, relevance in sql(store, "SELECT uri, tag, relevance FROM tags JOIN assets USING (asset_id)"):
        found.setdefault(uri, {})[name] = relevance
    return found


def generation(store: LocalStore) -> int:
    return store.info().generation


# What is given


def naive(store: LocalStore, labels: Sequence[Label], least: float, most: int) -> Tags:
    """The tags of every picture, one score at a time."""
    encoder = FakeEncoder()

    def row(text: str) -> NDArray[np.float64]:
        return encoder.encode_texts([text])[0].astype(np.float64)

    with store.snapshot() as snapshot:
        ids = snapshot.item_ids("image").tolist()
        pictures = snapshot.vectors("image", ids).astype(np.float64)
        uris = [snapshot.items([id_])[id_].uri for id_ in ids]
    unit = reference_of(encoder.encode_texts(PROBES), pictures.astype(np.float32))
    assert unit is not None
    rivals = [row(label.words) for label in listed_labels("everyday")]

    def standard(picture: NDArray[np.float64], text: NDArray[np.float64]) -> float:
        return (float(picture @ text) - unit.mean) / unit.deviation

    rival = [sorted(standard(picture, text) for text in rivals)[-5] for picture in pictures]
    found: Tags = {}
    values: dict[str, dict[str, float]] = {uri: {} for uri in uris}
    for label in labels:
        text = row(label.words)
        scores = [standard(picture, text) for picture in pictures]
        lean = float(lean_of(np.subtract(scores, rival)[:, None])[0])
        for uri, score, other in zip(uris, scores, rival, strict=True):
            odds = WEIGHTS.bias + WEIGHTS.score * score + WEIGHTS.rival * other + WEIGHTS.lean * lean
            value = 1 / (1 + np.exp(-odds))
            values[uri][label.tag] = max(value, values[uri].get(label.tag, 0.0))
    for uri, own in values.items():
        best = sorted((-value, place, name) for place, (name, value) in enumerate(own.items()) if value >= least)
        if best:
            found[uri] = {name: -negative for negative, _, name in best[:most]}
    return found


@pytest.mark.parametrize(("least", "most"), [(LEAST, 10), (0.2, 2), (0.8, 1), (0.0, 3), (0.95, 10)])
def test_tags_are_those_of_a_naive_loop(
    store: LocalStore, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch, least: float, most: int
) -> None:
    with store.writer() as writer:
        writer.remove(str(store.path.parent), ["3.jpg", "44.jpg"])
        writer.commit()
    monkeypatch.setattr(tagging, "_SCORES", 60)  # pages of ten pictures
    labels = labels_of("red", "green", "warm = yellow", "blue", "warm = orange", "nothing = zzz", "purple")
    expected = naive(store, labels, least, most)
    report = tag(store, labels, lambda: encoder, min_relevance=least, most=most)
    found = tags_of(store)
    assert {uri: set(own) for uri, own in found.items()} == {uri: set(own) for uri, own in expected.items()}
    for uri, own in found.items():
        assert own == pytest.approx(expected[uri], abs=2e-3)
    assert len(found) > 10
    assert (report.pictures, report.tagged, report.changed) == (88, len(found), len(found))
    assert {one.tag: one.pictures for one in report.tags} == {
        name: sum(name in own for own in found.values())
        for name in ("red", "green", "warm", "blue", "nothing", "purple")
    }
    for one in report.tags:
        best = sorted((own[one.tag] or 0.0 for own in found.values() if one.tag in own), reverse=True)[:3]
        assert [picture.relevance for picture in one.best] == best
        assert all(found[picture.uri][one.tag] == picture.relevance for picture in one.best)


def test_colours_are_told_apart(tmp_path: Path, store: LocalStore, encoder: FakeEncoder) -> None:
    tag(store, labels_of(*COLOURS, "zzz"), lambda: encoder)
    found = tags_of(store)
    pairs = [(COLOURS[int(Path(uri).stem) % len(COLOURS)], name) for uri, own in found.items() for name in own]
    right = sum(wanted == given for wanted, given in pairs)
    assert right > 60 and right / len(pairs) > 0.7
    assert not any("zzz" in own for own in found.values())


def test_labels_do_not_depend_on_each_other(store: LocalStore, encoder: FakeEncoder) -> None:
    tag(store, labels_of("red"), lambda: encoder)
    alone = tags_of(store)
    untag(store)
    tag(store, labels_of(*COLOURS), lambda: encoder)
    together = {uri: {"red": own["red"]} for uri, own in tags_of(store).items() if "red" in own}
    assert alone == together


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0] * 5])
def test_symmetrical_scores_do_not_lean(values: list[float]) -> None:
    assert lean_of(np.array(values)[:, None]).tolist() == pytest.approx([1.0])


def test_scores_with_a_long_upper_tail_lean_and_few_of_them_less() -> None:
    scores = np.array([[0.0], [1.0], [1.0], [2.0], [3.0]])
    few, many = lean_of(scores)[0], lean_of(np.repeat(scores, 1000, axis=0))[0]
    assert 1 < few < 1.1
    assert 1.5 < many < 2.2 == lean_of(np.repeat(scores**3, 1000, axis=0))[0]


# What stays, and what goes


def test_the_same_again_changes_nothing(store: LocalStore, encoder: FakeEncoder) -> None:
    first = tag(store, labels_of(*COLOURS), lambda: encoder)
    before = generation(store), tags_of(store)
    again = tag(store, labels_of(*COLOURS), lambda: encoder)
    assert (first.changed > 0, again.changed) == (True, 0)
    assert (first.tags, first.tagged) == (again.tags, again.tagged)
    assert (generation(store), tags_of(store)) == before


def test_a_run_replaces_its_own_tags_only(store: LocalStore, encoder: FakeEncoder) -> None:
    tag(store, labels_of("red", "blue"), lambda: encoder, min_relevance=0.2)
    wide = tags_of(store)
    with sqlite3.connect(store.path / "catalog.sqlite") as connection:  # as somebody's own tags are written
        connection.execute("INSERT OR REPLACE INTO tags SELECT asset_id, 'RED', NULL FROM assets WHERE uri = '1.jpg'")
        connection.execute("INSERT OR REPLACE INTO tags SELECT asset_id, 'mine', NULL FROM assets WHERE uri = '0.jpg'")
        refill_words(connection)
    connection.close()
    tag(store, labels_of("red"), lambda: encoder, min_relevance=0.7)
    strict = tags_of(store)
    assert strict["1.jpg"]["RED"] is None and strict["0.jpg"]["mine"] is None
    for uri, own in wide.items():
        kept = strict.get(uri, {})
        assert kept.get("blue") == own.get("blue")
        if uri != "1.jpg":
            assert ("red" in kept) == (own.get("red", 0.0) >= 0.7)
    assert sum("red" in own for own in strict.values()) < sum("red" in own for own in wide.values())
    untag(store, ["red", "mine"])
    assert {name for own in tags_of(store).values() for name in own} == {"blue", "RED", "mine"}
    assert untag(store) > 0
    assert tags_of(store) == {"1.jpg": {"RED": None}, "0.jpg": {"mine": None}}
    assert untag(store) == 0
    assert examine(store.path).sound


def test_a_filter_says_which_pictures(store: LocalStore, encoder: FakeEncoder) -> None:
    tag(store, labels_of(*COLOURS), lambda: encoder)
    everything = tags_of(store)
    untag(store, where="width > 40")
    assert tags_of(store) == {uri: own for uri, own in everything.items() if int(Path(uri).stem) < 40}
    untag(store)
    seen: list[tuple[int, int]] = []
    report = tag(
        store,
        labels_of(*COLOURS),
        lambda: encoder,
        where="width > 40 and path ~ '*.jpg'",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report.pictures == 50 and seen[-1] == (50, 50)
    # The scale is that of the whole index: a filter changes no relevance.
    assert tags_of(store) == {uri: own for uri, own in everything.items() if int(Path(uri).stem) >= 40}
    assert tag(store, labels_of("red"), lambda: encoder, where="width > 1000").pictures == 0
    with pytest.raises(FilterSyntaxError):
        tag(store, labels_of("red"), lambda: encoder, where="width >")


def test_a_dry_run_only_looks(store: LocalStore, encoder: FakeEncoder) -> None:
    before = generation(store)
    with store.writer():  # nor does it need the lock
        report = tag(store, labels_of(*COLOURS), lambda: encoder, dry_run=True)
    assert (report.written, report.changed) == (False, 0)
    assert report.tagged > 60
    assert (generation(store), tags_of(store)) == (before, {})


def test_ctrl_c_leaves_everything_as_it_was(
    store: LocalStore, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag(store, labels_of("red"), lambda: encoder)
    before = tags_of(store)
    monkeypatch.setattr(tagging, "_SCORES", 60)

    def press(done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tag(store, labels_of("red", "blue"), lambda: encoder, min_relevance=0.9, progress=press)
    assert tags_of(store) == before
    assert examine(store.path).sound
    with store.writer():
        pass


def test_the_words_of_tags_are_found(tmp_path: Path, store: LocalStore, encoder: FakeEncoder) -> None:
    odd = ['quo"te', "rock'n'roll", "'); DROP TABLE tags; --", "<b>", "100 %", "狗", "x" * 200]
    tag(store, labels_of(*(f"{text} = red" for text in odd)), lambda: encoder)
    red = {uri for uri, own in tags_of(store).items() if own}
    assert len(red) > 10 and all(set(own) == set(odd) for own in tags_of(store).values())
    with mmsearch.open(store.path) as index:
        index._encoders.keep("fake", encoder)
        for text in odd[:6]:
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            hits = index.search("red", k=100, where=f'tag = "{quoted}"')
            assert {hit.uri for hit in hits} == red, text
        assert {hit.uri for hit in index.search("狗", k=100, mode="lexical")} == red
        assert [(one.tag, one.pictures) for one in index.tags()] == [(text, len(red)) for text in sorted(odd)]
    assert examine(store.path).sound


def test_very_many_labels(store: LocalStore, encoder: FakeEncoder) -> None:
    labels = [Label(f"label {number}", f"zzz{number}") for number in range(5000)]
    report = tag(store, [*labels, Label("red", "red")], lambda: encoder)
    assert len(report.tags) == 5001 and report.tags[-1].pictures > 10
    assert all(len(own) <= 10 for own in tags_of(store).values())


# Where little is known


def test_too_few_pictures_to_judge_by(tmp_path: Path, encoder: FakeEncoder) -> None:
    store = store_of(tmp_path, rows_of(FEWEST - 1, encoder), encoder)
    with pytest.raises(UsageError) as raised:
        tag(store, labels_of("red"), lambda: encoder)
    assert "scores of the model fake mean is learned from the index, and 49 pictures are too few" in str(raised.value)
    assert "index 50 or more" in str(raised.value)
    assert tags_of(store) == {}


def test_few_pictures_of_a_model_that_is_known(
    tmp_path: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(60, encoder)
    unit = reference_of(encoder.encode_texts(PROBES), rows)
    assert unit is not None
    monkeypatch.setitem(REFERENCES, "fake", {("text", "image"): unit})
    store = store_of(tmp_path, rows[:3], encoder)
    report = tag(store, labels_of("red", "zzz"), lambda: encoder)
    assert [one.pictures for one in report.tags] == [1, 0]
    assert set(tags_of(store)) == {"0.jpg"}


def test_an_index_without_pictures(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)

    def never() -> FakeEncoder:
        raise AssertionError("no model was needed")

    report = tag(store, labels_of("red"), never)
    assert (report.pictures, report.tagged, report.changed, report.model) == (0, 0, 0, "")
    assert [(one.tag, one.pictures) for one in report.tags] == [("red", 0)]
    assert untag(store) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_relevance": -0.1}, "from 0 to 1"),
        ({"min_relevance": 1.1}, "from 0 to 1"),
        ({"min_relevance": float("nan")}, "from 0 to 1"),
        ({"most": 0}, "at least 1"),
    ],
)
def test_numbers_out_of_range(
    store: LocalStore, encoder: FakeEncoder, options: dict[str, float | int], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        tag(store, labels_of("red"), lambda: encoder, **options)  # type: ignore[arg-type]


def test_another_encoder_and_another_writer(store: LocalStore, encoder: FakeEncoder) -> None:
    with pytest.raises(ModelMismatch):
        tag(store, labels_of("red"), lambda: FakeEncoder("other"))
    with store.writer(), pytest.raises(IndexLocked):
        tag(store, labels_of("red"), lambda: encoder)
    with store.writer(), pytest.raises(IndexLocked):
        untag(store)


# The command


@pytest.fixture
def tagged(run: Run, store: LocalStore) -> LocalStore:
    """An index with the tags of colours; `fake` is its model."""
    assert run("tag", *COLOURS).code == 0
    return store


def test_the_command_tells_what_it_did(run: Run, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("tag", "red", "blue", "nothing = zzz")
    counts = {name: sum(name in own for own in tags_of(store).values()) for name in ("red", "blue")}
    expected = sorted(counts.items(), key=lambda pair: -pair[1])
    assert (result.code, result.out) == (0, "".join(f"{count}\t{name}\n" for name, count in expected))
    assert f"of 90 pictures got tags, {sum(counts.values())} in all" in result.err
    assert "1 label in no picture from relevance 0.5 on\n" in result.err
    assert "pictures changed; pictures that are indexed from now on get tags when this is run again\n" in result.err
    again = run("tag", "red", "blue", "nothing = zzz")
    assert again.out == result.out and "nothing has changed" in again.err
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdout)
    shown = run("tag", "red", "--dry-run")
    first, *examples = shown.out.splitlines()
    assert first == f"{counts['red']:>7}  red" and len(examples) == 3
    assert all(line.startswith(("          0.", "          1.")) for line in examples)
    assert "would get tags" in shown.err and shown.err.endswith("a dry run: nothing was written\n")


def test_json_is_the_report(run: Run, store: LocalStore) -> None:
    (report,) = run("tag", "red", "--most", "1", "--min-relevance", "0.6", "--where", "width < 50", "--json").json
    assert set(report) == {"tags", "pictures", "tagged", "changed", "model", "min_relevance", "seconds", "written"}
    (red,) = report["tags"]
    assert (report["pictures"], report["model"], report["min_relevance"], report["written"]) == (49, "fake", 0.6, True)
    assert red["pictures"] == report["tagged"] == report["changed"] == len(tags_of(store))
    assert set(red["best"][0]) == {"relevance", "path", "uri", "item_id"}
    assert run("tags", "--json").json == [{"tag": "red", "pictures": red["pictures"]}]
    assert run("tag", "--clear", "--json").json == [{"changed": red["pictures"]}]


def test_tags_are_listed_found_and_taken_away(run: Run, tagged: LocalStore) -> None:
    listed = [line.split("\t") for line in run("tags").out.splitlines()]
    assert [name for _, name in listed] == sorted(COLOURS)
    hits = run("query", "red", "--where", "tag = RED", "-k", "100", "--json").json
    assert len(hits) == int({name: count for count, name in listed}["red"])
    assert all("red" in hit["tags"] for hit in hits)
    assert run("tag", "--remove", "Red", "never").err == f"tags removed from {len(hits)} pictures\n"
    assert run("tag", "--remove", "red").err == "no picture had any\n"
    assert run("tag", "--clear", "--where", "width < 10").code == 0
    assert min(int(Path(uri).stem) for uri in tags_of(tagged)) >= 9
    assert run("tag", "--clear").code == 0
    result = run("tags")
    assert (result.out, result.err) == ("", "no tags in the index; `mmsearch tag --list everyday` makes some\n")
    assert run("doctor").code == 0


def test_labels_of_files_and_lists(run: Run, store: LocalStore, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("# colours\n红 = red\n蓝 = blue\n", encoding="utf-8")
    assert run("tag", "--labels", file, "green", "--list", "everyday-zh").code == 0
    assert {"红", "蓝", "green"} <= {line.split("\t")[1] for line in run("tags").out.splitlines()}
    file.write_text("red\ngreen, blue\n", encoding="utf-8")
    result = run("tag", "--labels", file)
    assert result.code == 2 and f"{file}, line 2: 'green, blue' is no tag" in result.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there are no labels: name some, as in `mmsearch tag dog cat beach`"),
        (["red,blue"], "for its comma"),
        ([""], "is no label"),
        (["red\nblue"], "has a line end"),
        (["--list", "birds"], "there is no list 'birds': the lists are everyday, everyday-zh"),
        (["--labels", "no-such.txt"], "no-such.txt does not exist"),
        (["red", "--most", "0"], "at least 1"),
        (["red", "--min-relevance", "2"], "from 0 to 1"),
        (["red", "--where", "widht > 1"], "width"),
        (["--remove"], "say which tags to remove"),
        (["--clear", "red"], "write --remove"),
        (["--clear", "--remove"], "only --where goes with one"),
        (["--remove", "red", "--dry-run"], "only --where goes with one"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(run: Run, tagged: LocalStore, arguments: list[str], said: str) -> None:
    before = tags_of(tagged)
    result = run("tag", *arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert tags_of(tagged) == before


@pytest.mark.parametrize("command", [["tag", "red"], ["tag", "--clear"], ["tags"]])
def test_no_index(run: Run, tmp_path: Path, command: list[str]) -> None:
    result = run(*command)
    assert (result.code, result.out) == (3, "")
    assert "there is no index at" in result.err and not (tmp_path / "index").exists()


def test_indexes_without_pictures(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "rose.txt").write_text("a rose", encoding="utf-8")
    assert run("index", tmp_path / "texts", "--model", "fake").code == 0
    result = run("tag", "red")
    assert (result.code, result.out, result.err) == (0, "", "no pictures in the index, only texts\n")
    result = run("tag", "red", "--where", "width > 5")
    assert (result.code, result.err) == (0, "no pictures in the index pass the filter\n")


def test_an_index_of_vectors_alone(run: Run, tmp_path: Path, encoder: FakeEncoder) -> None:
    with mmsearch.open(tmp_path / "index") as index:
        index.add_vectors(range(60), rows_of(60, encoder))
    result = run("tag", "red")
    assert result.code == 1
    assert "made of vectors alone" in result.err


def test_a_locked_index_says_so(run: Run, store: LocalStore) -> None:
    with store.writer():
        result = run("tag", "red")
    assert result.code == 1 and "writing" in result.err


def test_names_do_no_harm_to_a_terminal(run: Run, store: LocalStore, tmp_path: Path) -> None:
    tag(store, [Label("bad\x1b[31m", "red")], FakeEncoder)  # as a program may write it
    result = run("tags")
    assert "\x1b" not in result.out and "bad\\x1b[31m" in result.out
    done = run_alone("tags", index=store.path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"\x1b" not in done.stdout


def test_progress_is_drawn_on_a_terminal(run: Run, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "tagging" in run("tag", "red").err


# The index as a whole


def test_new_pictures_get_tags_with_the_next_run(tmp_path: Path, draw: Callable[..., Path], run: Run) -> None:
    folder = tmp_path / "pictures"
    for number in range(60):
        draw(folder / f"{number}.png", COLOURS[number % len(COLOURS)], size=(30 + number, 20))
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        index.add(folder)
        first = index.tag("red", where="width < 1000")
        draw(folder / "new.png", "red", size=(99, 99))
        index.add()
        assert "new.png" not in {hit.uri for hit in index.search("red", k=100, where="tag = red")}
        again = index.tag("red")
        assert again.tags[0].pictures == first.tags[0].pictures + 1
        assert "new.png" in {hit.uri for hit in index.search("red", k=100, where="tag = red")}
        assert index.untag("red", where='path ~ "*new.png"') == 1
        assert index.untag() == first.tags[0].pictures
        assert index.tags() == []


def test_the_documented_snippet_runs(
    repository: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMSEARCH_INDEX", str(store.path))
    text = (repository / "docs" / "tags.md").read_text("utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    exec(compile(snippet, "docs/tags.md", "exec"), {"__name__": "__main__"})
    assert "dog 0 []\n" in capsys.readouterr().out
    assert f"{len(listed_labels('everyday'))} everyday things" in text


def test_the_starter_tags_photos(run: Run, shared: Path, tmp_path: Path) -> None:
    from mmsearch.indexers.train.data import read_class_folders

    classes = read_class_folders(shared / "caltech101_train")
    wanted = {"pizza": 12, "airplanes": 12, "sunflower": 12, "grand piano": 12, "motorbikes": 12}
    folder = tmp_path / "photos"
    folder.mkdir()
    for path, label in zip(classes.paths, classes.labels.tolist(), strict=True):
        name = classes.names[label].lower()
        if wanted.get(name, 0):
            wanted[name] -= 1
            (folder / f"{name} {wanted[name]}.jpg").write_bytes(path.read_bytes())
    assert set(wanted.values()) == {0}
    assert run("index", folder, "--model", "starter").code == 0
    assert run("tag", *wanted, "elephant", "wedding").code == 0
    found = tags_of(LocalStore.open(tmp_path / "index"))
    pairs = [(Path(uri).name.startswith(name.replace(" ", "%20")), name) for uri, own in found.items() for name in own]
    assert len(pairs) >= 15
    assert sum(right for right, _ in pairs) / len(pairs) >= 0.9
