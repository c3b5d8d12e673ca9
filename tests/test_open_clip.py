"""Tiny checkpoints of the true formats, made here, against open_clip called directly."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.retrieval.encoders import cache, hub
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.encoders.open_clip import (
    OpenClipEncoder,
    _import_open_clip,
    file_hash,
    files_in_folder,
    files_of_tag,
)
from mmsearch.retrieval.encoders.presets import PRESETS
from mmsearch.retrieval.errors import ModelUnavailable, UsageError
from tests.local_hub import COMMIT, LocalHub

open_clip = _import_open_clip()
import torch  # noqa: E402 - after torchvision's guard

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
WORDS = ["[PAD]", "[UNK]", "a", "cat", "dog", "red", "猫", "狗"]
TEXTS = ["a cat", "ein Hund", "", "a very long text about one cat and many dogs " * 20]


def _save(folder: Path, model_cfg: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(7)
    kind = open_clip.CustomTextCLIP if model_cfg.get("custom_text") else open_clip.CLIP
    model = kind(**{key: value for key, value in model_cfg.items() if key != "custom_text"})
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / cache.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As laion's models are: CLIP's tokenizer, shortest side and centre crop."""
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": CLIP_TEXT}
    return _save(tmp_path_factory.mktemp("models") / "clip", config, {"resize_mode": "shortest"})


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As SigLIP 2 is: a transformers tokenizer, CustomTextCLIP, squashed pictures."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = {
        "context_length": 8,
        "vocab_size": len(WORDS),
        "hf_tokenizer_name": "someone/siglip",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 16,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "pool_type": "last",
    }
    config = {"embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    folder = _save(tmp_path_factory.mktemp("models") / "siglip", config, preprocess)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return folder


@pytest.fixture
def photos() -> list[Image.Image]:
    random = np.random.default_rng(3)
    sizes = [(40, 32), (64, 64), (17, 90), (300, 200)]
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def _direct(folder: Path, photos: list[Image.Image], texts: list[str]) -> tuple[Any, Any, Any]:
    """What open_clip makes of it when it is asked itself."""
    source = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    model.eval()
    arrays = torch.stack([preprocess(picture) for picture in photos])
    with torch.inference_mode():
        images = model.encode_image(arrays, normalize=True).numpy()
        tokens = open_clip.get_tokenizer(source)(texts)
        return arrays.numpy(), images, model.encode_text(tokens, normalize=True).numpy()


@pytest.mark.parametrize("kind", ["clip_folder", "siglip_folder"])
def test_equals_open_clip_called_directly(kind: str, request: pytest.FixtureRequest, photos: list[Image.Image]) -> None:
    folder = request.getfixturevalue(kind)
    encoder = load_encoder(f"local-dir:{folder}", device="cpu", batch_size=3)
    assert isinstance(encoder, OpenClipEncoder)
    arrays, images, texts = _direct(folder, photos, TEXTS)
    mine = [encoder.preprocess(picture) for picture in photos]
    assert all(array.dtype == np.float32 and array.shape == (3, 32, 32) for array in mine)
    np.testing.assert_array_equal(np.stack(mine), arrays)
    np.testing.assert_allclose(encoder.encode_images(mine), images, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-6)
    assert encoder.name == f"local-dir:{folder}"
    assert (encoder.dim, encoder.image_size, encoder.device) == (32, (32, 32), "cpu")
    assert (encoder.precision, encoder.backend, encoder.batch_size) == ("fp32", "torch", 3)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 32)
    assert encoder.max_tokens == {"clip_folder": 16, "siglip_folder": 8}[kind]
    assert encoder.languages == {"clip_folder": ("en",), "siglip_folder": ()}[kind]
    assert encoder.count_tokens("a cat") == {"clip_folder": 4, "siglip_folder": 2}[kind]
    assert encoder.count_tokens("cat " * 10_000) > 9_999


def test_is_safe_to_call_from_threads(siglip_folder: Path, photos: list[Image.Image]) -> None:
    encoder = load_encoder(f"local-dir:{siglip_folder}", device="cpu")
    array = encoder.preprocess(photos[0])
    texts = [["a cat"], ["a red dog", "猫"], ["狗 " * 30]] * 8

    def one(batch: list[str]) -> Any:
        return encoder.count_tokens(batch[0]), encoder.encode_texts(batch), encoder.encode_images([array])

    alone = [one(batch) for batch in texts]
    with ThreadPoolExecutor(8) as pool:
        for (count, text, image), (count2, text2, image2) in zip(alone, pool.map(one, texts), strict=True):
            assert count == count2
            np.testing.assert_allclose(text, text2, atol=1e-6)
            np.testing.assert_allclose(image, image2, atol=1e-6)


def test_bf16_stays_close_and_finite(clip_folder: Path, photos: list[Image.Image]) -> None:
    exact = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    quick = load_encoder(f"local-dir:{clip_folder}", device="cpu", precision="bf16")
    arrays = [exact.preprocess(picture) for picture in photos]
    rows = quick.encode_images(arrays)
    assert rows.dtype == np.float32
    assert ((rows * exact.encode_images(arrays)).sum(axis=1) > 0.999).all()
    assert quick.identity == exact.identity  # precision is recorded beside it
    assert quick.precision == "bf16"


def test_identity_is_of_weights_preprocess_and_tokenizer(
    clip_folder: Path, siglip_folder: Path, tmp_path: Path
) -> None:
    def copy(source: Path, name: str, **changes: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        for part, change in changes.items():
            config = json.loads((folder / cache.CONFIG).read_text())
            config[part] = {**config[part], **change}
            (folder / cache.CONFIG).write_text(json.dumps(config))
        return load_encoder(f"local-dir:{folder}", device="cpu").identity

    first = load_encoder(f"local-dir:{siglip_folder}", device="cpu").identity
    assert copy(siglip_folder, "moved") == first
    assert copy(siglip_folder, "preprocess", preprocess_cfg={"resize_mode": "shortest"}) != first
    (tmp_path / "moved" / "tokenizer.json").write_text(
        (siglip_folder / "tokenizer.json").read_text(encoding="utf-8").replace('"dog"', '"cow"'), encoding="utf-8"
    )
    assert load_encoder(f"local-dir:{tmp_path / 'moved'}", device="cpu").identity != first
    assert load_encoder(f"local-dir:{clip_folder}", device="cpu").identity != first


def test_weight_hashes_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"one")
    first = file_hash(path)
    notes = cache.read_notes("hashes.json")
    assert list(notes.values()) == [first]
    cache.write_notes("hashes.json", dict.fromkeys(notes, "remembered"))
    assert file_hash(path) == "remembered"
    path.write_bytes(b"other")
    assert file_hash(path) not in (first, "remembered")
    assert len(cache.read_notes("hashes.json")) == 1


def test_a_hub_model_downloads_then_loads_offline(
    siglip_folder: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer may lie in another repository; afterwards nothing asks the network."""
    tower = {path.name: path.read_bytes() for path in siglip_folder.iterdir()}
    words = {name: tower.pop(name) for name in list(tower) if name.startswith(("tokenizer", "special"))}
    files = {"someone/tiny": tower, "someone/siglip": words}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with LocalHub(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.cuts, server.cut_at = 1, 10_000
        first = load_encoder("hf-hub:someone/tiny", device="cpu")
        assert server.cuts == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = load_encoder("hf-hub:someone/tiny", device="cpu")
    local = load_encoder(f"local-dir:{siglip_folder}", device="cpu")
    assert again.identity == first.identity == local.identity
    np.testing.assert_array_equal(again.encode_texts(TEXTS), local.encode_texts(TEXTS))
    assert cache.cached_repos() == ["someone/tiny"]


def _fill_cache(repo: str, files: dict[str, bytes]) -> None:
    """The hub's cache layout, by hand: blobs, refs and linked snapshots."""
    store = cache.cache_folder() / f"models--{repo.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (store / name).mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    for place, (name, content) in enumerate(files.items()):
        (store / "blobs" / f"{place:040x}").write_bytes(content)
        (store / "snapshots" / COMMIT / name).symlink_to(f"../../blobs/{place:040x}")


def test_a_builtin_tag_loads_from_the_cache(
    siglip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: list[Image.Image]
) -> None:
    """A tag has its architecture and preprocess in open_clip, and only weights and tokenizer cached."""
    config = json.loads((siglip_folder / cache.CONFIG).read_text())["model_cfg"]
    factory = sys.modules["open_clip.factory"]
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-siglip", config)
    table = sys.modules["open_clip.pretrained"]._PRETRAINED
    tag = {"hf_hub": "someone/siglip/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(table, "tiny-siglip", {"webli": {**tag, "interpolation": "bicubic"}})
    files = {path.name: path.read_bytes() for path in siglip_folder.iterdir() if path.name != cache.CONFIG}
    _fill_cache("someone/siglip", files)
    encoder = OpenClipEncoder(
        "tiny-siglip/webli", files_of_tag("tiny-siglip/webli", hub.Hub(offline=True)), device="cpu"
    )
    arrays, images, texts = _direct(siglip_folder, photos, TEXTS)
    mine = [encoder.preprocess(picture) for picture in photos]
    np.testing.assert_array_equal(np.stack(mine), arrays)
    np.testing.assert_allclose(encoder.encode_images(mine), images, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-6)
    assert encoder.identity == load_encoder(f"local-dir:{siglip_folder}", device="cpu").identity
    with pytest.raises(UsageError, match="tiny-siglip/webli"):
        files_of_tag("tiny-siglip/nonsense", hub.Hub(offline=True))


def test_a_text_tower_of_transformers_needs_no_network(
    siglip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf_model_name` may be a folder that has moved since: its config.json lies beside the weights."""
    tower = tmp_path / "tower"
    tower.mkdir()
    shape = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 0}
    (tower / "config.json").write_text(json.dumps(shape))
    text = {
        "hf_model_name": str(tower),
        "hf_tokenizer_name": "someone/siglip",
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "hf_model_pretrained": False,
        "context_length": 8,
    }
    config = {"embed_dim": 32, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}
    folder = _save(tmp_path / "model", config, {})
    for path in siglip_folder.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    _, _, texts = _direct(folder, [Image.new("RGB", (8, 8))], TEXTS)
    (tower / "config.json").rename(folder / "config.json")
    tower.rmdir()
    encoder = load_encoder(f"local-dir:{folder}", device="cpu")
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"x" * 99), "does not load"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "holds no open_clip model"),
        (lambda folder: (folder / cache.CONFIG).unlink(), "holds no open_clip model"),
        (lambda folder: (folder / cache.CONFIG).write_text("{"), "is damaged"),
        (
            lambda folder: (folder / cache.CONFIG).write_text(
                (folder / cache.CONFIG).read_text().replace('"embed_dim": 32', '"embed_dim": 64')
            ),
            "does not load",
        ),
    ],
)
def test_a_damaged_folder_is_a_one_line_error(clip_folder: Path, tmp_path: Path, damage: Any, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in clip_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder)
    with pytest.raises(ModelUnavailable, match=said) as caught:
        load_encoder(f"local-dir:{folder}", device="cpu")
    assert "\n" not in str(caught.value)
    assert "starter" in str(caught.value)  # what can be had instead


def test_a_pickle_that_runs_code_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / cache.CONFIG).write_text((clip_folder / cache.CONFIG).read_text())
    torch.save({"state_dict": Evil()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="does not load"):
        load_encoder(f"local-dir:{folder}", device="cpu")
    assert not (tmp_path / "owned").exists()


def test_devices_and_precisions_that_are_not_here(clip_folder: Path) -> None:
    files = files_in_folder(clip_folder)
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(UsageError, match="cpu"):
            OpenClipEncoder("tiny", files, device=device)
    with pytest.raises(UsageError, match="fp32, bf16, fp16"):
        OpenClipEncoder("tiny", files, device="cpu", precision="int3")


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_threads_are_set(clip_folder: Path) -> None:
    load_encoder(f"local-dir:{clip_folder}", device="cpu", threads=1)
    assert torch.get_num_threads() == 1


def test_loading_leaves_logging_alone(clip_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    load_encoder(f"local-dir:{clip_folder}", device="cpu")
    assert (list(root.handlers), list(root.filters)) == before
    assert not [record for record in caplog.records if record.name == "root"]


def test_presets_are_what_open_clip_has() -> None:
    for preset in PRESETS.values():
        if preset.tag is None:
            continue
        arch, _, pretrained = preset.tag.partition("/")
        assert open_clip.get_pretrained_cfg(arch, pretrained)["hf_hub"] == f"{preset.repo}/"
        assert open_clip.get_model_config(arch)["embed_dim"] == preset.dim


def test_torchvision_that_does_not_fit_is_worked_around(tmp_path: Path) -> None:
    """A stand-in whose import fails as the mismatched pair does, until the operators are declared."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from . import half\nimport torch\n"
        "torch.library.register_fake('torchvision::nms')(lambda *args: None)\nwhole = True\n"
    )
    (package / "half.py").write_text("")
    code = (
        "import sys\n"
        "from mmsearch.retrieval.encoders.open_clip import import_torchvision\n"
        "import_torchvision()\n"
        "assert sys.modules['torchvision'].whole\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parent.parent}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_cuda_agrees_with_the_processor(clip_folder: Path, photos: list[Image.Image], precision: str) -> None:
    exact = load_encoder(f"local-dir:{clip_folder}", device="cpu")
    quick = load_encoder(f"local-dir:{clip_folder}", device="cuda", precision=precision)
    arrays = [exact.preprocess(picture) for picture in photos]
    assert ((quick.encode_images(arrays) * exact.encode_images(arrays)).sum(axis=1) > 0.999).all()
    assert ((quick.encode_texts(TEXTS) * exact.encode_texts(TEXTS)).sum(axis=1) > 0.999).all()
