"""Evaluation from end to end: the command on a tiny set, with an encoder that knows colours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Result

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import MissingExtra
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
    assert "add --index DIR and a mode" in run("eval", captions, "--rerank", "fake").err
    assert run("eval", captions, "--sample", "3").code == 2
    assert run("eval", captions, "--index", tmp_path, "--mode", "dense", "--sample", "0").code == 2
    assert run("eval", captions, "--index", tmp_path, "--mode", "dense", "--rerank", "fake", "--run", "x").code == 2
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


def test_rerankers_are_compared_with_none(run: Run, captions: Path, index: Path) -> None:
    _change(captions, lambda records: [record.update(captions=["square"]) for record in records[:2]])
    asked = ("eval", captions, "--index", index, "--mode", "dense", "--rerank", "fake", "--language", "en")
    (found,) = run(*asked, "--json").json
    assert [(system["mode"], system["rerank"]) for system in found["systems"]] == [("dense", None), ("dense", "fake")]
    assert all(system["ms_per_query"] > 0 for system in found["systems"])
    (first, *_) = found["differences"]
    assert (first["baseline"], first["system"]) == ("starter, dense", "starter, dense, fake")
    assert 0 < first["p_randomisation"] <= 1
    with mmsearch.open(index) as opened:
        for mode in ("dense", "hybrid"):
            report = mmsearch.evaluate(captions, index=index, modes=[mode], rerankers=["fake"], languages=["en"])
            right = [
                next(hit.uri for hit in opened.search(text, k=1, mode=mode, rerank="fake", modality="image")) == name
                for name, text in (("red.png", "square"), ("green.png", "square"))
            ]
            outcome = report.systems[1].outcomes[0]
            ranks = dict(zip(outcome.evaluated.ids, outcome.first_ranks, strict=True))
            assert [ranks[f"{name}#en0"] == 1 for name in ("red.png", "green.png")] == right
    said = run(*asked).err
    assert "starter, dense, fake: " in said
    assert "ms a query" in said


def test_a_reranker_orders_as_many_as_it_is_told(captions: Path, index: Path) -> None:
    plain = mmsearch.evaluate(captions, index=index, modes=["dense"])
    one = mmsearch.evaluate(captions, index=index, modes=["dense"], rerankers=["fake"], rerank_depth=1)
    assert [each.measures for each in one.systems[1].outcomes] == [each.measures for each in plain.systems[0].outcomes]


def test_a_sample_is_always_the_same(run: Run, captions: Path, index: Path) -> None:
    asked = ("eval", captions, "--index", index, "--mode", "dense", "--sample", "3", "--json")
    first, second = (run(*asked).json[0] for _ in range(2))
    assert (first["queries"], first["sampled_from"]) == (second["queries"], second["sampled_from"])
    assert first["text_to_image"] == second["text_to_image"]
    reports = [mmsearch.evaluate(captions, index=index, modes=["dense"], sample=3) for _ in range(2)]
    ids = [[name for one in report.systems[0].outcomes for name in one.evaluated.ids] for report in reports]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3
    assert "a sample: 3 of " in run(*asked[:-1]).err
    whole = mmsearch.evaluate(captions, index=index, modes=["dense"], sample=10_000)
    assert whole.sampled_from == 0


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
