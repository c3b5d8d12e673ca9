"""`mmsearch train` as people and programs meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli_kit import MAIN, Result, run_here
from tests.test_finetune import COLOURS, TEXT, VISION, save


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    return save(tmp_path_factory.mktemp("models") / "clip", config, {})


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(4)
    entries = []
    for name, colour in COLOURS.items():
        for number in range(5):
            pixels = np.clip(np.array(colour) + rng.normal(0, 12, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
            part = "test" if number == 4 else "train"
            entries.append({"file_name": f"{name}{number}.png", "split": part, "captions": [f"a {name} thing"]})
    (folder / "captions.json").write_text(json.dumps(entries))
    return folder


def options(base: Path, out: Path) -> list[Any]:
    quick = ["--lr", "3e-3", "--batch-size", "16", "--epochs", "12", "--holdout", "0.25", "--device", "cpu"]
    return ["--model", f"local-dir:{base}", "--out", out, "--split", "train", "--threads", "1", *quick]


def test_before_and_after_and_how_to_use_it(
    base: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(capsys, "train", captions, *options(base, tmp_path / "out"))
    assert done.code == 0, done.err
    head, *lines = [line.split("\t") for line in done.out.splitlines()]
    assert head == ["held out", "measure", "before", "after"]
    assert [line[:2] for line in lines[:2]] == [["text to image", "success@1"], ["text to image", "success@10"]]
    before, after = lines[2][2:]
    assert lines[2][1] == "mrr" and float(after) > float(before)
    assert f"mmsearch reindex --model local-dir:{tmp_path / 'out'}" in done.err
    assert "24 pictures, 8 more held out" in done.err
    assert "steps/s" in done.err
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    asked = run_here(capsys, "train", captions, *options(base, tmp_path / "out"))
    assert (asked.code, "holds a model already" in asked.err) == (2, True)


def test_json(base: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_here(capsys, "train", captions, *options(base, tmp_path / "out"), "--json")
    assert done.code == 0, done.err
    (found,) = done.json
    assert found["model"] == f"local-dir:{tmp_path / 'out'}"
    assert found["after"]["image_to_text"]["mrr"] > found["before"]["image_to_text"]["mrr"]
    assert {"identity", "base_identity", "average", "best_step", "ending", "notices", "rate"} <= set(found)


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(base: Path, captions: Path, tmp_path: Path) -> None:
    command = [*MAIN, *map(os.fspath, ["train", captions, *options(base, tmp_path / "out"), "-v"])]
    command[command.index("--epochs") + 1] = "2000"
    command += ["--patience", "2000"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 20/" in line:
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert (tmp_path / "out" / "training" / "checkpoint.pt").exists()
    again = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert again.stderr is not None
    resumed = next(line for line in again.stderr if "resumed at step" in line)
    assert int(resumed.split("resumed at step ")[1].split()[0]) >= 20
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=120)
    assert again.returncode == 130


def test_errors_are_one_line(base: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: Any) -> Result:
        done = run_here(capsys, "train", *arguments)
        assert len(done.err.splitlines()) == 1, done.err
        assert done.out == ""
        return done

    gone = fails(tmp_path / "gone", *options(base, tmp_path / "out"))
    assert (gone.code, "does not exist" in gone.err) == (2, True)
    flat = fails(captions, *options(base, tmp_path / "out"), "--lr", "1e-12", "--patience", "1")
    assert (flat.code, "no weights did better" in flat.err) == (1, True)
    both = fails(captions, *options(base, tmp_path / "out2"), "--steps", "3")
    assert (both.code, "--epochs and --steps" in both.err) == (2, True)


def test_the_run_is_drawn(base: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The display takes the stages of a run in whatever order they come."""
    import io

    from rich.console import Console

    from mmsearch import progress
    from mmsearch.indexers.train.engine import Progress

    text = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=text, force_terminal=True, width=160, color_system=None)
    )
    with progress.ProgressDisplay() as display:
        display.on_eval("reading pictures", 3, 10)
        display.on_train(Progress(1, 40, 2.5, {"loss": 1.25}, {}))
        time.sleep(0.12)
        display.on_train(Progress(40, 40, 2.5, {"loss": 0.75}, {"text_to_image mrr": 0.5, "image_to_text mrr": 0.7}))
        display.on_eval("averaging", 1, 11)
    shown = text.getvalue()
    for word in ("reading pictures", "training", "40/40", "2.50 steps/s", "loss 0.750", "held-out MRR 0.600"):
        assert word in shown
    assert "averaging" in shown


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom mmsearch.cli import run\nassert run(['train', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--hard-negatives" in done.stdout
