"""The benchmark scripts run and write what they say; what they measure is not judged here."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def run_script(repository: Path, script: str, *arguments: object) -> str:
    """What a benchmark prints."""
    command = [sys.executable, str(repository / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(repository)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_script(repository: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", repository / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """The data sets in small: twelve photos for val, twelve for coco_dev, two classes of three."""
    folder = tmp_path / "data"
    colours = ("red", "green", "blue", "yellow", "black", "orange")
    chinese = ("红色", "绿色", "蓝色", "黄色", "黑色", "橙色")
    for name in ("flickr8k", "coco_dev"):
        entries: list[dict[str, Any]] = []
        for shape in ("square", "circle"):
            for colour, word in zip(colours, chinese, strict=True):
                path = draw(folder / name / "images" / f"{colour}-{shape}.jpg", colour, shape)
                captions = [f"a {colour} {shape}", f"a {shape} on {colour}"]
                entries.append({"file_name": path.name, "captions": captions})
                if name == "flickr8k":
                    entries[-1] |= {"split": "val", "captions_zh": [f"{word}的图片"]}
        if name == "flickr8k":
            entries.append({"file_name": "none.jpg", "split": "train", "captions": ["x"], "captions_zh": ["x"]})
        (folder / name / "captions.json").write_text(json.dumps(entries), "utf-8")
    for colour in ("red", "blue"):
        for shape in ("square", "circle", "triangle"):
            draw(folder / "caltech101_train" / f"{colour}_thing" / f"{shape}.jpg", colour, shape)
    return folder


def test_speed_writes_its_figures(repository: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "speed.json"
    wanted = ["imports", "rescan"]
    printed = run_script(
        repository, "speed.py", "--data", data, "--only", *wanted, "--rounds", 1, "--files", 8, "--out", out
    )
    result = json.loads(out.read_text("utf-8"))
    assert [figure["name"] for figure in result["figures"]] == wanted
    assert result["photos"] == 12
    assert {"processor", "processors", "python", "mmsearch", "packages", "date"} <= set(result["machine"])
    for figure in result["figures"]:
        assert {"what", "value", "bound", "target", "met", "seconds", "notes"} <= set(figure)
        assert figure["name"] in printed
    imports, rescan = result["figures"]
    assert imports["value"] == 0 and imports["met"]
    assert set(imports["notes"]["loaded"]) == {"--help", "query --help"}
    assert "typer" in imports["notes"]["loaded"]["--help"]
    assert {len(seconds) for seconds in rescan["seconds"].values()} == {1}
    assert set(rescan["notes"]["us/file"]) == {"add", "command"}


@pytest.mark.parametrize("script", ["answers", "measures", "search", "speed", "store"])
def test_every_target_has_one_measurement(repository: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    for name, measurement in load_script(repository, script, monkeypatch).MEASUREMENTS.items():
        assert measurement.__name__ == name.replace("-", "_")
        assert measurement.__doc__


def test_contenders_take_turns(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load_script(repository, "speed", monkeypatch)
    turns: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        return lambda: turns.append(name) or float(len(turns))  # type: ignore[func-returns-value]

    figures = speed.alternate(3, {"a": contender("a"), "b": contender("b")})
    assert "".join(turns) == "abbaab"
    assert figures == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert speed.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


def test_figures_know_whether_they_are_met(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = load_script(repository, "speed", monkeypatch)
    assert speed.Figure("x", "", 0.85, ">=", 0.85).met
    assert not speed.Figure("x", "", 0.84, ">=", 0.85).met
    assert speed.Figure("x", "", 40.0, "<=", 40.0).met
    assert not speed.Figure("x", "", 40.1, "<=", 40.0).met


def test_photos_come_from_a_folder_too(repository: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    speed = load_script(repository, "speed", monkeypatch)
    found = speed.find_photos(argparse.Namespace(data=None, photos=data / "caltech101_train", limit=4))
    assert [path.name for path in found] == ["circle.jpg", "square.jpg", "triangle.jpg", "circle.jpg"]


def test_copies_differ_in_content_and_not_in_pixels(
    repository: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    speed = load_script(repository, "speed", monkeypatch)
    photo = data / "coco_dev" / "images" / "red-circle.jpg"
    shop = speed.Workshop(tmp_path, [photo], rounds=1, files=4, torch_photos=1)
    copies = sorted(shop.copies("copies", 3).iterdir())
    assert len({path.read_bytes() for path in copies}) == 3
    assert len({Image.open(path).tobytes() for path in copies}) == 1


def test_peaks_are_compared_for_four_times_the_files(
    repository: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = load_script(repository, "speed", monkeypatch)
    sizes: list[int] = []

    def index_once(folder: Path, index: Path, model: str) -> dict[str, float]:
        index.mkdir()
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len({path.read_bytes() for path in files}) == len(files)
        sizes.append(len(files))
        return {"peak_bytes": (100 + len(files) / 10) * 2**20}

    monkeypatch.setattr(speed, "index_once", index_once)
    photos = sorted((data / "coco_dev" / "images").iterdir())[:3]
    shop = speed.Workshop(tmp_path, photos, rounds=1, files=40, torch_photos=1)
    tiny, large = speed.memory_files(shop), speed.memory(shop)
    assert sizes == [10, 40, 102, 408]
    assert tiny.value == pytest.approx(104 / 101)
    assert tiny.met and not large.met


def test_store_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "store.json"
    printed = run_script(repository, "store.py", "--items", 2000, "--dim", 32, "--rounds", 1, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    assert (result["items"], result["dim"], result["rounds"]) == (2000, 32, 1)
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert set(figures) == {"add-segment", "add-catalog", "open", "doctor", "merge-bytes", "search"}
    assert all(name in printed for name in figures)
    header, row = 4096, 8 + 32 + 8 + 4 * 32  # docs/storage.md
    assert figures["add-segment"]["value"] == pytest.approx((header + 100 * row) / (100 * 4 * 32), abs=0.02)
    catalog = figures["add-catalog"]
    both = catalog["notes"]["bytes an item, 2,000 items"]
    assert both["each commit"] == [pytest.approx(both["log"] + both["checkpoint"], abs=1)]
    assert catalog["value"] == pytest.approx(both["each commit"][0], abs=1)
    assert 0 < both["checkpoint"] <= both["log"]
    assert figures["open"]["value"] == 1.0 and figures["open"]["met"]
    merges = figures["merge-bytes"]["notes"]
    assert (merges["adds"], merges["merges"], merges["segment files left"]) == (20, 2, 2)
    assert merges["segments"] == pytest.approx((2 * header + 2000 * row) / (2000 * 4 * 32), abs=0.02)
    assert set(figures["search"]["seconds"]) >= {"Snapshot.search", "IndexFlatIP", "many segments"}


def test_bytes_of_a_log_are_its_size_and_its_distinct_pages(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = load_script(repository, "store", monkeypatch)
    connection = sqlite3.connect(tmp_path / "x.sqlite", isolation_level=None)
    log = tmp_path / "x.sqlite-wal"
    connection.execute("PRAGMA page_size=1024")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    store.empty_log(tmp_path / "x.sqlite")
    assert store.log_bytes(log.read_bytes()) == (0, 0)
    for number in range(3):
        connection.execute("INSERT INTO t VALUES (?)", (number,))  # three times the same page
    assert store.log_bytes(log.read_bytes()) == (32 + 3 * (24 + 1024), 1024)
    connection.close()


def test_steps_of_sqlite_grow_with_what_it_looks_at(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = load_script(repository, "store", monkeypatch)
    counted = []
    for rows in (100, 1000):
        store.CountedConnection.steps = 0
        connection = sqlite3.connect(":memory:", factory=store.CountedConnection)
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(rows)])
        before = store.CountedConnection.steps
        connection.execute("SELECT SUM(x) FROM t").fetchone()
        counted.append(store.CountedConnection.steps - before)
        connection.close()
    assert counted[0] >= 100
    assert 9 < counted[1] / counted[0] < 11


def test_quality_writes_its_figures(repository: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    printed = run_script(repository, "quality.py", "--data", data, "--model", "fake", "--against", "fake", "--out", out)
    result = json.loads(out.read_text("utf-8"))
    figures = {figure["name"]: figure for figure in result["figures"]}
    held = {name for name, figure in figures.items() if "floor" in figure}
    assert held == {"en t2i@10", "zh t2i@10", "en i2t@10", "coco t2i@10", "caltech top-1", "top-10 shared"}
    assert {f"{name} {way}@{k}" for name in ("en", "zh", "coco") for way in ("t2i", "i2t") for k in (1, 5, 10)} <= set(
        figures
    )
    assert {f"top-10 shared {language}" for language in ("de", "fr", "es", "ja")} <= set(figures)
    assert result["model"]["backend"] == "fake"
    assert result["photos"] == {"val": 12, "coco": 12, "caltech": 6}
    assert figures["caltech top-1"]["value"] == 1.0  # the fake knows colours
    assert figures["caltech top-1"]["met"]
    for figure in figures.values():
        low, high = figure.get("interval", (figure["value"], figure["value"]))
        assert low <= figure["value"] + 1e-9 and figure["value"] <= high + 1e-9
        assert figure["name"] in printed
    differences = result["against"]["differences"]
    assert set(differences) == {name for name in figures if not name.startswith("top-10")}
    assert all(each == {"delta": 0.0, "low": 0.0, "high": 0.0, "p": 1.0} for each in differences.values())


def test_a_caption_query_counts_for_its_photo(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    quality = load_script(repository, "quality", monkeypatch)
    successes = np.array([True, False, True, True, False])
    assert quality._by_photo(successes, [0, 0, 1, 1, 3]).tolist() == [0.5, 1.0, 0.0]


def test_pointing_writes_its_figures(repository: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "pointing.json"
    printed = run_script(
        repository, "pointing.py", "--data", data, "--model", "fake", "--train", 0, "--cases", 12, "--out", out
    )
    result = json.loads(out.read_text("utf-8"))
    assert [figure["name"] for figure in result["figures"]] == ["val en", "val zh"]
    assert result["model"]["name"] == "fake"
    for figure in result["figures"]:
        assert (figure["cases"], figure["methods"]) == (12, ["crops"])
        assert figure["interval"][0] <= figure["value"] <= figure["interval"][1]
        assert figure["value"] >= 0.6  # the fake knows colours, but two photos of a case may have the same
        assert figure["name"] in printed
    assert "floor 0.6: met" in printed


def test_a_collage_is_read_as_it_is_laid(repository: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointing = load_script(repository, "pointing", monkeypatch)
    folder = data / "flickr8k" / "images"
    photos = [folder / f"{colour}-square.jpg" for colour in ("red", "green", "blue", "yellow")]
    whole = pointing.collage(photos)
    seen = set()
    for x, y in ((0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9)):
        red, green, blue = whole.getpixel((int(x * whole.width), int(y * whole.height)))
        expected = ((red > 200, green > 100, blue > 200)) == {
            0: (True, False, False),
            1: (False, True, False),
            2: (False, False, True),
            3: (True, True, False),
        }[pointing.place_of((x, y))]
        assert expected
        seen.add(pointing.place_of((x, y)))
    assert seen == {0, 1, 2, 3}
    assert len({case.photos[case.place] for case in pointing.cases(_val(data), 40, 1)}) > 6
    assert all(len(set(case.photos)) == 4 for case in pointing.cases(_val(data), 40, 1))


def _val(data: Path) -> Any:
    from mmsearch.indexers.train.data import read_captioned

    return read_captioned(data / "flickr8k", "val")


def test_search_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "search.json"
    printed = run_script(repository, "search.py", "--items", 300, "--dim", 32, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert list(figures) == ["dupes-seconds", "dupes-memory", "dupes-recall", "dupes-exact"]
    assert all(name in printed for name in figures)
    assert figures["dupes-seconds"]["notes"]["items"] == 300
    assert figures["dupes-recall"]["value"] == 1.0
    assert figures["dupes-exact"]["value"] == 1.0


def test_measures_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "measures.json"
    sizes = ["--size", 60, 20, "--large", 200, 50, "--dim", 16, "--rounds", 1]
    printed = run_script(repository, "measures.py", *sizes, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    assert (result["size"], result["large"]) == ([60, 20], [200, 50])
    figures = {figure["name"]: figure for figure in result["figures"]}
    assert list(figures) == ["by-sorting", "by-trec-eval", "large-seconds", "large-memory"]
    assert all(name in printed for name in figures)
    for name in ("by-sorting", "by-trec-eval"):
        seconds = figures[name]["seconds"]
        mine, other = seconds["measure_embeddings"][0], list(seconds.values())[1][0]
        assert figures[name]["value"] == pytest.approx(mine / other, rel=0.3, abs=1)
    assert set(figures["large-seconds"]["notes"]) == {"text_to_image", "image_to_text"}
    assert figures["large-seconds"]["value"] > 0


def test_answers_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    out, index = tmp_path / "results" / "answers.json", tmp_path / "index"
    sizes = ["--items", 400, "--dim", 16, "--rounds", 1, "--cache", index]
    printed = run_script(repository, "answers.py", *sizes, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    assert (result["items"], result["dim"], result["rounds"]) == (400, 16, 1)
    figures = {figure["name"]: figure for figure in result["figures"]}
    names = ["filtered-indexed", "filtered-others", "hybrid", "lexical", "shaped", "filter-crossover"]
    assert list(figures) == names
    assert all(name in printed for name in names)
    assert set(figures["filtered-indexed"]["notes"]) == {
        f"{field} {share}"
        for field in ("taken", "near", "tag")
        for share in ("0.1%", "1.0%", "10.0%", "50.0%", "100.0%")
    }
    for line in figures["filtered-others"]["notes"].values():
        assert line["scan ms"] > 0
        assert line["ratio"] == pytest.approx((line["p50 ms"] - line["scan ms"]) / line["plain p50 ms"], abs=0.1)
    assert "Chinese" in figures["hybrid"]["notes"]
    again = run_script(repository, "answers.py", *sizes, "--only", "hybrid")  # on the index that was kept
    assert "hybrid" in again
    assert "shaped" not in again


def test_filters_of_answers_let_their_share_through(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.conditions import condition_of
    from mmsearch.retrieval.store import LocalStore
    from mmsearch.retrieval.store.selection import count_where

    captioned = load_script(repository, "captioned", monkeypatch)
    captioned.Captioned(1500, 8).fill(tmp_path / "index")
    with LocalStore.open(tmp_path / "index").snapshot() as snapshot:
        for field in (*captioned.INDEXED, *captioned.OTHERS):
            for share in captioned.SHARES:
                where = captioned.filter_of(field, share)
                passed = count_where(snapshot, "image", condition_of(where, snapshot, "image")) / 1500
                deviation = math.sqrt(share * (1 - share) / 1500)
                assert passed == pytest.approx(share, abs=0.002 + 4 * deviation), where


def test_filters_cross_where_checking_stays_the_cheaper(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = load_script(repository, "answers", monkeypatch)
    assert answers.crossing({0.1: (1.0, 2.0), 0.2: (3.0, 2.0), 1.0: (9.0, 2.0)}) == 0.2
    assert answers.crossing({0.1: (3.0, 2.0), 0.2: (1.0, 2.0), 1.0: (9.0, 2.0)}) == 1.0
    assert answers.crossing({0.1: (1.0, 2.0), 1.0: (2.0, 2.0)}) == 1.0
    assert answers.crossing({0.1: (3.0, 2.0), 1.0: (3.0, 2.0)}) == 0.1


def test_photos_are_edited_in_every_way(repository: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = load_script(repository, "variants", monkeypatch)
    album = variants.edited_album(data / "flickr8k", "val", 2)
    assert album.kinds.tolist() == 12 * [""] + 2 * list(variants.KINDS)
    rule = album.rule()
    near = album.near_their_photo(rule)
    assert near[album.kinds == ""].all() and near[album.kinds == "JPEG 90"].all()
    count = len(album.photos)
    different = [(i, j) for j in range(count) for i in range(j) if album.photos[i] != album.photos[j]]
    assert album.mistaken(rule, edits=True)[1] == len(different)
    assert album.mistaken(rule, edits=False)[1] == 66


def test_queries_writes_its_figures(repository: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "queries.json"
    printed = run_script(
        repository, "queries.py", "--data", data, "--model", "fake", "--sets", "val", "coco", "caltech", "--out", out
    )
    result = json.loads(out.read_text("utf-8"))
    assert result["command"].startswith("python benchmarks/queries.py --data ")
    assert {"processor", "date", "commit"} <= set(result["machine"])
    figures = result["figures"]
    assert [(figure["set"], figure["test"]) for figure in figures] == [
        *[(name, test) for name in ("val", "coco") for test in _TESTS],
        ("caltech", "templates"),
    ]
    assert all(f"set {name}, " in printed for name in ("val", "coco", "caltech"))
    for figure in figures:
        for values in figure.get("ways", {}).values():
            for value, low, high in values.get("difference", {}).values():
                assert low - 1e-9 <= value <= high + 1e-9
    val = {figure["test"]: figure for figure in figures if figure["set"] == "val"}
    assert list(val["composed"]["ways"]) == ["early", "late", "both", "plain sum", "text only", "picture only"]
    hybrid = {figure["captions"] + figure.get("targets", ""): figure for figure in figures[:9] if "captions" in figure}
    assert {key: figure["queries"] for key, figure in hybrid.items()} == {
        "all": 12, "halfthose with": 6, "halfthose without": 6, "none": 12,
    }  # fmt: skip
    for figure in hybrid.values():
        assert list(figure["ways"]) == ["dense", "lexical", "plain RRF, 60", "hybrid"]
    # The second caption has the words of the first one; without captions there are no words but those of file names.
    assert hybrid["all"]["ways"]["lexical"]["success@10"] > hybrid["none"]["ways"]["lexical"]["success@10"] == 0
    assert hybrid["none"]["ways"]["hybrid"]["mrr@10"] == hybrid["none"]["ways"]["dense"]["mrr@10"]
    assert hybrid["halfthose without"]["ways"]["lexical"]["success@10"] == 0
    assert figures[-1]["queries"] == 2 and figures[-1]["ways"]["none"]["average precision"] == 1.0


_TESTS = ("composed", "composed", "templates", "templates", *["hybrid"] * 4)


def test_ranks_of_known_items(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    queries = load_script(repository, "queries", monkeypatch)
    values = queries.known_item([[4, 7], [7, 4], [1], [*range(2, 12), 0]], [4, 4, 4, 0])
    assert values["success@1"].tolist() == [1, 0, 0, 0]
    assert values["success@5"].tolist() == [1, 1, 0, 0]
    assert values["mrr@10"].tolist() == pytest.approx([1, 1 / 2, 0, 0])
    relevant = np.array([[True, False, True, False]])
    several = queries.many_items([[1, 0, 3, 2]], relevant)
    assert several["average precision"].tolist() == pytest.approx([(1 / 2 + 2 / 4) / 2])
    assert several["success@1"].tolist() == [0] and several["success@5"].tolist() == [1]


def test_differences_are_to_the_first_way(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    queries = load_script(repository, "queries", monkeypatch)
    ways = {"a": {"m": np.array([1.0, 0, 0, 0])}, "b": {"m": np.array([1.0, 1, 1, 0])}}
    found = queries.table(ways)
    assert (found["queries"], found["ways"]["a"]) == (4, {"m": 0.25})
    assert found["ways"]["b"]["m"] == 0.75
    assert found["ways"]["b"]["difference"]["m"][0] == 0.5
    some = queries.table(ways, np.array([True, True, False, False]))
    assert (some["queries"], some["ways"]["b"]["m"], some["ways"]["b"]["difference"]["m"][0]) == (2, 1.0, 0.5)


def test_plain_fusion_is_undone(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = load_script(repository, "queries", monkeypatch)
    before = queries.ranking.HYBRID_CONSTANT
    with queries.plain_fusion():
        assert queries.ranking.HYBRID_CONSTANT == 60
    assert queries.ranking.HYBRID_CONSTANT == before


def test_rerank_times_an_adapter_beside_its_model(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "rerank.json"
    short = ["--only", "minilm", "--rounds", 1, "--texts", 3, "--batch-size", 2]
    run_script(repository, "rerank.py", *short, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    (figure,) = result["figures"]
    assert (figure["name"], figure["notes"]["batch"], figure["notes"]["million parameters"]) == ("minilm", 2, 22.7)
    assert figure["value"] > 0 and len(figure["seconds"]["forward"]) == 1


def test_train_writes_its_figures(repository: Path, tmp_path: Path) -> None:
    from tests.test_finetune import TEXT, VISION, save

    model = save(tmp_path / "model", {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, {})
    out = tmp_path / "train.json"
    printed = run_script(
        repository, "train.py", "--model", model, "--batch", 4, "--steps", 2, "--rounds", 2, "--out", out
    )
    result = json.loads(out.read_text("utf-8"))
    (figure,) = result["figures"]
    assert (figure["name"], figure["batch"], figure["target"]) == ("rate", 4, 0.9)
    assert len(figure["seconds"]) == 2
    assert figure["value"] == pytest.approx(
        sum(turn["alone"] / turn["loop"] for turn in figure["seconds"]) / 2, abs=1e-3
    )
    assert f"{figure['value']:.3f}" in printed
    assert result["command"].startswith("python benchmarks/train.py --model ")


def test_train_times_random_weights_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.test_finetune import TEXT, VISION

    script = load_script(repository, "train", monkeypatch)
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    real = script.open_clip
    tiny = SimpleNamespace(
        get_model_config=lambda name: config if name == "tiny" else None,
        create_model=lambda name: real.CLIP(**config),
        get_model_preprocess_cfg=real.get_model_preprocess_cfg,
    )
    monkeypatch.setattr(script, "open_clip", tiny)
    out = tmp_path / "train.json"
    sizes = ["--device", "cpu", "--batch", "4", "--steps", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--random", "tiny", *sizes, "--out", str(out)])
    assert script.main() == 0
    (figure,) = json.loads(out.read_text("utf-8"))["figures"]
    assert (figure["device"], figure["precision"]) == ("cpu", "float32")
    assert f"{figure['pairs_per_second']:,} pairs/s" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train.py", "--random", "unheard-of"])
    with pytest.raises(SystemExit, match="no architecture `unheard-of`"):
        script.main()


@pytest.fixture
def captioned(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """Two sets of four photos, as `indexers.train.data` reads them."""
    for folder in ("flickr8k", "coco_dev"):
        entries = []
        for number, colour in enumerate(("red", "green", "blue", "yellow")):
            name = f"3{number}.png"
            draw(tmp_path / "data" / folder / "images" / name, colour)
            captions = [f"a {colour} square on a beach", f"one {colour} dog"]
            entries.append({"file_name": name, "split": "val", "captions": captions, "captions_zh": ["一个红色的男人"]})
        (tmp_path / "data" / folder / "captions.json").write_text(json.dumps(entries), "utf-8")
    return tmp_path / "data"


def test_joint_writes_its_figures(repository: Path, captioned: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint.json"
    run_script(repository, "joint.py", "--data", captioned, "--out", out)
    result = json.loads(out.read_text("utf-8"))
    gain = result["text to image"]["flickr8k val en"]["success@1"]
    assert gain["delta"] == pytest.approx(gain["after"] - gain["before"], abs=1e-3)
    assert result["text to image"]["coco_dev en"]["success@5"]["before"] == 1.0  # of four photos
    assert set(result["cross-fitted"]) == {"flickr8k val en", "flickr8k val zh"}
    assert result["changed captions"]["flickr8k val en"]["all"]["captions"] > 8
    assert result["time"]["bytes per picture"] == 29 * 128
    assert result["time"]["ms per query"] > 0


def test_filtered_writes_its_figures(repository: Path, captioned: Path, tmp_path: Path) -> None:
    out = tmp_path / "filtered.json"
    run_script(repository, "filtered.py", "--data", captioned, "--out", out)
    (figure,) = json.loads(out.read_text("utf-8"))["figures"]  # no other filter lets a photo through
    assert (figure["filter"], figure["pass"], figure["share"]) == ('path ~ "*/3*"', 4, 1.0)
    assert figure["success@1"]["delta"] == 0.0
    assert figure["success@10"]["with"] == 1.0
