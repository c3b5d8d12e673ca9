"""The documentation cannot drift: its commands exist, its snippets run, its reference is generated."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("name", [*_DOCUMENTS, "docs/query.md", "docs/filters.md", "docs/tags.md"])
def test_documented_commands_exist(repository: Path, name: str) -> None:
    lines = [line for block in _blocks(repository / name, "sh") for line in block.splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("mmsearch ")]
    assert len(calls) >= 5
    for _, *words in calls:
        command = [words[0]] if words[0] in _commands() else []
        assert command or words[0].startswith("-"), f"no such command: mmsearch {words[0]}"
        words = list(itertools.takewhile(lambda word: word != "|", words))
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
