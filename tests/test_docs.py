"""The documentation cannot drift: its commands exist, its snippets run, its reference is generated."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsearch.retrieval.encoders.fake import FakeEncoder

_DOCUMENTS = ("README.md",)
_HEADING = """# Commands

Written by `sh scripts/update-docs` from the program's own `--help`; do not edit.
"""


@functools.cache
def _help(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    code = "import sys; sys.argv[0] = 'mmsearch'; from mmsearch.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def _commands() -> list[str]:
    _, _, listed = _help().partition("Commands:\n")
    found = re.findall(r"^  (\w[\w-]*)", listed, re.MULTILINE)
    assert {"index", "query", "info", "models", "demo"} <= set(found)
    return found


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", text))


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_command_reference_is_the_live_help(repository: Path, request: pytest.FixtureRequest) -> None:
    sections = [("mmsearch", _help()), *((f"mmsearch {name}", _help(name)) for name in _commands())]
    expected = _HEADING + "".join(f"\n## {title}\n\n```text\n{text}\n```\n" for title, text in sections)
    path = repository / "docs" / "cli.md"
    if request.config.getoption("--update-goldens"):
        path.write_text(expected, "utf-8")
    assert path.read_text("utf-8") == expected, "run: sh scripts/update-docs"


_PAGES = [
    f"docs/{page}.md"
    for page in (
        *("query", "filters", "fusion", "tags", "relevance", "explain", "duplicates"),
        *("evaluation", "rerank", "train"),
    )
]


@pytest.mark.parametrize("name", [*_DOCUMENTS, *_PAGES])
def test_documented_commands_exist(repository: Path, name: str) -> None:
    lines = [line for block in _blocks(repository / name, "sh") for line in block.splitlines()]
    calls = [shlex.split(line.partition(" | ")[0], comments=True) for line in lines if line.startswith("mmsearch ")]
    assert calls
    for _, *words in calls:
        command = [words[0]] if words[0] in _commands() else []
        assert command or words[0].startswith("-"), f"no such command: mmsearch {words[0]}"
        given = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
        assert given <= _options(_help(*command)), f"mmsearch {' '.join(words)}"


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_documented_scripts_and_files_exist(repository: Path, name: str) -> None:
    document = repository / name
    for block in _blocks(document, "sh"):
        for script in re.findall(r"\bsh (scripts/\S+)", block):
            assert (repository / script).is_file()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
        assert (repository / target).exists(), target


def test_the_two_commands_come_first(repository: Path) -> None:
    first = _blocks(repository / "README.md", "sh")[0]
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    assert commands == ["sh scripts/demo", "sh scripts/test"]


@pytest.mark.parametrize("name", _DOCUMENTS)
def test_documented_python_runs(
    repository: Path, name: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pictures.parent)
    pictures.rename("photos")
    monkeypatch.setattr(
        "mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: FakeEncoder(name="starter")
    )
    blocks = _blocks(repository / name, "python")
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {"__name__": "__main__"})
    assert "red-square.png" in capsys.readouterr().out


# Figures


def _numbers(value: object) -> Iterator[float]:
    """Every number in what a JSON file holds."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, float):
        yield abs(value)


@pytest.mark.parametrize(
    ("page", "benchmark"),
    [
        ("relevance", "relevance"),
        ("tags", "tags"),
        ("explain", "pointing"),
        ("duplicates", "search"),
        ("train", "train"),
    ],
)
def test_figures_in_tables_are_those_of_the_benchmark(repository: Path, page: str, benchmark: str) -> None:
    result = json.loads((repository / "benchmarks" / "results" / f"{benchmark}.json").read_text("utf-8"))
    known = {f"{number:.{digits}f}"[1:] for number in _numbers(result) for digits in (2, 3, 4) if number < 1}
    lines = (repository / "docs" / f"{page}.md").read_text("utf-8").splitlines()
    shown = [
        figure for line in lines if line.startswith("|") for figure in re.findall(r"(?<![\d.])\.\d{2,4}(?!\d)", line)
    ]
    assert len(shown) >= 5
    assert [figure for figure in shown if figure not in known] == []
    assert f"benchmarks/{benchmark}.py" in "\n".join(lines)


_FIGURES = re.compile(r"<!-- figures: (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def _measured(repository: Path) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = json.loads((repository / "benchmarks" / "results" / "queries.json").read_text())[
        "figures"
    ]
    return figures


def _number(value: float, *, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.3f}".replace("0.", ".", 1)


def _against(ways: dict[str, Any], way: str, measure: str) -> str:
    """How a way differs from the first one, with the interval."""
    value, low, high = (_number(part, signed=True) for part in ways[way]["difference"][measure])
    return f"{value} ({low} - {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figure_tables(repository: Path) -> dict[str, str]:
    """The tables of docs/fusion.md, made of the result of the benchmark."""
    rows: dict[str, list[list[str]]] = {"composed": [], "negative": [], "hybrid": [], "templates": []}
    for figure in _measured(repository):
        if "ways" not in figure:
            continue
        ways, test = figure["ways"], figure["test"]
        measure = {"negative": "as asked", "templates": "average precision"}.get(test, "mrr@10")
        names = list(ways)
        if test == "composed":
            alone = max(names[4:], key=lambda name: ways[name][measure])
            about, others = figure["clauses"], [*names[1:4], alone]
        elif test == "negative":
            about, others = f"{figure['pairs']} pairs", names[1:]
        elif test == "hybrid":
            languages = {"en": "English", "zh": "Chinese"}
            about = f"{languages[figure['language']]}, {figure['captions']}"
            about += f", {figure['targets']}" if "targets" in figure else ""
            others = names[1:]
        else:
            about, others = f"{figure['queries']} {figure['queries are']}", names[1:]
        rows[test].append(
            [
                figure["set"],
                about,
                _number(ways[names[0]][measure]),
                *(_against(ways, way, measure) for way in others),
            ]
        )
    heads = {
        "composed": ["photos", "clauses", "early", "late", "both", "plain sum", "one clause"],
        "negative": ["photos", "queries", "half", "without", "a quarter", "in full", "late", "both"],
        "hybrid": ["photos", "captions", "dense", "lexical", "plain RRF", "hybrid"],
        "templates": ["photos", "queries", "without templates", "with templates"],
    }
    return {name: _table(heads[name], rows[name]) for name in heads}


def test_the_figures_of_fusion_are_those_of_the_benchmark(repository: Path, request: pytest.FixtureRequest) -> None:
    path = repository / "docs" / "fusion.md"
    tables = _figure_tables(repository)
    page = path.read_text("utf-8")
    expected = _FIGURES.sub(lambda at: f"<!-- figures: {at[1]} -->\n{tables[at[1]]}<!-- end -->\n", page)
    if request.config.getoption("--update-goldens"):
        path.write_text(expected, "utf-8")
    assert {at[1] for at in _FIGURES.finditer(page)} == set(tables)
    assert path.read_text("utf-8") == expected, "run: sh scripts/update-docs"


_JOINT = re.compile(r"<!-- joint: (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def _joint_tables(repository: Path) -> dict[str, str]:
    """What the documents show of `starter-joint`, made of the benchmark's result."""
    result = json.loads((repository / "benchmarks" / "results" / "joint.json").read_text("utf-8"))
    gain, changed = [], []
    for name, figures in result["text to image"].items():
        for measure, each in figures.items():
            fitted = result["cross-fitted"].get(name, {}).get(measure)
            of = fitted or each
            interval = f"{_number(of['low'], signed=True)} to {_number(of['high'], signed=True)}"
            after = _number(fitted["after"]) if fitted else "-"
            differs = f"{_number(of['delta'], signed=True)} ({interval})"
            gain.append([name, measure, _number(each["before"]), _number(each["after"]), after, differs])
    for name, kinds in result["changed captions"].items():
        for kind, each in kinds.items():
            changed.append([name, kind, str(each["captions"]), _number(each["before"]), _number(each["after"])])
    time = result["time"]
    spent = (
        f"A query takes {time['ms per query']:.0f} ms to rerank on two cores, its own reading included: "
        f"{time['ms per candidate']:.1f} ms\nfor a candidate, {time['points of success@1 per 100 ms']:.1f} points of "
        f"success@1 for 100 ms (English). A picture takes {time['bytes per picture']:,} bytes.\n"
    )
    return {
        "gain": _table(["captions", "measure", "before", "after", "cross-fitted", "difference"], gain),
        "changed": _table(["captions", "what was changed", "pairs", "embeddings", "starter-joint"], changed),
        "time": spent,
    }


@pytest.mark.parametrize(
    "page", ["docs/rerank.md", "docs/quality.md", "retrieval/encoders/starter/joint/MODEL_CARD.md"]
)
def test_the_figures_of_the_bundled_reranker_are_those_of_the_benchmark(
    repository: Path, request: pytest.FixtureRequest, page: str
) -> None:
    path = repository / page
    tables = _joint_tables(repository)
    text = path.read_text("utf-8")
    expected = _JOINT.sub(lambda at: f"<!-- joint: {at[1]} -->\n{tables[at[1]]}<!-- end -->\n", text)
    if request.config.getoption("--update-goldens"):
        path.write_text(expected, "utf-8")
    assert _JOINT.search(text)
    assert path.read_text("utf-8") == expected, "run: sh scripts/update-docs"


def _filter_table(repository: Path) -> str:
    result = json.loads((repository / "benchmarks" / "results" / "filtered.json").read_text("utf-8"))
    rows = []
    for figure in result["figures"]:
        one, ten = figure["success@1"], figure["success@10"]
        gain = f"{_number(one['delta'], signed=True)} ({_number(one['low'], signed=True)} to "
        gain += f"{_number(one['high'], signed=True)})"
        cells = [_number(each[which]) for each in (one, ten) for which in ("without", "with")]
        rows.append([f"`{figure['filter']}`", str(figure["pass"]), *cells[:2], gain, *cells[2:]])
    head = ["filter", "photos that pass", "success@1 without", "with", "difference", "success@10 without", "with"]
    return _table(head, rows)


def test_the_page_of_quality_shows_what_was_measured(repository: Path, request: pytest.FixtureRequest) -> None:
    path = repository / "docs" / "quality.md"
    page = path.read_text("utf-8")
    table = f"<!-- filters -->\n{_filter_table(repository)}<!-- end -->\n"
    expected = re.sub(r"<!-- filters -->\n.*?<!-- end -->\n", lambda _: table, page, flags=re.DOTALL)
    if request.config.getoption("--update-goldens"):
        path.write_text(expected, "utf-8")
    assert path.read_text("utf-8") == expected, "run: sh scripts/update-docs"
    known: set[str] = set()
    for benchmark in ("quality", "queries", "filtered", "joint"):
        result = json.loads((repository / "benchmarks" / "results" / f"{benchmark}.json").read_text("utf-8"))
        known |= {_number(number) for number in _numbers(result)}
    golden = (repository / "benchmarks" / "golden.toml").read_text("utf-8")
    known |= {_number(number) for number in _numbers(tomllib.loads(golden))}
    lines = [line for line in expected.splitlines() if line.startswith("|")]
    shown = {figure for line in lines for figure in re.findall(r"(?<![\d.])\.\d{3}(?!\d)", line)}
    assert len(shown) > 40
    assert shown - known == set()
