"""What `mmsearch index` can be given: paths on stdin, manifests and their columns."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_kit import MAIN, Result, run_alone
from numpy.typing import NDArray

from mmsearch.retrieval.encoders.fake import FakeEncoder

Draw = Callable[..., Path]
Run = Callable[..., Result]
Listed = Callable[..., Result]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> Listed:
    """Runs `mmsearch index -` with a list on stdin."""

    def call(content: bytes, *arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return run("index", *arguments, "-", "--model", "fake")

    return call


def report(result: Result) -> dict[str, Any]:
    assert result.code == 0
    return result.json[-1]


def shown(run: Run) -> list[str]:
    return run("list").out.splitlines()


# A list of paths


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_lines_are_paths(listed: Listed, run: Run, pictures: Path, ending: str) -> None:
    wanted = [pictures / "red-square.png", pictures / "more" / "天空.txt", pictures / "more" / "orange-triangle.jpg"]
    content = "".join(f"{path}{ending}" for path in wanted[:2]) + str(wanted[2])
    assert report(listed(content.encode(), "--json"))["added"] == 3
    assert sorted(shown(run)) == sorted(map(str, wanted))


def test_folders_globs_and_relative_paths_are_listed(
    listed: Listed, run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    assert report(listed(b"more\n", "--json"))["added"] == 2
    assert report(listed(b"*.png\nroses.txt\n", "--json"))["added"] == 3
    assert report(listed(b".\n", "--json"))["items"] == 8
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"roses.txt")))
    assert report(run("index", "--json", "--", "-"))["unchanged"] == 1


def test_an_empty_list_changes_nothing(listed: Listed, run: Run, pictures: Path, index: Path) -> None:
    for content in (b"", b"\n\r\n"):
        result = listed(content)
        assert (result.code, result.out) == (0, "")
        assert result.err.startswith("there are no paths on stdin\n")
        assert not index.exists()
    assert listed(b"", "--dry-run").out == "no files; nothing to index\n"
    run("index", pictures, "--model", "fake")
    (pictures / "red-square.png").unlink()
    assert report(listed(b"", "--json"))["items"] == 8
    assert report(listed(b"\0\0", "-0", "--json"))["items"] == 8
    assert report(listed(b"", "--json", "--dry-run"))["missing"] == 0
    assert report(run("index", "--json"))["items"] == 7


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (
            ["-", "more"],
            b"",
            "- stands for a list of paths on stdin and must be the only PATH; a file of that name is ./-",
        ),
        (["more", "-"], b"", "must be the only PATH"),
        (["-", "-"], b"", "must be the only PATH"),
        (["-0", "more"], b"", "add - as the PATH"),
        (["-0"], b"", "add - as the PATH"),
        (["-"], b"a.png\0b.png\0", "the list on stdin has NUL characters: add -0"),
    ],
)
def test_what_cannot_be_meant(
    run: Run, index: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], content: bytes, said: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    result = run("index", *arguments, "--model", "fake")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert said in result.err
    assert not index.exists()


def test_a_file_called_dash(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "-").mkdir()
    shutil.copy(pictures / "roses.txt", tmp_path / "-" / "a.txt")
    monkeypatch.chdir(tmp_path)
    assert report(run("index", "./-", "--model", "fake", "--json"))["added"] == 1
    assert shown(run) == [str(tmp_path / "-" / "a.txt")]


def test_any_bytes_are_names(run: Run, pictures: Path, index: Path) -> None:
    paths = [os.path.join(os.fsencode(pictures), name) for name in (b"line\nbreak.png", b"caf\xe9.png", b" two .png")]
    try:
        for path in paths:
            shutil.copy(pictures / "red-square.png", path)
    except OSError:
        pytest.skip("this file system refuses such names")
    arguments = ("index", "-0", "-", "--model", "fake", "--json")
    done = run_alone(*arguments, index=index, stdin=b"\0".join([*paths, b""]))
    assert done.returncode == 0
    assert done.stderr.startswith(b"1 added, 2 copied; 3 items in the index; ")
    assert sorted(run_alone("list", "--paths0", index=index).stdout[:-1].split(b"\0")) == sorted(paths)
    again = run_alone(*arguments, index=index, stdin=run_alone("list", "--paths0", index=index).stdout)
    assert json.loads(again.stdout)["unchanged"] == 3
    lines = run_alone("index", "-", "--json", index=index, stdin=b"\n".join(paths))
    found = json.loads(lines.stdout)
    assert (found["unchanged"], found["items"]) == (2, 3)
    assert [failure["path"] for failure in found["failed"]] == [os.fsdecode(part) for part in paths[0].split(b"\n")]


def test_what_cannot_be_used_of_a_list_is_a_failure(
    listed: Listed, run: Run, pictures: Path, tmp_path: Path, index: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("colour,size\nred,3\n", encoding="utf-8")
    wanted = [pictures / "gone.png", pictures / "red-square.png", table]
    reasons = ["does not exist", "no column that is known as text or image; its columns are colour, size"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        wanted.insert(1, tmp_path / "pipe")
        reasons.insert(1, "neither a file nor a folder")
    content = "\n".join(map(str, wanted)).encode()
    assert json.loads(listed(content, "--dry-run", "--json").out)["new"] == 1
    assert not index.exists()
    found = report(listed(content, "--json"))
    assert (found["added"], found["items"]) == (1, 1)
    wanted.remove(pictures / "red-square.png")
    assert [failure["path"] for failure in found["failed"]] == list(map(str, wanted))
    for failure, reason in zip(found["failed"], reasons, strict=True):
        assert reason in failure["error"]
    nothing = listed(os.fsencode(wanted[0]))
    assert (nothing.code, nothing.out) == (0, "")
    assert "; 1 item in the index; " in nothing.err
    assert f"1 could not be indexed:\n  {wanted[0]}: does not exist\n" in nothing.err
    assert run("index", wanted[0]).code == 2


def test_a_list_of_nothing_that_exists_makes_no_index(listed: Listed, index: Path) -> None:
    found = report(listed(b"no-such-file\nno-such-file-either\n", "--json"))
    assert (found["items"], len(found["failed"])) == (0, 2)
    assert not index.exists()


def test_a_list_takes_nothing_back(listed: Listed, run: Run, pictures: Path) -> None:
    red = pictures / "red-square.png"
    run("index", pictures, "--model", "fake")
    run("remove", red)
    assert report(listed(os.fsencode(red), "--json"))["items"] == 7
    assert report(run("index", red, "--json"))["items"] == 8


def test_a_person_is_told_that_a_list_is_read(listed: Listed, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdin)
    assert listed(os.fsencode(pictures)).err.startswith("reading paths from here; Ctrl-D ends the list\n8 added; ")


def test_ctrl_c_while_the_list_is_read(run: Run, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pressed(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pressed()))
    result = run("index", "-", "--model", "fake")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")
    assert not index.exists()


def test_ctrl_c_keeps_what_is_done_of_a_list(
    listed: Listed, run: Run, tmp_path: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(FakeEncoder):
        batches = 0

        def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
            self.batches += 1
            if self.batches == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().encode_images(arrays)

    paths = [draw(tmp_path / "in" / f"{number}.png", "red", size=(30 + number, 30)) for number in range(12)]
    content = b"\0".join(map(os.fsencode, paths))
    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda *args, **options: Pressed(batch_size=4))
        result = listed(content, "-0", "--json")
    assert result.code == 130
    assert "interrupted; everything above is saved, and the same command continues from here\n" in result.err
    assert (result.json[0]["interrupted"], result.json[0]["items"]) == (True, 8)
    assert run("doctor").code == 0
    assert len(run("query", "red", "--json").json) == 8
    assert report(listed(content, "-0", "--json"))["added"] == 4


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that can close a stream")
def test_a_closed_stdin_is_an_empty_list(index: Path, tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *MAIN, "index", "-", "--index", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("there are no paths on stdin\n")


# Manifests and their columns

TABLES = {
    "table.csv": "name,words,picture\na,a red thing,red-square.png\nb,only words,\n",
    "table.tsv": "name\twords\tpicture\na\ta red thing\tred-square.png\nb\tonly words\t\n",
    "table.jsonl": '{"name": "a", "words": "a red thing", "picture": "red-square.png"}\n'
    '{"name": "b", "words": "only words"}\n',
}
COLUMNS = ("--text-column", "words", "--image-column", "picture", "--id-column", "name")


@pytest.fixture(params=sorted(TABLES))
def table(request: pytest.FixtureRequest, pictures: Path) -> Path:
    path = pictures / request.param
    path.write_text(TABLES[request.param], encoding="utf-8")
    return path


def test_columns_are_named_once(run: Run, table: Path) -> None:
    assert report(run("index", table, *COLUMNS, "--model", "fake", "--json"))["items"] == 3
    items = {(item["modality"], item["id"]): item for item in run("list", "--json").json}
    assert set(items) == {("image", None), ("text", "a"), ("text", "b")}
    assert items["text", "a"]["path"] == items["image", None]["path"] == str(table.parent / "red-square.png")
    assert items["text", "b"]["text"] == "only words"
    again = report(run("index", "--json"))
    assert (again["unchanged"], again["items"], again["failed"]) == (2, 3, [])


def test_wrong_columns_name_those_that_are_there(run: Run, table: Path, index: Path) -> None:
    names = "name, words, picture"
    unknown = run("index", table, "--model", "fake")
    assert unknown.code == 2
    assert f"{table} has no column that is known as text or image; its columns are {names}. Say which" in unknown.err
    for option, role in (("--text-column", "text"), ("--image-column", "image"), ("--id-column", "id")):
        wrong = list(COLUMNS)
        wrong[wrong.index(option) + 1] = "colour"
        for more in ([], ["--dry-run"]):
            result = run("index", table, *wrong, *more, "--model", "fake")
            assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
            assert f"{table} has no column 'colour' that could be the {role}; its columns are {names}\n" in result.err
    assert not index.exists()


def test_columns_of_no_manifest_are_refused(run: Run, pictures: Path, index: Path) -> None:
    for paths in ([], [pictures], [pictures / "roses.txt"]):
        result = run("index", *paths, "--text-column", "words", "--model", "fake")
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert "are for manifests, and none is among the PATHs" in result.err
    assert not index.exists()


def test_a_manifest_given_twice_is_one(run: Run, table: Path) -> None:
    found = report(run("index", table, table.parent / "." / table.name, *COLUMNS, "--model", "fake", "--json"))
    assert (found["added"], found["items"], found["failed"]) == (2, 3, [])
    found = report(run("index", table, table, *COLUMNS, "--json"))
    assert (found["unchanged"], found["items"], found["failed"]) == (2, 3, [])
    assert len(run("info", "--json").json[0]["roots"]) == 2


def test_rows_that_cannot_be_used_are_failures(run: Run, pictures: Path) -> None:
    table = pictures / "rows.jsonl"
    table.write_text('{"id": 1, "text": "one"}\nno json\n{"id": 1, "text": "two"}\n{"id": 3}\n', encoding="utf-8")
    found = report(run("index", table, "--model", "fake", "--json"))
    assert (found["added"], found["items"], len(found["failed"])) == (1, 1, 3)
    assert sorted(failure["error"].split(":")[0] for failure in found["failed"]) == ["row 2", "row 3", "row 4"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\1\2\xff" * 9, b"\xff\xfe\0"])
def test_files_that_are_no_manifest_are_one_line(run: Run, pictures: Path, index: Path, content: bytes) -> None:
    for ending in ("csv", "tsv", "jsonl", "ndjson"):
        path = pictures / f"odd.{ending}"
        path.write_bytes(content)
        result = run("index", path, "--model", "fake")
        assert (result.code in (1, 2), result.out, result.err.count("\n")) == (True, "", 1)
        assert result.err.startswith("mmsearch: ") and "unexpected" not in result.err
        assert str(path) in result.err
    assert not index.exists()


def test_parquet_without_pyarrow_says_how_to_install_it(
    run: Run, listed: Listed, pictures: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pictures / "table.parquet"
    path.write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("index", path, "--model", "fake")
    said = f"reading {path} needs pyarrow: pip install 'mmsearch[parquet]'"
    assert (result.code, result.out, result.err) == (1, "", f"mmsearch: {said}\n")
    assert not index.exists()
    assert report(listed(os.fsencode(path), "--json"))["failed"] == [{"path": str(path), "error": said}]
