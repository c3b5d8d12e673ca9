"""The command line: what goes where, exit codes, golden output, and no traceback ever."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_kit import MAIN, Result
from numpy.typing import NDArray

import mmsearch
from mmsearch.output import safe
from mmsearch.retrieval.encoders.fake import FakeEncoder

Draw = Callable[..., Path]


@pytest.fixture
def indexed(run: Callable[..., Result], pictures: Path) -> Path:
    assert run("index", pictures, "--model", "fake").code == 0
    return pictures


@pytest.fixture
def plain_pictures(tmp_path: Path, draw: Draw) -> Path:
    """PNGs only, whose scores do not depend on a decoder's version."""
    folder = tmp_path / "plain"
    for colour in ("red", "green", "blue"):
        draw(folder / f"{colour}.png", colour)
    (folder / "rose.md").write_text("# Roses\n\nA red rose is a rose.\n", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"")
    (folder / "film.mkv").write_bytes(b"")
    return folder


# What people see


def test_golden_run(run: Callable[..., Result], golden: Callable[[str, str], None], plain_pictures: Path) -> None:
    indexed = run("index", plain_pictures, "--model", "fake")
    assert (indexed.code, indexed.out) == (0, "")
    golden("index.txt", indexed.err)
    golden("query-plain.txt", run("query", "red").out + run("query", "red", "--modality", "text").out)
    golden("info.txt", run("info").out)
    golden("dry-run.txt", re.sub(r"about .*", "about 0.0 s", run("index", "--dry-run").out))


def test_golden_query_on_a_terminal(
    run: Callable[..., Result],
    golden: Callable[[str, str], None],
    plain_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("index", plain_pictures, "--model", "fake")
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdout)
    golden("query-terminal.txt", run("query", "red", "--modality", "all").out)


def test_query_prints_data_only(run: Callable[..., Result], indexed: Path) -> None:
    result = run("query", "red", "-k", "2", "--mode", "dense")
    assert result.code == 0
    assert result.err == ""
    rank, score, path = result.out.splitlines()[0].split("\t")
    assert (rank, path) == ("1", str(indexed / "red-square.png"))
    assert 0.9 < float(score) <= 1.0


def test_query_json_has_the_fields_of_a_hit_in_order(run: Callable[..., Result], indexed: Path) -> None:
    hits = run("query", "red", "--json", "--top-k", "3").json
    fields = ["rank", "score", "relevance", "path", "uri", "fragment", "modality", "text", "item_id", "width", "height"]
    fields += ["taken", "id", "tags", "others", "duplicates", "rank_before"]
    assert [list(hit) for hit in hits] == [fields] * 3
    assert hits[0]["path"] == str(indexed / "red-square.png")
    assert hits[0]["text"] is None
    text = run("query", "蓝", "--json", "--modality", "text").json[0]
    assert (text["text"], text["fragment"], text["uri"]) == (
        "天空是蓝色的。",
        "char=0-7",
        "more/%E5%A4%A9%E7%A9%BA.txt",
    )


def test_query_by_image(run: Callable[..., Result], indexed: Path) -> None:
    hits = run("query", "--image", indexed / "red-square.png", "--json").json
    assert "red-square.png" not in {hit["uri"] for hit in hits}
    hits = run("query", "--image", indexed / "red-square.png", "--json", "--include-self").json
    assert hits[0]["uri"] == "red-square.png"


def test_zero_hits_are_no_error(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("words", encoding="utf-8")
    run("index", tmp_path / "in", "--model", "fake")
    result = run("query", "red", "--modality", "image", "--json")
    assert (result.code, result.out) == (0, "")


def test_index_json_ends_with_one_report(run: Callable[..., Result], indexed: Path) -> None:
    (indexed / "bad.jpg").write_bytes(b"no")
    (indexed / "film.mkv").write_bytes(b"no")
    result = run("index", "--json")
    report = result.json[-1]
    assert result.code == 0
    assert len(result.json) == 1
    expected = {"added": 0, "updated": 0, "moved": 0, "copied": 0, "removed": 0, "unchanged": 8, "items": 8}
    assert {name: report[name] for name in expected} == expected
    assert report["skipped"] == {".mkv": 1}
    assert report["failed"][0]["path"] == str(indexed / "bad.jpg")
    assert report["failed"][0]["error"]
    assert (report["model"], report["interrupted"]) == ("fake", False)
    assert report["seconds"] >= 0


def test_what_to_type_next_can_be_pasted(run: Callable[..., Result], plain_pictures: Path, tmp_path: Path) -> None:
    place = tmp_path / "an index"
    assert f"--index '{place}'\n" in run("index", plain_pictures, "--model", "fake", "--index", place).err


def test_info_json(run: Callable[..., Result], indexed: Path) -> None:
    (found,) = run("info", "--json").json
    assert {"items", "images", "texts", "model", "generation", "bytes", "roots", "failed"} <= set(found)
    assert (found["items"], found["images"], found["texts"]) == (8, 6, 2)
    assert found["roots"][0]["path"] == str(indexed)


def test_dry_run_creates_nothing(run: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    result = run("index", pictures, "--dry-run", "--model", "fake")
    assert result.code == 0
    assert "8 new" in result.out
    assert not (tmp_path / "index").exists()
    assert run("index", pictures, "--dry-run", "--json", "--model", "fake").json[0]["new"] == 8


def test_models(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("models", "--offline")
    assert result.code == 0
    names = [line.split("\t")[0] for line in result.out.splitlines()]
    assert names[:5] == ["name", "starter", "fast", "balanced", "best"]
    assert "fake" not in names
    assert {"name", "state", "default", "download_bytes"} <= set(run("models", "--offline", "--json").json[0])
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: True)
    assert "balanced" in run("models", "--offline").out


def test_version(run: Callable[..., Result]) -> None:
    assert run("--version").out == f"mmsearch {mmsearch.__version__}\n"


@pytest.mark.parametrize("command", ["index", "query", "info", "models", "demo"])
def test_help(run: Callable[..., Result], command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert "--verbose" in result.out
    assert command in run("--help").out


@pytest.mark.parametrize("arguments", [["--help"], ["query", "--help"], ["index", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("torch", "onnxruntime", "faiss", "sqlalchemy", "numpy", "PIL", "sqlite3", "rich")
    code = (
        f"import sys; from mmsearch.cli import run; run({arguments}); print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []


def test_a_text_query_imports_no_writer(run: Callable[..., Result], indexed: Path) -> None:
    heavy = ("torch", "onnxruntime", "faiss", "sqlalchemy", "PIL", "rich")
    code = (
        "import sys; from mmsearch.cli import run; run(['query', 'red']); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "red-square.png" in done.stdout
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []


def test_shell_completion_can_be_shown() -> None:
    environment = {**os.environ, "_MMSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "mmsearch qu", "COMP_CWORD": "1"}
    done = subprocess.run(MAIN, capture_output=True, text=True, env=environment, check=False)
    assert "query" in done.stdout


# Errors


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["query", ""], 2, "the query is empty"),
        (["query", "   "], 2, "the query is empty"),
        (["query", "red", "-k", "0"], 2, "k must be 1 or more"),
        (["query", "red", "-k", "-3"], 2, "k must be 1 or more"),
        (["query", "red", "-k", "many"], 2, "--top-k"),
        (["query", "red", "--modality", "video"], 2, "--modality"),
        (["query"], 2, "say what to look for"),
        (["query", "red", "--image", "x.png"], 2, "x.png does not exist"),
        (["query", "--image", "no-such.png"], 2, "no-such.png does not exist"),
        (["query", "--image", ""], 2, "path of the query image is empty"),
        (["query", "\udcff\udcfe"], 2, "not valid UTF-8"),
        (["query", "red", "--index", "no-such-index"], 3, "there is no index at"),
        (["info", "--index", "no-such-index"], 3, "there is no index at"),
        (["index", "--index", "no-such-index"], 3, "there is no index at"),
        (["index", "no-such-folder"], 2, "no such"),
        (["index", ""], 2, "a PATH is empty"),
        (["index", "/dev/null"], 2, "neither a file nor a folder"),
        (["index", "--batch-size", "0"], 2, "batch_size must be 1"),
        (["index", "--model", "starter"], 1, "made by the model fake, not starter; `mmsearch reindex --model starter`"),
        (["index", "--model", "no-such-model"], 2, "no model is called"),
        (["index", "--no-such-option"], 2, "--no-such-option"),
        (["no-such-command"], 2, "no-such-command"),
    ],
)
def test_errors_are_one_line_and_a_code(
    run: Callable[..., Result], indexed: Path, arguments: list[str], code: int, said: str
) -> None:
    result = run(*arguments)
    assert result.code == code
    assert said in result.err
    assert result.out == ""
    if result.err.startswith("mmsearch:"):
        assert result.err.count("\n") == 1


def test_a_newer_format_is_refused(run: Callable[..., Result], indexed: Path, tmp_path: Path) -> None:
    import sqlite3

    catalog = sqlite3.connect(tmp_path / "index" / "catalog.sqlite")
    catalog.execute("PRAGMA user_version = 99")
    catalog.close()
    for command in (["query", "red"], ["info"], ["index"]):
        result = run(*command)
        assert result.code == 1
        assert "newer" in result.err


def test_a_second_writer_is_refused(run: Callable[..., Result], indexed: Path, tmp_path: Path) -> None:
    from mmsearch.retrieval.store import LocalStore

    with LocalStore.open(tmp_path / "index").writer():
        result = run("index")
    assert result.code == 1
    assert f"pid {os.getpid()}" in result.err


def test_an_empty_folder(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("index", tmp_path / "empty", "--model", "fake", "--json")
    assert result.code == 0
    assert "no pictures or texts" in result.err
    assert result.json[0]["items"] == 0
    assert not (tmp_path / "index").exists()
    assert run("query", "red").code == 3


def test_a_very_long_query_is_cut_with_a_notice(run: Callable[..., Result], indexed: Path) -> None:
    result = run("query", "red " * 10_000, "-k", "1")
    assert result.code == 0
    assert "red-square" in result.out
    assert result.err.count("\n") == 1
    assert "the rest was cut off" in result.err


def test_unexpected_errors_are_one_line(
    run: Callable[..., Result], indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr("mmsearch.index.Index.search", fail)
    result = run("query", "red")
    assert (result.code, result.out) == (1, "")
    assert result.err == "mmsearch: unexpected error: RuntimeError: boom\\nand more (-v shows more)\n"
    assert "Traceback" in run("query", "red", "-v").err
    assert "Traceback" in run("-v", "query", "red").err
    assert logging.getLogger("mmsearch").handlers == []


def test_ctrl_c_is_130_and_keeps_the_work(
    run: Callable[..., Result], tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(FakeEncoder):
        batches = 0

        def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            self.batches += 1
            if self.batches == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().encode_images(arrays)

    for number in range(20):
        draw(tmp_path / "in" / f"{number}.png", "red", size=(30 + number, 30))
    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda *args, **options: Pressed(batch_size=4))
        result = run("index", tmp_path / "in", "--model", "fake", "--json")
    assert result.code == 130
    assert "interrupted" in result.err
    report = result.json[-1]
    assert report["interrupted"] is True
    assert report["added"] == report["items"] == 8
    assert run("index", "--json").json[0]["added"] == 12


def test_a_keyboard_interrupt_elsewhere_is_130(
    run: Callable[..., Result], indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmsearch.index.Index.search", press)
    assert run("query", "red").code == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "red", "--json"],
        ["query", "red", "--modality", "text", "-k", "500"],
        ["info", "--json"],
        ["models", "--offline"],
        ["--help"],
        ["query", "--help"],
    ],
)
def test_a_broken_pipe_is_silent(run: Callable[..., Result], indexed: Path, arguments: list[str]) -> None:
    words = "".join(f"Sentence number {number} is about a red bird. " for number in range(1000))
    (indexed / "long.txt").write_text(words, encoding="utf-8")  # more than is buffered
    run("index")
    process = subprocess.Popen([*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (0, "")


def test_ctrl_c_at_the_download_question_is_130(
    run: Callable[..., Result], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(name: str, *, confirm: Callable[[str, int], bool], **options: object) -> None:
        confirm("balanced", 1_500_000_000)

    class Pressed(io.StringIO):
        def readline(self, size: int | None = -1) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", ask)
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: True)
    monkeypatch.setattr("sys.stdin", Pressed())
    monkeypatch.setenv("TERM", "dumb")
    result = run("index", pictures)
    assert (result.code, result.out.strip()) == (130, "")
    assert "Download balanced (1,500 MB)?" in result.err
    assert "Aborted" not in result.err
    assert not (tmp_path / "index").exists()


def test_the_demo_never_fills_the_users_own_index(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr("mmsearch.demo.run", lambda folder, *, index_path, echo: given.append(index_path))
    assert run("demo", tmp_path / "demo").code == 0
    assert run("demo", tmp_path / "demo", "--index", tmp_path / "there").code == 0
    assert given == [None, tmp_path / "there"]


# Names that harm terminals


def test_safe() -> None:
    assert safe("plain name.jpg") == "plain name.jpg"
    assert safe("猫 😀 é") == "猫 😀 é"
    assert safe("a\nb\tc\x1b[31m\r") == "a\\nb\\tc\\x1b[31m\\r"
    assert safe("\udcff\udc80") == "\\xff\\x80"
    assert safe("\u202egpj.exe") == "\\u202egpj.exe"
    assert safe("a\u2028b") == "a\\u2028b"


@pytest.mark.parametrize("name", [b"a\nb\x1b[31m.png", b"caf\xe9.png", "猫😀.png".encode()])
def test_odd_names_print_safely_and_stay_valid_json(
    run: Callable[..., Result], tmp_path: Path, draw: Draw, name: bytes
) -> None:
    plain = draw(tmp_path / "in" / "x.png", "red")
    path = os.path.join(os.fsencode(plain.parent), name)
    try:
        os.rename(plain, path)
    except OSError:
        pytest.skip("this file system refuses such names")
    run("index", tmp_path / "in", "--model", "fake")
    result = run("query", "red")
    assert result.code == 0
    assert result.out.count("\n") == 1
    assert "\x1b" not in result.out
    (hit,) = run("query", "red", "--json").json
    assert os.fsencode(hit["path"]) == path
    Path(os.fsdecode(path)).write_bytes(b"broken now")
    result = run("index")
    assert result.code == 0
    assert "\x1b" not in result.err
    assert run("info").code == 0


# On a terminal


def test_progress_is_drawn_on_a_terminal_only(run: Callable[..., Result], pictures: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MAIN, "index", str(pictures), "--model", "fake", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    drawn = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 1.0)[0]:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not block:
                break
            drawn += block
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"looking for files" in drawn
    assert b"8 added" in drawn
    assert json.loads(out)["added"] == 8
    assert "looking for files" not in run("index").err
