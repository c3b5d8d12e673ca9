"""The training of `starter-joint`: batches, measures, and a run from photos to a bundle."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from mmsearch.retrieval.encoders.open_clip import import_torchvision  # noqa: E402 - after the skips

import_torchvision()
pytest.importorskip("timm")

from mmsearch.indexers.interrupt import Stopped  # noqa: E402
from mmsearch.indexers.train.joint.data import pool_cells, read_captions  # noqa: E402
from mmsearch.indexers.train.joint.mixing import Candidates, cross_fitted  # noqa: E402
from mmsearch.indexers.train.joint.task import JointTask, vocabulary_of  # noqa: E402
from mmsearch.indexers.train.joint.towers import ImageTower, Pieces, TextTower  # noqa: E402
from mmsearch.indexers.train.joint.train import JointRun  # noqa: E402
from mmsearch.retrieval.encoders.starter import FOLDER, StarterEncoder  # noqa: E402
from mmsearch.retrieval.encoders.starter.joint import JointModel as Bundle  # noqa: E402

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
RECIPE: dict[str, Any] = {
    "seed": 0,
    "shape": {"tokens": 25, "token_width": 128, "hidden": 16, "width": 16, "heads": 2, "layers": 2, "feed_forward": 1},
    "rates": {"dropout": 0.1, "feature_dropout": 0.2},
    "batch": {
        "photos": 4,
        "hard_photos": 2,
        "hard_captions": 1,
        "pool": 3,
        "token_dropout": 0.1,
        "smoothing": 0.0,
        "late": 1.0,
        "cross": 1.0,
        "changed": 0.3,
        "masked": 0.2,
    },
    "optimiser": {"steps": 4, "warmup": 1, "lr": 1e-3, "weight_decay": 0.1, "measure_every": 0},
    "features": {"views": 3},
}


@pytest.fixture
def flickr(tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """Eight photos with captions, half of them to train on."""
    entries = []
    for number, colour in enumerate(COLOURS):
        draw(tmp_path / "flickr8k" / "images" / f"{number}.png", colour)
        entries.append(
            {
                "file_name": f"{number}.png",
                "split": "train" if number % 2 else "val",
                "captions": [f"a {colour} square on a beach", f"one {colour} thing"],
                "captions_zh": [f"一个{number}号方块在海滩上", "红色的东西"],
            }
        )
    (tmp_path / "flickr8k" / "captions.json").write_text(json.dumps(entries), "utf-8")
    return tmp_path


@pytest.fixture
def run(flickr: Path) -> JointRun:
    return JointRun(RECIPE, flickr, torch.device("cpu"))


def test_the_towers_are_those_of_the_bundle() -> None:
    encoder = StarterEncoder()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 260, 260, 3), np.uint8)
    texts = ["a cat on a sofa", "一只猫坐在沙发上"]
    maps, rows = ImageTower(FOLDER)(torch.from_numpy(pixels))
    np.testing.assert_allclose(rows, encoder.encode_images(list(pixels)), atol=1e-5)
    _, cells = encoder.graphs.get("cells.onnx").run(None, {"pixels": pixels})
    np.testing.assert_allclose(pool_cells(maps), cells, atol=1e-3)
    tower = TextTower(FOLDER)
    pieces = Pieces([encoder.tokenizer.encode(text) for text in texts], 40)
    ids, mask = pieces.padded(np.arange(2), torch.device("cpu"))
    np.testing.assert_allclose(tower.embed(tower(ids, mask), mask), encoder.encode_texts(texts), atol=1e-4)


def test_a_run_ends_with_a_bundle_that_the_reranker_loads(run: JointRun, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    outcome, figures = run.run(tmp_path, tmp_path / "bundle")
    assert (outcome.ending, outcome.step) == ("done", 4)
    moved = [name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])]
    assert {"fc1.weight", "layers.1.keys.weight", "match.weight", "masked.weight", "piece.weight"} <= set(moved)
    assert {f"{part}-{name}" for part in ("first", "reranked", "changed-cross") for name in ("en", "zh")} <= set(
        figures
    )
    bundle = Bundle(512, 1, tmp_path / "bundle")
    cells = run.sets["val"].photos.cells[0].float()
    tokens = bundle.tokens(cells.numpy(), run.sets["val"].photos.embeddings[0].numpy())
    assert np.abs(run.model.eval().compress(cells).detach().numpy() * 127 - tokens[:, :25]).max() <= 1


def test_an_interrupted_run_ends_as_one_that_was_not(
    flickr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = JointRun(RECIPE, flickr, torch.device("cpu"))
    (tmp_path / "whole").mkdir()
    whole.run(tmp_path / "whole", tmp_path / "whole-bundle")
    (tmp_path / "cut").mkdir()
    with monkeypatch.context() as patch:
        steps = itertools.count()
        real = JointTask.losses

        def stopping(self: JointTask, step: int, rng: np.random.Generator) -> dict[str, Any]:
            if next(steps) == 2:
                raise Stopped
            return real(self, step, rng)

        patch.setattr(JointTask, "losses", stopping)
        outcome, _ = JointRun(RECIPE, flickr, torch.device("cpu")).run(tmp_path / "cut", tmp_path / "cut-bundle")
    assert outcome.ending == "interrupted"
    assert not (tmp_path / "cut-bundle").exists()
    again = JointRun(RECIPE, flickr, torch.device("cpu"))
    again.run(tmp_path / "cut", tmp_path / "cut-bundle")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    for name in ("weights.safetensors", "score.onnx", "model.json"):
        assert (tmp_path / "whole-bundle" / name).read_bytes() == (tmp_path / "cut-bundle" / name).read_bytes()


def test_hard_negatives_are_hard_and_never_its_own(run: JointRun) -> None:
    difficulty = torch.arange(36.0).view(6, 6) % 7
    seen = torch.cat([run.task._hard(difficulty, 2) for _ in range(20)], 1)
    for row in range(6):
        others = difficulty[row].clone()
        others[row] = -1
        assert set(seen[row].tolist()) <= set(others.topk(3).indices.tolist())
        assert row not in seen[row].tolist()


def test_masked_pieces_are_guessed_among_those_of_the_captions(run: JointRun) -> None:
    captions = run.sets["train"].captions
    numbers = vocabulary_of(captions, 130_000)
    used = {int(piece) for one in captions.values() for piece in one.pieces.ids.ravel()}
    assert set(np.flatnonzero(numbers >= 0).tolist()) == {piece for piece in used if piece >= 4}
    assert run.model.masked.out_features == int(numbers.max()) + 1


def test_captions_know_their_changes(flickr: Path) -> None:
    from mmsearch.indexers.train.data import read_captioned

    captions = read_captions(read_captioned(flickr / "flickr8k", "val"), "en")
    assert captions.photo.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(captions.changed) == sum(len(rows) for rows in captions.changed_of) > 8
    assert captions.thinned(2).photo.tolist() == [0, 1, 2, 3]


def test_weights_are_chosen_on_the_other_half() -> None:
    rng = np.random.default_rng(1)

    def made(count: int) -> Candidates:
        right = np.zeros((count, 10), bool)
        right[np.arange(count), rng.integers(0, 10, count)] = True
        noisy = [right * gain + rng.normal(size=right.shape) for gain in (0.5, 1.5, 0.0)]
        return Candidates(np.stack(noisy, axis=-1).astype(np.float32), right, np.arange(count))

    sets = [made(400), made(300)]
    fitted, mix = cross_fitted(sets)
    for one, scores in zip(sets, fitted, strict=True):
        assert one.success(scores).mean() > one.success(one.parts[..., 0]).mean() + 0.2
        assert one.success(scores).mean() <= one.success(one.parts @ mix).mean() + 0.05
    assert mix[1] > mix[0]
    # Each half by hand, for one set.
    one = sets[0]
    (alone,), _ = cross_fitted([one])
    halves = [np.arange(400) % 2 == side for side in (0, 1)]
    units = one.parts.std(1).mean(0)
    grid = list(itertools.product((0.0, 0.5, 1.0, 1.5, 2.0, 3.0), repeat=2))
    hits = [one.success(one.parts @ (np.array([1.0, a, b]) / units)) for a, b in grid]
    for side in (0, 1):
        best = max(range(len(grid)), key=lambda at: (hits[at][halves[1 - side]].mean(), -at))
        assert one.success(alone)[halves[side]].tolist() == hits[best][halves[side]].tolist()


def test_success_counts_ties_for_the_first_stage() -> None:
    one = Candidates(np.zeros((2, 2, 3), np.float32), np.array([[False, True], [True, False]]), np.arange(2))
    for scores in (None, np.zeros((2, 2))):
        assert one.success(scores).tolist() == [False, True]
        assert one.success(scores, 2).tolist() == [True, True]
