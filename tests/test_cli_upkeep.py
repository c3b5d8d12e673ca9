"""The commands that look after an index: list, remove, merge, reindex and doctor, as a person types them."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cli_kit import MAIN, Result, run_alone
from numpy.typing import NDArray

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder

Draw = Callable[..., Path]
Run = Callable[..., Result]

UPKEEP = ("list", "remove", "merge", "reindex", "doctor")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def indexed(run: Run, pictures: Path) -> Path:
    assert run("index", pictures, "--model", "fake").code == 0
    return pictures


@pytest.fixture
def few(run: Run, tmp_path: Path, draw: Draw) -> Path:
    """Two pictures, a text and a file that cannot be read, whose bytes are the same everywhere."""
    folder = tmp_path / "few"
    draw(folder / "red.png", "red")
    draw(folder / "green.png", "green")
    (folder / "rose.md").write_text("A red rose.\n", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"")
    assert run("index", folder, "--model", "fake").code == 0
    return folder


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdout)


class Other(FakeEncoder):
    """Another model than the index's; Ctrl-C can be pressed while it embeds pictures."""

    press_at = 0

    def __init__(self) -> None:
        super().__init__("other", dim=20, batch_size=2)
        self.calls = 0

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        self.calls += 1
        if self.calls == self.press_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().encode_images(arrays)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> type[Other]:
    """Lets --model other name that model."""
    models: dict[str, Callable[[], FakeEncoder]] = {"fake": FakeEncoder, "other": Other}
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: models[name]())
    monkeypatch.setattr(Other, "press_at", 0)
    return Other


def odd_names(folder: Path, picture: Path) -> list[bytes]:
    """Puts a picture under names that are awkward; returns their paths, or skips where none can be had."""
    made = []
    for name in (b"line\nbreak.png", b"caf\xe9.png", b"-", b" two  spaces .png"):
        path = os.path.join(os.fsencode(folder), name)
        try:
            shutil.copy(os.fsencode(picture), path)
        except OSError:
            pytest.skip("this file system refuses such names")
        made.append(path)
    return [path for path in made if path.endswith(b".png")]


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Everything in a folder, to the byte."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def spoil(index: Path, space: str) -> Path:
    """Flips a bit of a vector."""
    (segment,) = (index / "segments").glob(f"{space}-*.seg")
    damaged = bytearray(segment.read_bytes())
    damaged[-2] ^= 1
    segment.write_bytes(damaged)
    return segment


def lines(result: Result) -> list[str]:
    return result.out.splitlines()


# What all of them have in common


@pytest.mark.parametrize("command", UPKEEP)
def test_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert "--index" in result.out and "--json" in result.out
    (summary,) = (line for line in lines(run("--help")) if line.startswith(f"  {command} "))
    assert not summary.endswith("...")


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["remove", "x"], ["merge"], ["reindex", "--model", "fake"], ["doctor"], ["doctor", "--repair"]],
)
def test_no_index(run: Run, index: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("not an index", encoding="utf-8")
    for place in (index, tmp_path / "photos", tmp_path / "photos" / "a.txt"):
        result = run(*arguments, "--index", place)
        assert (result.code, result.out) == (3, "")
        assert f"there is no index at {place}; make one with: mmsearch index FOLDER --index {place}\n" in result.err
    assert os.listdir(tmp_path / "photos") == ["a.txt"]
    assert not index.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--json", "--paths0"], "take one"),
        (["list", "--failed", "--modality", "text"], "leave out --modality or --failed"),
        (["list", "--modality", "video"], "'image', 'text', 'all'"),
        (["list", "no-such-argument"], "no-such-argument"),
        (["remove"], "say what to remove: mmsearch remove PATH"),
        (["remove", ""], "a PATH is empty"),
        (["remove", "--id", ""], "an id is empty"),
        (["remove", "no-such-file"], "nothing in the index, or on disk, at no-such-file"),
        (["reindex"], "--model"),
        (["reindex", "--model", "no-such-model"], "no model is called `no-such-model`"),
        (["reindex", "--model", "fake", "--threads", "0"], "threads must be 1 or more"),
        (["doctor", "--model", "fake"], "--model is for --repair"),
        (["doctor", "--repair", "--files"], "--files only looks"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(
    run: Run, indexed: Path, index: Path, arguments: list[str], said: str
) -> None:
    before = run("list", "--json").out
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    if result.err.startswith("mmsearch:"):
        assert result.err.count("\n") == 1
    assert run("list", "--json").out == before


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["list", "--paths0"], ["merge", "--json"], ["doctor", "--json"]]
)
def test_a_broken_pipe_is_silent(indexed: Path, index: Path, arguments: list[str]) -> None:
    process = subprocess.Popen([*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that can close a stream")
def test_closed_streams_are_no_traceback(indexed: Path) -> None:
    for closed, told in (("<&- >&-", b"1 removed; 7 items in the index\n"), ("<&- >&- 2>&-", b"")):
        name = "red-square.png" if told else "green-circle.jpg"
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", *MAIN, "remove", str(indexed / name)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", told)
        assert subprocess.run([*command[:6], "list"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "--paths0"]])
def test_a_full_disk_behind_stdout_is_one_line(indexed: Path, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*MAIN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


# list


def test_list(run: Run, indexed: Path) -> None:
    result = run("list")
    assert (result.code, result.err) == (0, "")
    files = sorted(str(path) for path in indexed.rglob("*") if path.is_file())
    assert sorted(lines(result)) == files
    texts = [path for path in files if path.endswith(".txt")]
    assert sorted(lines(run("list", "--modality", "text"))) == texts
    assert sorted(lines(run("list", "--modality", "image"))) == sorted(set(files) - set(texts))


def test_each_file_once_and_each_item_as_json(run: Run, indexed: Path) -> None:
    words = "".join(f"Sentence number {number} is about a red bird. " for number in range(60))
    (indexed / "long.txt").write_text(words, encoding="utf-8")
    table = indexed.parent / "captions.csv"
    red = indexed / "red-square.png"
    table.write_text(f"image,text\n{red},one\n{red},two\n{indexed / 'black-circle.gif'},three\n", encoding="utf-8")
    assert run("index", indexed, table).code == 0
    shown = lines(run("list"))
    assert len(shown) == len(set(shown)) == 9
    items = run("list", "--json").json
    assert len(items) == run("info", "--json").json[0]["items"] > 12
    fields = "item_id path uri fragment modality text width height taken id meta".split()
    assert all(list(item) == fields for item in items)
    assert sorted(item["text"] for item in items if item["path"] == str(red) and item["text"]) == ["one", "two"]
    assert len([item for item in items if item["path"] == str(indexed / "long.txt")]) > 3
    assert {item["path"] for item in items} == set(shown)


def test_failed_files_are_listed_with_their_reasons(run: Run, indexed: Path, index: Path) -> None:
    assert (run("list", "--failed").out, run("list", "--failed").err) == ("", "nothing has failed\n")
    (indexed / "bad.jpg").write_bytes(b"no picture")
    (indexed / "gone.jpg").write_bytes(b"no picture")
    table = indexed.parent / "table.csv"
    table.write_text("id,image\n7,nowhere.png\n", encoding="utf-8")
    run("index", indexed, table)
    (indexed / "gone.jpg").unlink()
    result = run("list", "--failed")
    assert (result.code, result.err) == (0, "")
    told = dict(line.split("\t") for line in lines(result))
    assert list(told) == [str(indexed / "bad.jpg"), str(indexed / "gone.jpg"), f"{table}#id=7"]
    assert "does not exist" in told[f"{table}#id=7"]
    assert [(entry["path"], entry["error"]) for entry in run("list", "--failed", "--json").json] == list(told.items())
    done = run_alone("list", "--failed", "--paths0", index=index)
    assert done.stdout == os.fsencode(indexed / "bad.jpg") + b"\0"


def test_long_lists_of_failures_name_the_command_that_has_them_all(run: Run, indexed: Path) -> None:
    for number in range(25):
        (indexed / f"bad-{number}.jpg").write_bytes(b"no")
    assert "and 5 more (`mmsearch list --failed` lists all)\n" in run("index").err
    assert len(lines(run("list", "--failed"))) == 25


def test_an_empty_index_says_so(run: Run, indexed: Path) -> None:
    run("remove", indexed)
    for arguments in ([], ["--json"], ["--paths0"]):
        result = run("list", *arguments)
        assert (result.code, result.out, result.err) == (0, "", "the index is empty\n")
    assert run("list", "--modality", "text").err == "no texts in the index\n"


def test_odd_names_are_escaped_and_given_whole_to_xargs(run: Run, indexed: Path, index: Path) -> None:
    made = odd_names(indexed, indexed / "red-square.png")
    run("index")
    shown = lines(run("list"))
    assert len(shown) == 8 + len(made)
    assert str(indexed / "line\\nbreak.png") in shown
    assert str(indexed / "caf\\xe9.png") in shown
    done = run_alone("list", "--paths0", index=index)
    assert done.stderr == b""
    assert done.stdout.endswith(b"\0")
    paths = done.stdout[:-1].split(b"\0")
    assert set(made) <= set(paths)
    assert len(paths) == len(shown)
    assert all(map(os.path.isfile, paths))
    for encoding in ("ascii", "latin-1"):
        assert run_alone("list", index=index, PYTHONIOENCODING=encoding).returncode == 0
        assert run_alone("list", "--paths0", index=index, PYTHONIOENCODING=encoding).stdout == done.stdout


def test_items_without_a_file_have_no_path_for_xargs(run: Run, index: Path) -> None:
    with mmsearch.open(index, model="fake") as opened:
        opened.add([{"id": "a b", "text": "red"}, {"id": 2, "text": "blue"}])
    assert lines(run("list")) == ["id=a%20b", "id=2"]
    assert [(item["path"], item["id"]) for item in run("list", "--json").json] == [(None, "a b"), (None, "2")]
    assert run("list", "--paths0").out == ""


# remove


def test_a_removed_file_stays_away_until_it_is_named(run: Run, indexed: Path) -> None:
    red = indexed / "red-square.png"
    result = run("remove", red)
    assert (result.code, result.out, result.err) == (0, "", "1 removed; 7 items in the index\n")
    assert red.is_file()
    for arguments in (["index"], ["index", indexed]):
        assert run(*arguments).code == 0
        assert str(red) not in lines(run("list"))
    assert run("index", red, "--json").json[0]["items"] == 8
    assert str(red) in lines(run("list"))


def test_a_removed_folder_stays_away_until_it_is_named(run: Run, indexed: Path) -> None:
    more = indexed / "more"
    assert run("remove", more, "--json").json == [{"removed": 2, "items": 6}]
    inside = run("index", more / "orange-triangle.jpg")
    assert inside.code == 2
    assert f"is in {more}, which was taken out of the index; name that folder to take it back" in inside.err
    assert run("index", "--json").json[0]["items"] == 6
    assert run("index", more, "--json").json[0]["items"] == 8


def test_several_are_removed_or_none(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(indexed)
    result = run("remove", "red-square.png", "no-such-file")
    assert (result.code, result.out) == (2, "")
    assert len(lines(run("list"))) == 8
    assert run("remove", "red-square.png", "more", "./roses.txt").err == "4 removed; 4 items in the index\n"
    (indexed / "blue-triangle.png").unlink()
    assert run("remove", "blue-triangle.png").err == "1 removed; 3 items in the index\n"
    assert run("remove", indexed).err == "3 removed; 0 items in the index\n"
    assert run("info", "--json").json[0]["roots"] == []


def test_removing_what_is_not_there(run: Run, indexed: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("elsewhere", encoding="utf-8")
    result = run("remove", tmp_path / "outside.txt")
    assert (result.code, result.err) == (0, "nothing of that was in the index; 8 items in the index\n")
    run("remove", indexed / "roses.txt")
    assert run("remove", indexed / "roses.txt", "--json").json == [{"removed": 0, "items": 7}]


def test_odd_names_are_removed(run: Run, indexed: Path, index: Path) -> None:
    made = odd_names(indexed, indexed / "red-square.png")
    run("index")
    done = run_alone("remove", *map(os.fsdecode, made), index=index)
    assert done.stderr == f"{len(made)} removed; 8 items in the index\n".encode()


def test_items_of_programs_are_removed_by_id(run: Run, index: Path, indexed: Path) -> None:
    assert run("remove", "--id", "a").err == "nothing of that was in the index; 8 items in the index\n"
    with mmsearch.open(index) as opened:
        opened.add([{"id": "a", "text": "red"}, {"id": 2, "text": "blue"}, {"id": "c", "text": "green"}])
    assert run("remove", "--id", "a", "--id", "2", "--id", "x").err == "2 removed; 9 items in the index\n"
    assert run("remove", "--id", "c", indexed / "more", "--json").json == [{"removed": 3, "items": 6}]
    assert run("index", "--json").json[0]["items"] == 6


def test_a_manifest_is_removed_with_its_rows(run: Run, indexed: Path) -> None:
    table = indexed.parent / "table.csv"
    table.write_text("id,text\n1,one\n2,two\n", encoding="utf-8")
    run("index", table)
    assert run("remove", table).err == "2 removed; 8 items in the index\n"
    assert run("index", "--json").json[0]["items"] == 8
    assert run("index", table, "--json").json[0]["added"] == 2


# merge


def test_merge(run: Run, indexed: Path, index: Path, draw: Draw) -> None:
    nothing = run("merge")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "nothing to merge\n")
    (found,) = run("merge", "--json").json
    assert (found["merged"], found["segments"], list(found)) == (0, 2, ["merged", "segments", "bytes"])
    draw(indexed / "purple.png", "purple")
    run("index")
    before = run("query", "purple", "--json").out
    assert run("info", "--json").json[0]["segments"] == 3
    assert run("merge").err == "2 segments merged; 2 segments now\n"
    assert run("query", "purple", "--json").out == before
    assert run("doctor").code == 0
    assert len(list((index / "segments").iterdir())) == 2


def test_a_merge_that_is_interrupted_is_130_and_keeps_all(
    run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.retrieval.store.writer.Writer.merge", press)
        result = run("merge")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")
    assert run("merge").code == run("doctor").code == 0


# reindex


def test_reindex(run: Run, indexed: Path, other: type[Other]) -> None:
    ids = [item["item_id"] for item in run("list", "--json").json]
    result = run("reindex", "--model", "other")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("changed from fake to other: 8 embeddings made, 0 made before; ")
    assert run("info", "--json").json[0]["model"] == "other"
    assert [item["item_id"] for item in run("list", "--json").json] == ids
    assert run("query", "red", "-k", "1").out.endswith("red-square.png\n")
    again = run("reindex", "--model", "other")
    assert (again.code, again.err) == (0, "the index is of the model other already; nothing to do\n")
    (report,) = run("reindex", "--model", "fake", "--json").json
    assert (report["model"], report["previous_model"], report["switched"]) == ("fake", "other", True)
    assert (report["embedded"], report["interrupted"], report["items"]) == (8, False, 8)


def test_an_interrupted_reindex_is_130_and_goes_on(
    run: Run, indexed: Path, other: type[Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other, "press_at", 2)
    result = run("reindex", "--model", "other", "--json")
    assert result.code == 130
    assert result.err == "interrupted; what is done is saved, and the same command continues from here\n"
    (report,) = result.json
    assert (report["interrupted"], report["switched"]) == (True, False)
    assert 2 <= report["embedded"] < 8
    assert run("info", "--json").json[0]["model"] == "fake"
    assert run("query", "red", "-k", "1").out.endswith("red-square.png\n")
    noted = run("doctor")
    assert noted.code == 0
    assert "a change to the model other is unfinished" in noted.out
    assert "`mmsearch reindex --model other` goes on with it" in noted.out
    monkeypatch.setattr(other, "press_at", 0)
    (rest,) = run("reindex", "--model", "other", "--json").json
    assert (rest["embedded"], rest["reused"]) == (8 - report["embedded"], report["embedded"])
    assert (run("doctor").code, run("doctor").out) == (0, "")


def test_ctrl_c_after_the_change_of_model_is_told(
    run: Run, indexed: Path, other: type[Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsearch.index.Index.add", lambda self, **options: mmsearch.Report(interrupted=True))
    result = run("reindex", "--model", "other")
    changed, interrupted = result.err.splitlines()
    assert changed.startswith("changed from fake to other: 8 embeddings made")
    assert (result.code, interrupted) == (
        130,
        "interrupted while looking for changed files; `mmsearch index` goes on with that",
    )


def test_missing_pictures_hold_the_change_up_until_they_are_dropped(
    run: Run, indexed: Path, other: type[Other]
) -> None:
    (indexed / "red-square.png").unlink()
    result = run("reindex", "--model", "other")
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert "1 item of the index" in result.err and str(indexed / "red-square.png") in result.err
    assert "`--drop`" in result.err
    assert run("info", "--json").json[0]["model"] == "fake"
    dropped = run("reindex", "--model", "other", "--drop")
    assert dropped.code == 0
    assert "7 made before" in dropped.err
    assert "1 item could not be embedded again and left the index\n" in dropped.err
    assert len(lines(run("list"))) == 7


def test_vectors_without_content_hold_the_change_up(run: Run, index: Path, other: type[Other]) -> None:
    with mmsearch.open(index) as opened:
        opened.add_vectors(["a", "b"], np.eye(2, 16), modality="text", texts=["red", None])
    result = run("reindex", "--model", "other")
    assert (result.code, result.out) == (1, "")
    assert "1 item of the index" in result.err and "without the text" in result.err
    assert run("info", "--json").json[0]["model"] == "vectors"
    (report,) = run("reindex", "--model", "other", "--drop", "--json").json
    assert (report["switched"], report["dropped"], report["items"]) == (True, 1, 1)
    assert run("query", "red", "--json").json[0]["id"] == "a"


def test_index_with_another_model_names_the_command(run: Run, indexed: Path) -> None:
    assert "`mmsearch reindex --model starter`" in run("index", "--model", "starter").err


# doctor


def test_a_sound_index(run: Run, indexed: Path, index: Path) -> None:
    before = content(index)
    result = run("doctor")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("the index is sound: 8 items in 2 segments, ")
    (found,) = run("doctor", "--json").json
    assert list(found) == ["path", "problems", "segments", "items", "bytes_checked"]
    assert (found["path"], found["problems"], found["items"]) == (str(index), [], 8)
    assert content(index) == before
    assert run("doctor", "--repair").code == 0
    assert run("doctor", "--repair", "--json").json == [found]


def test_damage_is_told_without_a_change_then_mended(run: Run, indexed: Path, index: Path) -> None:
    segment = spoil(index, "image")
    before = content(index)
    for arguments in (["doctor"], ["doctor", "--files"], ["doctor", "--json"]):
        assert run(*arguments).code == 1
    result = run("doctor")
    assert content(index) == before
    mark, kind, where, message, remedy = result.out.rstrip("\n").split("\t")
    assert (mark, kind, where) == ("damage", "segment-checksum", segment.name)
    assert "checksum" in message and "`mmsearch doctor --repair`, then `mmsearch index`" in remedy
    assert result.err == (
        "the index is damaged; nothing was changed. `mmsearch doctor --repair` mends what can be mended\n"
    )
    (problem,) = run("doctor", "--json").json[0]["problems"]
    assert (problem["kind"], problem["repaired"], problem["lost_items"]) == ("segment-checksum", False, 6)
    repaired = run("doctor", "--repair")
    assert repaired.code == 0
    assert repaired.out.startswith(f"repaired\tsegment-checksum\t{segment.name}\t")
    assert repaired.err.startswith("the index is sound: 2 items in 1 segment, ")
    assert (index / "damaged" / segment.name).is_file()
    assert run("index", "--json").json[0]["items"] == 8
    assert run("doctor").out == ""


def test_golden_doctor_on_a_terminal(
    run: Run, golden: Callable[[str, str], None], few: Path, index: Path, on_a_terminal: None
) -> None:
    spoil(index, "image")
    (few / "rose.md").write_text("A rose that is not red.\n", encoding="utf-8")
    os.utime(few / "rose.md", ns=(1, 1))
    steps = (["doctor"], ["doctor", "--repair"], ["doctor", "--files"], ["index"], ["doctor", "--files"], ["list"])
    shown = ""
    for arguments in steps:
        result = run(*arguments)
        shown += f"$ mmsearch {' '.join(arguments)}\n{result.out}{result.err}exit code {result.code}\n\n"
    golden("doctor-terminal.txt", shown)


def test_what_cannot_be_mended_is_not_called_untouched(
    run: Run, indexed: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(index, "image")
    monkeypatch.setattr("mmsearch.retrieval.store.repairs.mend", lambda *arguments: None)
    result = run("doctor", "--repair")
    assert result.code == 1
    assert result.err == "the index is still damaged: not everything could be mended\n"


def test_files_that_changed_are_noted_and_no_damage(run: Run, indexed: Path) -> None:
    (indexed / "red-square.png").unlink()
    (indexed / "roses.txt").write_text("Violets are blue.\n", encoding="utf-8")
    assert run("doctor").out == ""
    result = run("doctor", "--files")
    assert result.code == 0
    assert [line.split("\t")[:3] for line in lines(result)] == [
        ["note", "file-missing", str(indexed)],
        ["note", "file-changed", str(indexed)],
    ]
    assert "red-square.png" in lines(result)[0] and "roses.txt" in lines(result)[1]
    assert result.err.startswith("the index is sound: ")
    run("index")
    assert run("doctor", "--files").out == ""


@pytest.mark.parametrize("lost", ["deleted", "garbage"])
def test_a_lost_catalog_is_salvaged(run: Run, indexed: Path, index: Path, lost: str) -> None:
    for path in index.glob("catalog.sqlite*"):
        path.unlink()
    if lost == "garbage":
        (index / "catalog.sqlite").write_bytes(bytes(range(256)) * 16)
    for arguments in (["list"], ["remove", indexed], ["merge"], ["index"], ["query", "red"], ["info"]):
        result = run(*arguments)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
        assert "`mmsearch doctor --repair` does it" in result.err
    before = content(index)
    result = run("doctor")
    assert result.code == 1
    assert "8 vectors in 2 segments can be saved" in result.out
    assert content(index) == before
    (repaired,) = run("doctor", "--repair", "--model", "fake", "--json").json
    assert [problem["repaired"] for problem in repaired["problems"] if problem["kind"].startswith("catalog")] == [True]
    report = run("index", "--json").json[0]
    assert (report["items"], report["added"] + report["copied"] + report["moved"]) == (8, 8)
    assert (run("doctor").code, run("doctor").out) == (0, "")
    assert run("query", "red", "-k", "1").out.endswith("red-square.png\n")


def test_an_interrupted_repair_is_130_and_goes_on(
    run: Run, indexed: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(index, "text")

    def press(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.retrieval.store.repairs.mend", press)
        result = run("doctor", "--repair")
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")
    assert run("doctor", "--repair").code == 0
    assert run("index", "--json").json[0]["items"] == 8


def test_a_repair_waits_for_no_writer(run: Run, indexed: Path, index: Path) -> None:
    from mmsearch.retrieval.store import LocalStore

    spoil(index, "image")
    with LocalStore.open(index).writer():
        for arguments in (["doctor", "--repair"], ["remove", indexed], ["merge"], ["reindex", "--model", "fake"]):
            result = run(*arguments)
            assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
            assert f"pid {os.getpid()}" in result.err


def test_a_newer_format_is_refused(run: Run, indexed: Path, index: Path) -> None:
    catalog = sqlite3.connect(index / "catalog.sqlite")
    catalog.execute("PRAGMA user_version = 99")
    catalog.close()
    for arguments in (["list"], ["remove", indexed], ["merge"], ["reindex", "--model", "fake"], ["doctor"]):
        result = run(*arguments)
        assert (result.code, result.out) == (1, "")
        assert "pip install -U mmsearch" in result.err
