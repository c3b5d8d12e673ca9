"""Every option of `mmsearch query`, from the command line, and what its help shows."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_kit import MAIN, Result, run_alone

from mmsearch.retrieval.rerank.fake import FakeReranker

Run = Callable[..., Result]
Draw = Callable[..., Path]


@pytest.fixture
def indexed(run: Run, tmp_path: Path, draw: Draw) -> Path:
    """Pictures with captions in two folders, a near-duplicate, a text, and an odd name."""
    folder = tmp_path / "pictures"
    draw(folder / "red.png", "red", size=(96, 64))
    draw(folder / "red-again.png", "red", size=(48, 32))
    draw(folder / "wide" / "blue.png", "blue", "circle", size=(300, 100))
    draw(folder / "wide" / "green.png", "green", "triangle", size=(300, 100))
    draw(folder / "wide" / "odd \n\x1b[31m'name.png", "yellow", size=(300, 100))
    (folder / "wide" / "blue.txt").write_text("a harbour at night\n", encoding="utf-8")
    (folder / "notes.md").write_text("red roses. " * 100, encoding="utf-8")
    os.utime(folder / "wide" / "green.png", (2_000_000_000, 2_000_000_000))
    assert run("index", folder, "--model", "fake").code == 0
    return folder


def _names(result: Result) -> list[str]:
    assert result.code == 0, result.err
    return [Path(hit["path"]).name for hit in result.json]


def _ids(run: Run) -> dict[str, int]:
    return {Path(hit["path"]).name: hit["item_id"] for hit in run("query", "red", "-k", "99", "--json").json}


# What to look for


def test_pictures_and_clauses_are_combined(run: Run, indexed: Path) -> None:
    def first(*arguments: str | Path) -> str:
        return _names(run("query", *arguments, "--json", "--mode", "dense"))[0]

    blue, green = indexed / "wide" / "blue.png", indexed / "wide" / "green.png"
    assert first("--image", blue, "--include-self") == "blue.png"
    assert first("--image", blue) != "blue.png"
    assert first("red", "--plus", "3:blue") == "blue.png"
    assert first("blue", "--plus", f"3:{green}", "--include-self") == "green.png"
    assert first("blue", "--minus", "red") == "blue.png"
    assert _names(run("query", "--minus", "red", "--json", "--mode", "dense"))[-1].startswith("red")
    assert first("--image", blue, "--image", green, "--include-self") in ("blue.png", "green.png")
    assert first("blue + 3:green") == "green.png"
    number = _ids(run)["green.png"]
    assert first(f"id:{number}", "--include-self") == "green.png"
    assert first(f"id:{number}") != "green.png"
    relative = os.path.relpath(blue)
    assert first("--image", relative, "--include-self") == "blue.png"


def test_negative_queries_may_begin_the_line(run: Run, indexed: Path) -> None:
    result = run("query", "- red", "--json")
    assert _names(result)[-1].startswith("red")
    assert "least like them" in result.err


# Which hits


def test_filters_and_pages(run: Run, indexed: Path) -> None:
    assert set(_names(run("query", "red", "--where", "width >= 300", "--json"))) == {
        "blue.png", "green.png", "odd \n\x1b[31m'name.png",
    }  # fmt: skip
    everything = _names(run("query", "red", "--json"))
    pages = [_names(run("query", "red", "--json", "-k", "2", "--offset", str(at))) for at in (0, 2, 4, 6)]
    assert [name for page in pages for name in page] == everything
    assert run("query", "red", "--json", "-k", "2", "--offset", "2").json[0]["rank"] == 3


def test_modes_find_by_words_or_by_meaning(run: Run, indexed: Path) -> None:
    assert _names(run("query", "harbour", "--mode", "lexical", "--json")) == ["blue.png"]
    assert _names(run("query", '"at night"', "--mode", "hybrid", "--json"))[0] == "blue.png"
    assert len(_names(run("query", "harbour", "--mode", "dense", "--json"))) == 5


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
def test_fusion_is_taken_at_its_word(fusion: str, run: Run, indexed: Path) -> None:
    hits = run("query", "red + blue", "--fusion", fusion, "--explain", "--json").json
    assert {hit["explanation"]["fusion"] for hit in hits} == {fusion}
    lists = {name for hit in hits for name in hit["explanation"]["ranks"]}
    assert len(lists) >= {"early": 1, "late": 2, "both": 3}[fusion]


def test_shapes_of_an_answer(run: Run, indexed: Path) -> None:
    grouped = run("query", "red", "--group", "folder", "--json").json
    assert [Path(hit["path"]).parent for hit in grouped] == [indexed, indexed / "wide"]
    assert [hit["others"] for hit in grouped] == [1, 2]
    passages = run("query", "red roses", "--modality", "text", "--group", "file", "--json").json
    assert len({hit["path"] for hit in passages}) == len(passages) == 2
    alone = run("query", "red", "--dedup", "--json").json
    assert len(alone) == 4
    (twin,) = alone[0]["duplicates"]
    assert {Path(alone[0]["path"]).name, Path(twin["path"]).name} == {"red.png", "red-again.png"}
    assert _names(run("query", "red", "--diverse", "1", "--json", "-k", "2"))[1] not in ("red.png", "red-again.png")
    assert _names(run("query", "red", "--sort", "date", "--json"))[0] == "green.png"


def test_what_is_not_relevant_enough_is_left_out(run: Run, tmp_path: Path, draw: Draw) -> None:
    colours = ("red", "blue", "green", "yellow", "black", "orange")
    for number in range(150):
        draw(tmp_path / "many" / f"{number}.png", colours[number % 6], size=(8 + number, 12))
    assert run("index", tmp_path / "many", "--model", "fake").code == 0
    found = [hit["relevance"] for hit in run("query", "red", "-k", "150", "--json", "--mode", "dense").json]
    limit = (min(found) + max(found)) / 2
    kept = run("query", "red", "-k", "150", "--json", "--mode", "dense", "--min-relevance", str(limit)).json
    assert [hit["relevance"] for hit in kept] == pytest.approx([value for value in found if value >= limit])
    assert 0 < len(kept) < len(found) == 150
    best = run("query", "zebra", "--json", "--mode", "dense").json[0]["relevance"]
    nothing = run("query", "zebra", "--mode", "dense", "--min-relevance", "0.9")
    assert (nothing.code, nothing.out) == (0, "")
    assert f"the most relevant item here has {best:.2f}, less than 0.9" in nothing.err


def test_why_nothing_was_found(run: Run, indexed: Path) -> None:
    result = run("query", "red", "--where", "width > 5000")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines() == ["no item passes the filter", "nothing found"]
    assert "passes the filter" not in run("query", "red", "--where", "width > 200").err
    result = run("query", "red", "--where", "ext = txt")
    assert result.err.splitlines() == ["no item passes the filter", "items of modality text do: 1", "nothing found"]
    assert run("query", "red", "--where", "ext = txt", "--modality", "text").out


def test_a_misspelt_column_is_told_of(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("text,Price,maker\na red cup,4.5,Alessi\na blue cup,5,\n")
    assert run("index", tmp_path / "shop.csv", "--model", "fake").code == 0
    assert "a red cup" in run("query", "cup", "--where", "meta.price < 5", "--json").out
    result = run("query", "cup", "--where", "meta.prise < 5 and meta.zzz = 1")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines() == [
        "no item passes the filter",
        "no item has a column 'prise'; did you mean 'Price'?",
        "no item has a column 'zzz'",
        "nothing found",
    ]
    assert "column" not in run("query", "cup", "--where", "meta.price > 90").err


@pytest.mark.parametrize(
    "shape", [(), ("--group", "folder"), ("--dedup",), ("--diverse", "0.5"), ("--mode", "lexical")]
)
def test_a_page_past_the_end_says_so(shape: tuple[str, ...], run: Run, indexed: Path) -> None:
    asked = "red" if "lexical" not in shape else "png"
    count = len(run("query", asked, "--json", "-k", "99", *shape).json)
    assert len(run("query", asked, "--json", "--offset", str(count - 1), *shape).json) == 1
    for offset in (count, 2**63, 10**30):
        result = run("query", asked, "--offset", str(offset), *shape)
        assert (result.code, result.out) == (0, "")
        assert result.err.splitlines() == [
            f"offset {offset:,} passes over every hit ({count} in all)", "no hits from there on",
        ]  # fmt: skip


def test_more_hits_than_there_are_can_be_asked_for(run: Run, indexed: Path) -> None:
    assert len(run("query", "red", "-k", str(10**30), "--json").json) == 5


def test_a_small_index_says_that_it_knows_no_relevance(run: Run, indexed: Path) -> None:
    result = run("query", "red", "--min-relevance", "0.9", "--json")
    assert [hit["relevance"] for hit in result.json] == [None] * 5
    assert "relevance is unknown here" in result.err


# How they are shown


def test_paths0_feeds_xargs(indexed: Path, tmp_path: Path) -> None:
    done = run_alone("query", "red", "--paths0", index=tmp_path / "index")
    assert done.returncode == 0
    listed = subprocess.run(
        ["xargs", "-0", sys.executable, "-c", "import os, sys; print([os.path.getsize(a) > 0 for a in sys.argv[1:]])"],
        input=done.stdout,
        capture_output=True,
        check=True,
    )
    assert listed.stdout.decode().strip() == str([True] * 5)


def test_explanations_go_beside_the_data(run: Run, indexed: Path) -> None:
    plain = run("query", "red - blue", "--where", "width > 1")
    told = run("query", "red - blue", "--where", "width > 1", "--explain")
    assert told.out == plain.out
    for fact in ("query", "mode", "fusion", "filter      width > 1", "plan", "time", "- blue", "ranks"):
        assert fact in told.err
    (hit, *_) = run("query", "red - blue", "--explain", "--json").json
    assert [clause["clause"] for clause in hit["explanation"]["clauses"]] == ["red", "- blue"]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_an_answer_without_hits_is_explained_too(mode: str, run: Run, indexed: Path) -> None:
    """A line of JSON is a hit, so that what there is to say goes to stderr."""
    result = run("query", "red", "--mode", mode, "--where", "width > 5000", "--explain", "--json")
    assert (result.code, result.out) == (0, "")
    said = result.err.splitlines()
    assert said[:2] == ["no item passes the filter", "nothing found"]
    facts = dict(line.split(maxsplit=1) for line in said[2:] if line[:1].strip())
    assert (facts["query"], facts["mode"], facts["filter"]) == ("red", mode, "width > 5000")
    assert run("query", "red", "--mode", mode, "--where", "width > 5000", "--explain").err.count("query ") == 1


def test_a_page_and_copies_and_lines_at_once(run: Run, indexed: Path, tmp_path: Path) -> None:
    page, copies = tmp_path / "hits.html", tmp_path / "copies"
    first = run("query", "red", "--html", page, "--copy-to", copies)
    assert first.code == 0
    assert len(first.out.splitlines()) == 5
    assert "5 files copied" in first.err and f"wrote {page}" in first.err
    assert page.read_text("utf-8").count("<img") == 5
    assert {path.name for path in copies.iterdir()} == {path.name for path in indexed.rglob("*.png")}
    assert "0 files copied" in (again := run("query", "red", "--copy-to", copies)).err
    assert "5 were there already" in again.err
    assert "\x1b" not in first.err + first.out


def test_what_could_not_be_copied_is_said(run: Run, indexed: Path, tmp_path: Path) -> None:
    (indexed / "red.png").unlink()
    result = run("query", "red", "--copy-to", tmp_path / "copies", "--paths0")
    assert "1 file could not be copied" in result.err and "red.png: the file is gone" in result.err


def test_open_shows_the_page(run: Run, indexed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    monkeypatch.setenv("DISPLAY", ":0")
    page = tmp_path / "a #b.html"
    assert run("query", "red", "--open", "--html", page).code == 0
    assert run("query", "red", "--open").code == 0
    assert opened[0] == page.as_uri()
    made = Path(opened[1].removeprefix("file://"))
    assert made.is_file()
    assert made.parent.stat().st_mode & 0o077 == 0


def test_open_without_a_browser_says_where_the_page_is(
    run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    result = run("query", "red", "--open")
    assert result.code == 0
    (path,) = re.findall(r"no browser can be opened here; the page is (.*)", result.err)
    assert Path(path).is_file()


# What makes no sense


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to look for"),
        (("red", "--json", "--paths0"), "take one"),
        (("red", "--explain", "--paths0"), "leave out --explain"),
        (("red", "--thumbnails", "--json"), "leave out --json"),
        (("red", "--thumbnails"), "this terminal does not show pictures"),
        (("red", "--mode", "lexical", "--fusion", "late"), "take one"),
        (("--image", "{pictures}/red.png", "--mode", "lexical"), "lexical search looks for words"),
        (("red", "--html", "{pictures}"), "name a file for the page"),
        (("red", "--html", "{pictures}/red.png"), "end the name with .html"),
        (("red", "--copy-to", "{pictures}/red.png"), "a file is in the way"),
        (("red", "--where", "wdth > 1"), "did you mean `width`"),
        (("red", "--where", ""), "the filter is empty"),
        (("red", "--min-relevance", "1.5"), "between 0 and 1"),
        (("red", "--diverse", "nan"), "between 0 and 1"),
        (("red", "-k", "0"), "1 or more"),
        (("red", "--offset", "-1"), "0 or more"),
        (("red", "--group", "album"), "album"),
        (("red", "--plus", ""), "the clause is empty"),
        (("red +",), "a clause is missing"),
        (("id:999999",), "999999"),
    ],
)
def test_what_makes_no_sense_is_one_error(
    arguments: tuple[str, ...], said: str, run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    before = {path: path.read_bytes() for path in indexed.rglob("*") if path.is_file()}
    result = run("query", *(one.replace("{pictures}", str(indexed)) for one in arguments))
    assert result.code in (1, 2)
    assert result.out == ""
    assert said in result.err
    assert result.err.count("mmsearch: ") + result.err.count("Error: ") == 1
    assert {path: path.read_bytes() for path in indexed.rglob("*") if path.is_file()} == before


WAYS = [
    *(("--mode", mode, "--fusion", fusion) for mode in ("dense", "hybrid") for fusion in ("early", "late", "both")),
    ("--mode", "lexical"),
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize(
    ("query", "said", "code"),
    [
        ("red + + blue", "a clause is missing here\n  red + + blue\n        ^\nfor example: ", 2),
        ('red "blue', 'not closed; write \\" for a quote itself\n  red "blue\n      ^\nfor example: ', 2),
        ("red - 0:blue", "other than 0\n  red - 0:blue\n        ^\nfor example: ", 2),
        ("1e999:red", "a finite number other than 0\n  1e999:red\n  ^\nfor example: ", 2),
        ("red - -1e999:blue", "a finite number other than 0\n  red - -1e999:blue\n        ^\nfor example: ", 2),
        (" + ".join(["red"] * 200), "more than 100 clauses\n", 2),
        ("id:", "an item is named by its number, as hits show it\n  id:\n  ^\nfor example: ", 2),
        ("  ", "the query is empty; type what you look for, for example: ", 2),
    ],
)
def test_a_query_that_cannot_be_read_shows_the_place(
    query: str, said: str, code: int, way: tuple[str, ...], run: Run, indexed: Path
) -> None:
    result = run("query", query, *way)
    assert (result.code, result.out) == (code, "")
    assert said in result.err and result.err.startswith("mmsearch: ")


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_clauses_that_are_nothing(way: tuple[str, ...], run: Run, indexed: Path, tmp_path: Path) -> None:
    """Lexical search passes over pictures and items, whatever they are."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "folder").mkdir()
    clauses = {
        "id:999999": (2, "there is no item 999999 in the index"),
        f"{tmp_path}/none.jpg": (2, "none.jpg does not exist"),
        f"{broken}": (1, "broken.jpg"),
        f"{tmp_path}/folder": (1, "folder cannot be read"),
        f"{indexed}/notes.md": (1, "notes.md"),
    }
    for clause, (code, said) in clauses.items():
        for query in (f"red + {clause}", f"red - {clause}"):
            result = run("query", query, *way)
            if way == ("--mode", "lexical"):
                assert result.code == 0
                assert "the rest of the query was passed over" in result.err
            else:
                assert (result.code, result.out) == (code, ""), query
                assert said in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_queries_with_nothing_to_rank_by(way: tuple[str, ...], run: Run, indexed: Path) -> None:
    is_lexical = way == ("--mode", "lexical")
    negative = run("query", "- red", *way)
    cancelled = run("query", "red + blue - 2:red - 2:blue", *way)
    weightless = run("query", "nan:red - inf:blue", *way)
    assert weightless.code == 0, "words like others"
    if is_lexical:
        assert (negative.code, negative.out) == (2, "")
        assert "lexical search looks for words: give it a text" in negative.err
        assert cancelled.err.splitlines()[-1] == "nothing found"
    else:
        assert negative.err.splitlines()[0] == "only negative clauses: what is least like them comes first"
        assert len(negative.out.splitlines()) == 5
        assert "the clauses cancel each other out: there is nothing left to rank by" in cancelled.err
        assert (cancelled.code, cancelled.out) == (0, "")


def test_ctrl_c_is_130(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmsearch.retrieval.searcher.Searcher.search", interrupted)
    result = run("query", "red", "--json")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")


def test_no_index_is_3(run: Run, tmp_path: Path) -> None:
    result = run("query", "red", "--index", tmp_path / "none")
    assert (result.code, result.out) == (3, "")
    assert "mmsearch index FOLDER --index " in result.err


def test_an_english_model_says_that_chinese_means_little(
    run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.encoders.fake import FakeEncoder

    encoder = FakeEncoder()
    encoder.languages = ("en",)
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: encoder)
    said = f"mmsearch: the model {encoder.name} understands English only: answers to this query mean little\n"
    assert run("query", "红色").err.count(said) == 1
    assert run("query", "red", "--minus", "红色").err.count(said) == 1
    assert said not in run("query", "red").err
    assert said not in run("query", "红色", "--mode", "lexical").err, "words are found in any language"


def test_lexical_search_says_what_it_left_out(run: Run, indexed: Path) -> None:
    said = "looks for words only: the rest of the query was passed over"
    assert said not in run("query", "harbour - red", "--mode", "lexical").err
    assert said in run("query", "harbour", "--image", indexed / "red.png", "--mode", "lexical").err
    assert said not in run("query", "harbour + night", "--mode", "lexical").err


def test_the_reader_may_leave_early(indexed: Path, tmp_path: Path) -> None:
    line = " ".join([*map(shlex.quote, MAIN), "query", "red", "--json", "|", "head", "-1"])
    environment = {**os.environ, "MMSEARCH_INDEX": str(tmp_path / "index")}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, env=environment, check=True)
    assert json.loads(done.stdout)["rank"] == 1
    assert done.stderr == b""


def test_files_are_copied_although_nobody_reads_the_lines(indexed: Path, tmp_path: Path) -> None:
    words = [*MAIN, "query", "red", "--copy-to", str(tmp_path / "copies"), "--html", str(tmp_path / "hits.html")]
    environment = {**os.environ, "MMSEARCH_INDEX": str(tmp_path / "index")}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=environment)
    os.close(write)
    assert len(list((tmp_path / "copies").iterdir())) == len(list(indexed.rglob("*.png")))
    assert (tmp_path / "hits.html").stat().st_size > 1000
    assert (done.returncode, done.stderr) == (0, b"")


# Help


def test_every_option_has_a_heading_and_main_features_an_example(run: Run) -> None:
    shown = run("query", "--help").out
    sections = dict(re.findall(r"^(\w[^\n]*):\n((?:  .*\n|\n)+)", shown, re.MULTILINE))
    headings = ["What to look for", "Which hits", "How to rank", "How to show them", "Other options", "Examples"]
    assert list(sections) == headings
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", "".join(sections[one] for one in headings[:-1]), re.MULTILINE))
    main = {"--image", "--where", "--mode", "--fusion", "--group", "--dedup", "--diverse", "--offset", "--sort"}
    main |= {
        "--min-relevance",
        "--explain",
        "--paths0",
        "--html",
        "--open",
        "--copy-to",
        "--modality",
        "--rerank",
        "--budget-ms",
    }
    assert main | {"--plus", "--minus", "--json", "--thumbnails", "--include-self", "--index"} <= options
    examples = sections["Examples"].strip().splitlines()
    assert main <= {word for line in examples for word in line.split()}
    assert all(len(line) <= 80 for line in sections["Examples"].splitlines())


def test_the_examples_run(run: Run, indexed: Path, tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    monkeypatch.setattr("mmsearch.retrieval.rerank.models.load_reranker", lambda name, **options: FakeReranker())
    for name in ("pool.jpg", "cat.jpg", "scan.png"):
        draw(tmp_path / name, "blue")
    number = _ids(run)["green.png"]
    shown = run("query", "--help").out.partition("Examples:\n")[2]
    lines = [shlex.split(line.partition("|")[0], comments=True) for line in shown.splitlines()]
    assert len(lines) >= 10
    for program, *arguments in lines:
        assert program == "mmsearch"
        result = run(*(word.replace("id:17", f"id:{number}") for word in arguments))
        assert result.code == 0, (arguments, result.err)
    assert (tmp_path / "hits.html").is_file() and (tmp_path / "best").is_dir()
