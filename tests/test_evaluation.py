"""Evaluation from end to end: the command on a tiny set, with an encoder that knows colours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Result
from scripted_reranker import Scripted

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import MissingExtra, UsageError
from mmsearch.retrieval.evaluate.runs import read_run, write_run

Run = Callable[..., Result]

_COLOURS = ("red", "green", "blue", "yellow")
_CHINESE = ("红", "绿", "蓝", "黄")


@pytest.fixture
def captions(tmp_path: Path, draw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures with two English captions and a Chinese one each; models are fakes."""

    def load(name: str = "auto", **options: Any) -> FakeEncoder:
        return FakeEncoder(name="starter" if name == "auto" else name)

    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", load)
    records = []
    for colour, chinese in zip(_COLOURS, _CHINESE, strict=True):
        draw(tmp_path / "set" / f"{colour}.png", colour)
        records.append(
            {"file_name": f"{colour}.png", "captions": [f"a {colour} square", colour], "captions_zh": [chinese]}
        )
    path = tmp_path / "set" / "captions.json"
    path.write_text(json.dumps(records, ensure_ascii=False), "utf-8")
    return path


@pytest.fixture
def index(captions: Path, tmp_path: Path) -> Iterator[Path]:
    """An index of the four pictures."""
    with mmsearch.open(tmp_path / "named", model="starter") as opened:
        opened.add(captions.parent)
    yield tmp_path / "named"


def _change(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    records = json.loads(path.read_text("utf-8"))
    change(records)
    path.write_text(json.dumps(records), "utf-8")


def test_json_is_one_object_on_the_last_line(run: Run, captions: Path, tmp_path: Path) -> None:
    done = run("eval", captions, "--json")
    assert done.code == 0
    (found,) = done.json
    assert found["text_to_image"]["success@1"] == 1.0
    assert found["text_to_image"]["success@10"] == 1.0
    assert found["image_to_text"]["success@1"] == 1.0
    assert (found["queries"], found["model"], found["language"]) == (8, "starter", "en")
    assert found["languages"]["zh"]["text_to_image"]["queries"] == 4
    assert (found["pictures"], found["captions_used"]) == (4, 12)
    assert not (tmp_path / "index").exists()  # the user's own index is not made


def test_a_table_of_lines_for_programs(run: Run, captions: Path) -> None:
    lines = run("eval", captions, "--language", "en", "--language", "zh").out.splitlines()
    assert lines[0].split("\t")[:4] == ["direction", "language", "system", "success@1"]
    assert [line.split("\t")[:2] for line in lines[1:]] == [
        ["text_to_image", "en"],
        ["text_to_image", "zh"],
        ["image_to_text", "en"],
        ["image_to_text", "zh"],
    ]
    assert all(line.split("\t")[3] == "1.0000" for line in lines[1:])


def test_one_language_only(run: Run, captions: Path) -> None:
    (found,) = run("eval", captions, "--language", "zh", "--json").json
    assert (found["language"], found["queries"]) == ("zh", 4)
    assert "languages" not in found
    wrong = run("eval", captions, "--language", "fr")
    assert wrong.code == 2
    assert "only in en, zh" in wrong.err


def test_captions_find_each_other_and_never_themselves(run: Run, captions: Path) -> None:
    _change(captions, lambda records: records[0].update(captions=["red", "nothing of the kind"]))
    (found,) = run("eval", captions, "--direction", "text-to-text", "--language", "en", "--json").json
    assert found["text_to_text"]["queries"] == 8
    assert 0.7 < found["text_to_text"]["success@1"] < 1.0  # itself would be a perfect answer to each
    alone = run("eval", captions, "--direction", "text-to-text", "--language", "zh")
    assert alone.code == 2
    assert "several captions" in alone.err


def test_equal_captions_say_what_is_expected(run: Run, captions: Path) -> None:
    _change(captions, lambda records: [record.update(captions=["red"]) for record in records])
    done = run("eval", captions, "--direction", "image-to-text", "--language", "en")
    assert done.code == 0
    assert "success@1 0.2500" not in done.err  # first by name: one picture of four is right, as is expected of chance
    (found,) = run("eval", captions, "--direction", "image-to-text", "--language", "en", "--json").json
    assert found["image_to_text"]["success@1"] == 0.25
    assert found["image_to_text"]["median_rank"] == 2.5


def test_one_pair(run: Run, captions: Path) -> None:
    captions.write_text(json.dumps([{"image": "red.png", "caption": "red"}]), "utf-8")
    (found,) = run("eval", captions, "--json").json
    assert (found["queries"], found["text_to_image"]["success@1"]) == (1, 1.0)


def test_broken_and_missing_pictures_are_told_of(run: Run, captions: Path) -> None:
    _change(captions, lambda records: records.append({"file_name": "gone.png", "captions": ["x", ""]}))
    (captions.parent / "blue.png").write_bytes(b"no picture")
    done = run("eval", captions, "--language", "en")
    assert done.code == 0
    assert "1 caption of 1 picture that are not there (gone.png)" in done.err
    assert "1 empty caption" in done.err
    assert "1 picture that cannot be read" in done.err
    assert "blue.png: " in done.err
    (found,) = run("eval", captions, "--language", "en", "--json").json
    assert (found["pictures"], found["queries"], len(found["failed"])) == (3, 6, 1)
    assert found["left_out"]["missing"] == ["gone.png"]
    for colour in _COLOURS:
        (captions.parent / f"{colour}.png").write_bytes(b"no picture")
    assert run("eval", captions).code == 2


def test_bad_input_has_its_exit_code(run: Run, captions: Path, tmp_path: Path) -> None:
    assert run("eval", tmp_path / "none.json").code == 2
    assert run("eval", captions, "--split", "val").code == 2
    assert run("eval", captions, "--images", tmp_path / "nowhere").code == 2
    assert run("eval", captions, "--mode", "dense").code == 2
    assert run("eval", captions, "--where", "width > 3").code == 2
    assert run("eval", captions, "--depth", "0").code == 2
    assert run("eval", captions, "--compare", tmp_path / "none.trec").code == 2
    assert run("eval", captions, "--run", tmp_path / "no" / "folder.trec").code == 2
    assert run("eval", captions, "--model", "a", "--model", "b", "--run", tmp_path / "x.trec").code == 2
    assert run("eval", captions, "--index", tmp_path / "none", "--mode", "dense").code == 3
    assert run("eval", captions, "--qrels", captions, "--split", "val", "--index", tmp_path).code == 2
    captions.write_text("[{", "utf-8")
    broken = run("eval", captions)
    assert broken.code == 1
    assert "broken JSON, in line 1" in broken.err


def test_ctrl_c_is_130(run: Run, captions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: object, texts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeEncoder, "encode_texts", interrupt)
    done = run("eval", captions)
    assert (done.code, done.out) == (130, "")


def test_models_are_compared(run: Run, captions: Path) -> None:
    done = run("eval", captions, "--model", "one", "--model", "two", "--language", "en", "--json")
    (found,) = done.json
    assert [system["model"] for system in found["systems"]] == ["one", "two"]
    first = found["differences"][0]
    assert (first["system"], first["baseline"], first["measure"]) == ("two", "one", "success@1")
    assert (first["delta"], first["p"], first["queries"]) == (0.0, 1.0, 8)


def test_stored_vectors_are_used(captions: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = mmsearch.evaluate(captions)

    def refuse(self: object, arrays: object) -> None:
        raise AssertionError("the index has these")

    monkeypatch.setattr(FakeEncoder, "encode_images", refuse)
    report = mmsearch.evaluate(captions, index=index)
    assert report.systems[0].stored == 4
    assert [one.measures for one in report.systems[0].outcomes] == [one.measures for one in fresh.systems[0].outcomes]


def test_stored_captions_are_used_too(captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = mmsearch.evaluate(captions, languages=["en"])
    records = json.loads(captions.read_text("utf-8"))
    with mmsearch.open(tmp_path / "both", model="starter") as opened:
        for number, record in enumerate(records):
            image = captions.parent / record["file_name"]
            opened.add([mmsearch.Item(id=number, text=record["captions"], image=image)])

    def refuse(self: object, given: object) -> None:
        raise AssertionError("the index has these")

    monkeypatch.setattr(FakeEncoder, "encode_images", refuse)
    monkeypatch.setattr(FakeEncoder, "encode_texts", refuse)
    report = mmsearch.evaluate(captions, index=tmp_path / "both", languages=["en"])
    system = report.systems[0]
    assert (system.stored, system.stored_captions) == (4, 8)
    assert [one.measures for one in system.outcomes] == [one.measures for one in fresh.systems[0].outcomes]


def test_an_index_is_asked_through_its_search(run: Run, captions: Path, index: Path) -> None:
    before = {path.name: path.read_bytes() for path in index.iterdir() if path.suffix == ".sqlite"}
    done = run("eval", captions, "--index", index, "--mode", "dense", "--mode", "lexical", "--language", "en", "--json")
    (found,) = done.json
    dense, lexical = found["systems"]
    assert (dense["mode"], dense["text_to_image"]["success@1"]) == ("dense", 1.0)
    assert lexical["text_to_image"]["success@1"] == 1.0  # by the names of the files
    assert {path.name: path.read_bytes() for path in index.iterdir() if path.suffix == ".sqlite"} == before


def test_options_of_a_search_pass_through(captions: Path, index: Path) -> None:
    report = mmsearch.evaluate(captions, index=index, modes=["dense"], options={"where": "path = red.png"})
    assert report.systems[0].outcomes[0].measures["success@1"] == 0.25
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        mmsearch.evaluate(captions, index=index, modes=["dense"], options={"nonsense": 1})


def test_pictures_that_the_index_lacks(run: Run, captions: Path, index: Path, draw: Callable[..., Path]) -> None:
    draw(captions.parent / "black.png", "black")
    _change(captions, lambda records: records.append({"image": "black.png", "captions": ["black"]}))
    (found,) = run("eval", captions, "--index", index, "--mode", "dense", "--json").json
    assert (found["unknown"], found["unanswered"], found["queries"]) == (["black.png"], 1, 8)


def test_a_run_goes_out_and_is_compared_in(run: Run, captions: Path, tmp_path: Path, index: Path) -> None:
    path = tmp_path / "out.trec"
    assert run("eval", captions, "--run", path, "--language", "en").code == 0
    first = path.read_text("utf-8").splitlines()[0].split()
    assert first[:4] == ["red.png#en0", "Q0", "red.png", "1"]
    assert len(path.read_text("utf-8").splitlines()) == 8 * 4
    done = run("eval", captions, "--index", index, "--mode", "dense", "--compare", path, "--language", "en", "--json")
    (found,) = done.json
    assert [one["delta"] for one in found["differences"]] == [0.0, 0.0, 0.0]
    worse = {query: [("green.png", 1.0)] for query in read_run(path)}
    write_run(path, worse)
    (found,) = run("eval", captions, "--compare", path, "--language", "en", "--json").json
    assert found["differences"][0]["delta"] == 0.75
    assert found["differences"][0]["baseline_value"] == 0.25
    write_run(path, {"another": [("green.png", 1.0)]})
    assert run("eval", captions, "--compare", path).code == 2


def test_trec_topics_with_unknown_ids(run: Run, index: Path, tmp_path: Path) -> None:
    (tmp_path / "topics.tsv").write_text("q1\ta red square\nq2\tblue\nq3\tblack\n", "utf-8")
    (tmp_path / "qrels.txt").write_text("q1 0 red.png 1\nq1 0 lost.png 1\nq2 0 blue.png 2\nq3 0 no.png 1\n", "utf-8")
    asked = ("eval", tmp_path / "topics.tsv", "--qrels", tmp_path / "qrels.txt", "--index", index)
    (found,) = run(*asked, "--mode", "dense", "--json").json
    assert (found["topics"]["queries"], found["topics"]["success@1"]) == (2, 1.0)
    assert (found["unknown"], found["unanswered"]) == (["lost.png", "no.png"], 1)
    said = run(*asked).err
    assert "2 documents are not in the index (lost.png, no.png)" in said
    (tmp_path / "qrels.txt").write_text("q1 0 lost.png 1\n", "utf-8")
    assert run(*asked).code == 2


def _knows(path: Path | None) -> str:
    return path.stem if path is not None else ""


def test_a_reranker_is_compared_with_none(captions: Path, index: Path) -> None:
    """It puts green first whatever is asked, so that the other three are lost."""
    reranker = Scripted(lambda candidate: float(_knows(candidate.path) == "green"))
    report = mmsearch.evaluate(captions, index=index, modes=["dense"], rerankers=[reranker])
    plain, reranked = report.systems
    assert (plain.rerank, plain.name) == (None, "starter, dense")
    assert reranked.name == "starter, dense, rerank scripted"
    assert reranked.rerank is not None
    assert (reranked.rerank.name, reranked.rerank.identity) == ("scripted", "scripted-1")
    assert (reranked.rerank.depth, reranked.rerank.budget_ms, reranked.rerank.queries) == (50, None, 12)
    assert [one.language for one in reranked.outcomes] == ["en", "zh"]
    assert plain.outcomes[0].measures["success@1"] == 1.0
    assert [one.measures["success@1"] for one in reranked.outcomes] == [0.25, 0.25]
    assert all(system.ms_per_query is not None and system.ms_per_query > 0 for system in report.systems)
    loss = report.differences[0]
    assert (loss.system, loss.baseline, loss.measure) == (reranked.name, plain.name, "success@1")
    assert (loss.language, loss.comparison.delta, loss.queries) == ("en", -0.75, 8)
    # Three of four pictures differ, all one way: two of the eight ways to swap them are as far from 0.
    assert loss.p_randomisation == 0.25
    assert 0 <= loss.comparison.p <= 1
    assert {one.language for one in report.differences} == {"en", "zh"}
    assert report.notices == ()


def test_each_mode_is_the_baseline_of_its_rerankers(run: Run, captions: Path, index: Path) -> None:
    asked = ("eval", captions, "--index", index, "--language", "en", "--rerank", "fake")
    (found,) = run(*asked, "--mode", "dense", "--mode", "lexical", "--json").json
    assert (found["mode"], found["rerank"]) == ("dense", None)
    pairs = [(system["mode"], system["rerank"]) for system in found["systems"]]
    assert pairs == [("dense", None), ("dense", "fake"), ("lexical", None), ("lexical", "fake")]
    assert found["systems"][1]["reranking"] == {
        "name": "fake",
        "identity": "fake-reranker-1",
        "depth": 50,
        "budget_ms": None,
        "queries": 8,
    }
    assert all(system["ms_per_query"] > 0 for system in found["systems"])
    compared = [(one["system"], one["baseline"]) for one in found["differences"] if one["measure"] == "mrr"]
    assert compared == [
        ("starter, dense, rerank fake", "starter, dense"),
        ("starter, lexical", "starter, dense"),
        ("starter, lexical, rerank fake", "starter, lexical"),
    ]
    assert list(found["differences"][0])[-5:] == ["delta", "low", "high", "p", "p_randomisation"]
    assert "comparison" not in found["differences"][0]
    (found,) = run(*asked, "--json").json  # as the index is searched by default
    assert [(system["mode"], system["rerank"]) for system in found["systems"]] == [(None, None), (None, "fake")]


def test_tables_have_the_time_and_both_tests(run: Run, captions: Path, index: Path) -> None:
    asked = ("eval", captions, "--index", index, "--language", "en", "--rerank", "fake")
    systems, differences = run(*asked).out.split("\n\n")
    heads, *rows = [line.split("\t") for line in systems.splitlines()]
    assert heads[-1] == "ms/query"
    assert [row[2] for row in rows] == ["starter, search", "starter, search, rerank fake"]
    assert all(float(row[-1]) >= 0 for row in rows)
    heads, *rows = [line.split("\t") for line in differences.splitlines()]
    assert heads[-2:] == ["p", "p_randomisation"]
    assert {len(row) for row in rows} == {len(heads)}
    assert run("eval", captions, "--language", "en").out.splitlines()[1].split("\t")[-1] == "-"


def test_only_the_first_are_reranked(captions: Path, index: Path) -> None:
    reranker = Scripted(lambda candidate: float(candidate.item_id))
    report = mmsearch.evaluate(
        captions, index=index, modes=["dense"], rerankers=[reranker], rerank_depth=1, languages=["en"]
    )
    assert {len(batch) for batch in reranker.batches} == {1}
    assert report.systems[1].outcomes[0].measures == report.systems[0].outcomes[0].measures


def test_queries_that_a_reranker_fails_are_counted(captions: Path, index: Path) -> None:
    reranker = Scripted()

    def fail(number: int) -> None:
        if number < 3:
            raise ValueError("no")

    reranker.before = fail
    report = mmsearch.evaluate(captions, index=index, modes=["dense"], rerankers=[reranker], languages=["en"])
    assert report.systems[1].rerank is not None
    assert report.systems[1].rerank.queries == 5
    assert "starter, dense, rerank scripted: 3 of 8 queries were not reranked" in report.notices
    assert any("not reranked: scripted failed (ValueError: no)" in notice for notice in report.notices)


def test_rerankers_that_do_not_go_are_told_at_once(run: Run, captions: Path, index: Path, tmp_path: Path) -> None:
    searched = ("eval", captions, "--index", index)
    assert run("eval", captions, "--rerank", "fake").code == 2
    assert "choose one of" in run(*searched, "--rerank", "zzz").err
    assert run(*searched, "--mode", "dense", "--budget-ms", "5").code == 2
    assert run(*searched, "--rerank", "fake", "--rerank-depth", "0").code == 2
    assert run(*searched, "--rerank", "fake", "--run", tmp_path / "x.trec").code == 2
    assert run(*searched, "--model", "starter", "--rerank", "fake").code == 2
    assert run(*searched, "--rerank", f"local-dir:{tmp_path / 'none'}").code != 0
    (found,) = run(*searched, "--rerank", "fake", "--rerank", "fake", "--budget-ms", "60000", "--json").json
    assert [(one["rerank"], one.get("reranking", {}).get("budget_ms")) for one in found["systems"]] == [
        (None, None),
        ("fake", 60000),
    ]
    with pytest.raises(UsageError, match="told apart by their names"):
        mmsearch.evaluate(captions, index=index, rerankers=[Scripted(), Scripted()])
    with pytest.raises(UsageError, match="no option of the search"):
        mmsearch.evaluate(captions, index=index, rerankers=["fake"], options={"rerank": "fake"})


def test_topics_are_reranked(run: Run, index: Path, tmp_path: Path) -> None:
    (tmp_path / "topics.tsv").write_text("q1\tred\nq2\tblue\n", "utf-8")
    (tmp_path / "qrels.txt").write_text("q1 0 red.png 1\nq2 0 blue.png 1\n", "utf-8")
    asked = ("eval", tmp_path / "topics.tsv", "--qrels", tmp_path / "qrels.txt", "--index", index)
    (found,) = run(*asked, "--rerank", "fake", "--json").json
    assert [system["topics"]["success@1"] for system in found["systems"]] == [1.0, 1.0]
    assert found["systems"][1]["reranking"]["queries"] == 2


def test_a_sample_is_drawn_once_and_for_all(run: Run, captions: Path, index: Path) -> None:
    asked: list[list[str]] = []
    for languages in ((), ("en",), ("zh",)):
        reranker = Scripted()
        report = mmsearch.evaluate(captions, index=index, rerankers=[reranker], sample=3, languages=languages)
        asked.append(reranker.queries)
        assert {one.queries for system in report.systems for one in system.outcomes} == {3}
    assert len(asked[0]) == 6
    assert sorted(asked[0]) == sorted(asked[1] + asked[2])  # a language's sample is its own
    assert asked[1] != [text for colour in _COLOURS for text in (f"a {colour} square", colour)][:3]  # drawn
    done = run("eval", captions, "--index", index, "--mode", "dense", "--sample", "3", "--json")
    assert done.json[0]["sample"] == {"size": 3, "queries": 6, "of": 12}
    assert "a sample: 6 of 12 queries, the same ones every time" in done.err
    assert run("eval", captions, "--index", index, "--mode", "dense", "--json").json[0]["sample"] is None
    assert run("eval", captions, "--index", index, "--mode", "dense", "--sample", "0").code == 2
    assert run("eval", captions, "--sample", "3").code == 2


def test_progress_counts_queries(captions: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from mmsearch import progress

    text = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=text, force_terminal=True, width=160, color_system=None)
    )
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.0)
    with progress.ProgressDisplay() as display:
        mmsearch.evaluate(captions, index=index, rerankers=["fake"], progress=display.on_eval)
    shown = text.getvalue()
    assert "queries, search 2 of 2" in shown
    assert "queries/s" in shown
    assert "files/s" not in shown


def test_curves_are_drawn(run: Run, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert run("eval", captions, "--plot", tmp_path / "c.png").code == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert run("eval", captions, "--plot", tmp_path / "c.doc").code == 2
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"mmsearch\[plot\]"):
        mmsearch.evaluate(captions, plot=tmp_path / "d.png")


def test_the_starters_quality_is_the_golden_one(shared: Path, repository: Path) -> None:
    import tomllib

    golden = tomllib.loads((repository / "benchmarks" / "golden.toml").read_text("utf-8"))
    entry = next(one for one in golden["golden"] if one["preset"] == "starter" and one["set"] == "coco_dev")
    report = mmsearch.evaluate(shared / "coco_dev", models=["starter"], offline=True)
    for outcome in report.systems[0].outcomes:
        for measure, value in entry[outcome.direction].items():
            assert outcome.measures[measure] == pytest.approx(value, abs=entry["tolerance"])
