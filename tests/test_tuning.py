"""The pieces of fine-tuning against plain definitions: losses, hard negatives, batches, views, figures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmsearch.indexers.train.contrast import sigmoid_loss, softmax_loss
from mmsearch.indexers.train.mining import epoch_order, neighbours
from mmsearch.indexers.train.pairs import Pairs
from mmsearch.indexers.train.parts import averaged, choose, fold
from mmsearch.indexers.train.tuning import Batches, captions_of, figures
from mmsearch.indexers.train.views import Views, crop_box
from mmsearch.retrieval.encoders.open_clip import _import_open_clip


def unit(rng: np.random.Generator, *shape: int) -> Any:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs_of(captions: list[list[int]], held: int = 0) -> Pairs:
    count = len(captions)
    texts = tuple(f"text {i}" for i in range(1 + max(max(rows) for rows in captions)))
    rows = tuple(np.array(one, np.int64) for one in captions)
    paths = tuple(Path(f"{i}.png") for i in range(count))
    return Pairs(paths, texts, rows, np.arange(held, count), np.arange(held), "digest", ())


def test_losses_are_their_definitions_and_leave_false_negatives_out() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(5, 5)) * 3)
    same = np.zeros((5, 5), bool)
    same[1, 3] = same[4, 0] = True
    softmax = sigmoid = 0.0
    for i in range(5):
        row = sum(math.exp(logits[i, j]) for j in range(5) if not same[i, j])
        column = sum(math.exp(logits[j, i]) for j in range(5) if not same[j, i])
        softmax += (math.log(row) + math.log(column) - 2 * float(logits[i, i])) / 10
        for j in range(5):
            sign = 1 if i == j else -1
            if not same[i, j]:
                sigmoid += math.log1p(math.exp(-sign * float(logits[i, j]))) / 5
    masked = torch.from_numpy(same)
    assert float(softmax_loss(logits, masked)) == pytest.approx(softmax, rel=1e-5)
    assert float(sigmoid_loss(logits, masked)) == pytest.approx(sigmoid, rel=1e-5)
    changed = logits.clone()
    changed[1, 3] = changed[4, 0] = 50.0
    assert float(softmax_loss(changed, masked)) == pytest.approx(softmax, rel=1e-5)
    assert float(sigmoid_loss(changed, masked)) == pytest.approx(sigmoid, rel=1e-5)


def test_a_caption_of_two_pictures_is_no_negative() -> None:
    pairs = pairs_of([[0, 1], [1, 2], [3]])
    found = pairs.describes(np.array([0, 1, 2, 0]), np.array([0, 1, 3, 2]))
    assert found.tolist() == [
        [True, True, False, False],
        [False, True, False, True],
        [False, False, True, False],
        [True, True, False, False],
    ]
    batch = Batches(pairs, 3, 0, seed=0).at(0)
    for i, picture in enumerate(batch.pictures):
        for j, text in enumerate(batch.texts):
            assert batch.same[i, j] == (i != j and text in pairs.captions[picture])


def test_neighbours_are_the_hardest_that_share_no_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.indexers.train.mining._BLOCK", 7)
    rng = np.random.default_rng(1)
    captions = [sorted(rng.choice(30, 2, replace=False).tolist()) for _ in range(25)]
    pairs = pairs_of(captions, held=3)
    images, texts = unit(rng, 22, 8), unit(rng, len(pairs.texts), 8)
    found = neighbours(images, texts, pairs, pairs.train, 5)
    means = np.stack([texts[pairs.captions[p]].mean(0) for p in pairs.train])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for place, near in enumerate(found):
        own = set(captions[pairs.train[place]])
        scores = {
            other: float(images[place] @ means[other] + means[place] @ images[other])
            for other in range(22)
            if not own & set(captions[pairs.train[other]])
        }
        assert near.tolist() == sorted(scores, key=lambda other: -scores[other])[:5]


def test_pictures_that_share_captions_with_all_have_no_neighbours() -> None:
    pairs = pairs_of([[0], [0], [0, 1], [1]])
    rows = unit(np.random.default_rng(2), 4, 4)
    found = neighbours(rows, rows[:2], pairs, pairs.train, 3)
    assert found[2].tolist() == [-1, -1, -1]
    assert found[3].tolist()[2] == -1
    assert set(found[3].tolist()[:2]) == {0, 1}


def test_hard_negatives_follow_their_picture_and_everything_comes_once() -> None:
    rng = np.random.default_rng(3)
    near = np.array([[(i + 1) % 20, (i + 2) % 20, -1] for i in range(20)])
    order = epoch_order(20, near, 2, rng)
    assert sorted(order.tolist()) == list(range(20))
    first = order[0]
    assert order[1:3].tolist() == [(first + 1) % 20, (first + 2) % 20]
    plain = epoch_order(20, None, 2, np.random.default_rng(3))
    assert sorted(plain.tolist()) == list(range(20))
    assert plain.tolist() != order.tolist()


def test_batches_go_through_all_and_depend_on_seed_and_step_alone() -> None:
    pairs = pairs_of([[i] for i in range(13)], held=1)
    batches = Batches(pairs, 4, 0, seed=5)
    assert batches.per_epoch == 3
    seen = [batches.at(step).pictures.tolist() for step in range(6)]
    for epoch in (seen[:3], seen[3:]):
        assert sorted(p for pictures in epoch for p in pictures) == list(range(1, 13))
    assert seen[:3] != seen[3:]
    assert [Batches(pairs, 4, 0, seed=5).at(step).pictures.tolist() for step in (4, 1)] == [seen[4], seen[1]]
    assert Batches(pairs, 4, 0, seed=6).at(0).pictures.tolist() != seen[0]


@pytest.mark.parametrize("squash", [True, False])
@pytest.mark.parametrize("image", [(400, 100), (90, 300), (64, 64)])
def test_crops_stay_inside_and_have_about_the_shape_that_the_model_sees(image: tuple[int, int], squash: bool) -> None:
    rng = np.random.default_rng(0)
    side = min(image)
    for _ in range(200):
        left, top, right, bottom = crop_box(image, (32, 32), rng, squash=squash)
        assert 0 <= left < right <= image[0]
        assert 0 <= top < bottom <= image[1]
        seen = image[0] * image[1] if squash else side * side
        assert 0.59 * seen < (right - left) * (bottom - top) <= 1.0001 * seen
        shape = (right - left) / (bottom - top) / (image[0] / image[1] if squash else 1)
        assert 0.69 < shape < 1.45


def test_views_are_normalised_repeatable_and_mirrored_only_on_demand(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    settings = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5), "interpolation": "bicubic", "resize_mode": "squash"}
    plain = Views([tmp_path / "a.png"], (16, 16), settings)
    views = [plain.view(0, np.random.default_rng(seed)) for seed in range(12)]
    assert all(view.shape == (16, 16, 3) and view.dtype == np.uint8 for view in views)
    rows = plain.normalise(torch.from_numpy(np.stack(views))).numpy()
    assert rows.shape == (12, 3, 16, 16) and rows.dtype == np.float32 and rows.flags.c_contiguous
    assert all(row[0, 8, 0] == pytest.approx(2.0) and row[0, 8, -1] == pytest.approx(-2.0) for row in rows)
    assert all(row[1].max() == pytest.approx(-1.0, abs=0.05) for row in rows)
    assert len({view.tobytes() for view in views}) > 9
    unkept = Views([tmp_path / "a.png"], (16, 16), settings, budget=0)
    np.testing.assert_array_equal(unkept.view(0, np.random.default_rng(3)), views[3])
    mirrored = Views([tmp_path / "a.png"], (16, 16), settings, mirror=True)
    sides = {int(mirrored.view(0, np.random.default_rng(seed))[8, 0, 0]) for seed in range(12)}
    assert sides == {255, 0}


def test_figures_count_every_picture_with_a_caption_as_right() -> None:
    pairs = pairs_of([[0], [0, 1], [2]], held=3)
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0.1, 0.9, 0.3], [0.2, 0.1, 0.9], [0.0, 0.1, 0.5]], np.float32)
    assert captions_of(pairs, pairs.held).tolist() == [0, 1, 2]
    found = figures(images, texts, pairs, pairs.held)
    # text 0: pictures 1 (right), 2, 0; text 1: pictures 2, 0, 1 (right: third); text 2: picture 2 (right)
    assert found["text_to_image"]["success@1"] == pytest.approx(2 / 3)
    assert found["text_to_image"]["mrr"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    # picture 0: texts 1, 0 (right: second); picture 1: text 0 (right); picture 2: texts 1, 2 (right: second)
    assert found["image_to_text"]["mrr"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_map_is_the_map(bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 3, bias=bias))
    model.register_parameter("matrix", torch.nn.Parameter(torch.randn(5, 3)))
    change, x = torch.randn(3, 3), torch.randn(7, 6)
    rows, matrix = model(x), model.get_parameter("matrix").detach().clone()
    fold(model, "2", change)
    torch.testing.assert_close(model(x), rows + rows @ change)
    fold(model, "matrix", change)
    torch.testing.assert_close(model.get_parameter("matrix").detach(), matrix + matrix @ change)


def test_averages_lie_between() -> None:
    base = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(4)}
    assert averaged(base, tuned, 0.25)["w"].tolist() == [0.25, 1.5]
    assert averaged(base, tuned, 0.25)["n"].item() == 4


def test_the_last_blocks_of_convolutions_are_found_too() -> None:
    """The bundled model's towers, by their classes: stages of an EfficientNet, layers of a BERT."""

    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stages = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3)) for _ in range(3)))
            trunk = torch.nn.ModuleDict({"stem": torch.nn.Conv2d(3, 4, 3), "blocks": stages})
            trunk["conv_head"] = torch.nn.Conv2d(4, 4, 1)
            head = torch.nn.Sequential(torch.nn.Linear(4, 4))
            self.visual = torch.nn.ModuleDict({"trunk": trunk, "head": head})
            layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(4)])
            self.text = torch.nn.ModuleDict({"words": torch.nn.Embedding(9, 4), "layer": layers})
            self.text["proj"] = torch.nn.Linear(4, 2)
            self.logit_scale = torch.nn.Parameter(torch.tensor(1.0))

    model = Towers()
    choose(model, "last", 1)
    trained = {name.rsplit(".", 1)[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        "visual.trunk.blocks.2.0",
        "visual.trunk.conv_head",
        "visual.head.0",
        "text.layer.3",
        "text.proj",
        "logit_scale",
    }


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("ViT-B-32", ["visual.transformer.resblocks.11", "transformer.resblocks.11"]),
        ("RN50", ["visual.layer4.2", "transformer.resblocks.11"]),
        ("convnext_base", ["visual.trunk.stages.3", "transformer.resblocks.11"]),
        ("EVA02-B-16", ["visual.trunk.blocks.11", "text.transformer.resblocks.11"]),
        ("coca_ViT-B-32", ["visual.transformer.resblocks.11", "text.transformer.resblocks.11"]),
    ],
)
def test_the_last_blocks_of_the_architectures_of_open_clip(name: str, blocks: list[str]) -> None:
    open_clip = _import_open_clip()
    config = {key: value for key, value in open_clip.get_model_config(name).items() if key != "custom_text"}
    config["vision_cfg"]["timm_model_pretrained"] = False
    kind = open_clip.CustomTextCLIP if name == "EVA02-B-16" else open_clip.CLIP
    with torch.device("meta"):
        model = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**config)
    choose(model, "last", 1)
    trained = [parameter for parameter, value in model.named_parameters() if value.requires_grad]
    for block in blocks:
        stack = block.rpartition(".")[0] + "."
        inside = [parameter for parameter in trained if parameter.startswith(stack)]
        assert inside
        assert all(parameter.startswith(f"{block}.") for parameter in inside)
    assert not [parameter for parameter in trained if re.search("text_decoder|token_embedding|patch_embed", parameter)]
    choose(model, "full", 1)
    kept = {parameter for parameter, value in model.named_parameters() if not value.requires_grad}
    assert "token_embedding.weight" in {parameter.removeprefix("text.") for parameter in kept}
    assert all(
        parameter.endswith("token_embedding.weight") or parameter.startswith("text_decoder.") for parameter in kept
    )
