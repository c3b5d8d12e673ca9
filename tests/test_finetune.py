"""Fine-tuning tiny models of the true classes, from captions to a folder that the index takes."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.indexers.train.finetune import finetune
from mmsearch.indexers.train.settings import Tuning
from mmsearch.retrieval.encoders import cache
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.encoders.open_clip import OpenClipEncoder, _import_open_clip
from mmsearch.retrieval.errors import ModelUnavailable, TrainingFailed, UsageError

open_clip = _import_open_clip()
import torch  # noqa: E402 - after torchvision's guard

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "grey": (128, 128, 128)}
COLOURS |= {"white": (245, 245, 245), "black": (12, 12, 12), "yellow": (230, 220, 40), "pink": (240, 130, 190)}
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
WORDS = ["[PAD]", "[UNK]", "a", "thing", *COLOURS]


def save(folder: Path, model_cfg: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(11)
    kind = open_clip.CustomTextCLIP if model_cfg.get("custom_text") else open_clip.CLIP
    model = kind(**{key: value for key, value in model_cfg.items() if key != "custom_text"})
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / cache.CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    return save(tmp_path_factory.mktemp("models") / "clip", config, {"resize_mode": "shortest"})


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sigmoid model with a bias, a tokenizer and a text tower of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tower = tmp_path_factory.mktemp("tower")
    shape = {"model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 0}
    (tower / "config.json").write_text(json.dumps(shape))
    text = {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower), "hf_proj_type": "linear"}
    text |= {"hf_pooler_type": "mean_pooler", "hf_model_pretrained": False, "context_length": 12}
    config = {"embed_dim": 24, "custom_text": True, "vision_cfg": VISION, "text_cfg": text, "init_logit_bias": -5.0}
    config["init_logit_scale"] = 2.3
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tower)
    folder = save(tmp_path_factory.mktemp("models") / "siglip", config, preprocess)
    for path in tower.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight colours in six pictures each, "a COLOUR thing"."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(4)
    rows = ["image,caption"]
    for name, colour in COLOURS.items():
        for number in range(6):
            pixels = np.clip(np.array(colour) + rng.normal(0, 12, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{number}.png")
            rows.append(f"{name}{number}.png,a {name} thing")
    (folder / "captions.csv").write_text("\n".join(rows))
    return folder / "captions.csv"


QUICK = {"batch_size": 16, "lr": 3e-3, "holdout": 0.25, "epochs": 12, "patience": 12}


def tune(source: Path, out: Path, model: Path, **options: Any) -> Any:
    more = {key: options.pop(key) for key in ("observe", "images", "split") if key in options}
    tuning = Tuning(**{**QUICK, **options})
    return finetune(source, out, model=f"local-dir:{model}", tuning=tuning, device="cpu", threads=1, **more)


def state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "open_clip_model.safetensors")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("how", ["full", "last", "probe"])
def test_a_model_learns_and_loads(
    kind: str, how: Any, captions: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(kind)
    options = {"how": how, "blocks": 1} | ({"lr": 0.05, "epochs": 60, "patience": 60} if how == "probe" else {})
    report = tune(captions, tmp_path / "out", base, **options)
    assert report.ending in ("done", "early")
    assert report.loss == {"clip": "softmax", "siglip": "sigmoid"}[kind]
    assert (report.pictures, report.held_out) == (36, 12)
    assert 0 < report.average <= 1
    for way in ("text_to_image", "image_to_text"):
        assert report.after[way]["mrr"] > report.before[way]["mrr"] + 0.1
    encoder = load_encoder(report.model, device="cpu")
    assert encoder.identity == report.identity != report.base_identity
    same_as_open_clip(tmp_path / "out", encoder)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".tmp" or path.is_dir()) == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{report.after['text_to_image']['mrr']:.3f}" in card
    curve = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert {"step", "lr", "loss"} <= set(curve[1])
    assert "text_to_image mrr" in curve[0]

    before, after = state(base), state(tmp_path / "out")
    moved = {name for name, value in after.items() if not torch.equal(value, before.get(name, torch.zeros(0)))}
    first = {"clip": "transformer.resblocks.0.", "siglip": "text.transformer.encoder.layer.0."}[kind]
    last = first.replace(".0.", ".1.")
    ends = {"clip": {"text_projection", "visual.proj"}, "siglip": {"text.proj.weight", "visual.proj"}}[kind]
    assert ends <= moved
    assert any(name.startswith(first) for name in moved) == (how == "full")
    assert any(name.startswith(last) for name in moved) == (how != "probe")
    assert any(name.startswith("visual.transformer.resblocks.0.") for name in moved) == (how == "full")
    assert not any(name.endswith(("token_embedding.weight", "word_embeddings.weight")) for name in moved)
    if how == "probe":
        assert moved - {"logit_scale", "logit_bias"} == ends


def same_as_open_clip(folder: Path, encoder: Any) -> None:
    """Stock open_clip makes the same of the folder."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    picture = Image.new("RGB", (40, 50), COLOURS["pink"])
    with torch.inference_mode():
        row = model.encode_image(preprocess(picture)[None], normalize=True).numpy()
        text = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a pink thing"]), normalize=True)
    np.testing.assert_allclose(encoder.encode_images([encoder.preprocess(picture)]), row, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(["a pink thing"]), text.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"hard_negatives": 2}, {"how": "probe", "lr": 0.05, "hard_negatives": 1, "epochs": 40}]
)
def test_an_interrupted_run_ends_as_an_unbroken_one_bit_for_bit(
    siglip: Path, captions: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"epochs": 4, **options}
    whole = tune(captions, tmp_path / "whole", siglip, **options)

    def stop(progress: Any) -> None:
        if progress.step == 5:  # in the middle of an epoch
            signal.raise_signal(signal.SIGINT)

    broken = tune(captions, tmp_path / "broken", siglip, observe=stop, **options)
    assert (broken.ending, broken.steps, broken.model) == ("interrupted", 5, None)
    with pytest.raises(ModelUnavailable):
        load_encoder(f"local-dir:{tmp_path / 'broken'}", device="cpu")
    with pytest.raises(UsageError, match="lr was"):
        tune(captions, tmp_path / "broken", siglip, **options | {"lr": 0.01})
    steps: list[int] = []
    again = tune(captions, tmp_path / "broken", siglip, observe=lambda p: steps.append(p.step), **options)
    assert steps[0] == 6
    assert again.identity == whole.identity
    assert (tmp_path / "broken" / "curves.json").read_text() == (tmp_path / "whole" / "curves.json").read_text()
    other = tune(captions, tmp_path / "other", siglip, seed=1, **options)
    assert other.identity != whole.identity


def test_the_share_of_the_base_is_what_is_asked(clip: Path, captions: Path, tmp_path: Path) -> None:
    alone = tune(captions, tmp_path / "alone", clip, average=1.0, epochs=2, holdout=0.0)
    half = tune(captions, tmp_path / "half", clip, epochs=2, holdout=0.0)
    assert (alone.average, half.average, half.before, half.after) == (1.0, 0.5, {}, {})
    base, tuned, mixed = state(clip), state(tmp_path / "alone"), state(tmp_path / "half")
    for name, value in mixed.items():
        torch.testing.assert_close(value, (base[name] + tuned[name]) / 2, msg=name)


def test_a_softmax_model_can_take_the_sigmoid_loss(clip: Path, captions: Path, tmp_path: Path) -> None:
    report = tune(captions, tmp_path / "out", clip, loss="sigmoid")
    assert report.after["text_to_image"]["mrr"] > report.before["text_to_image"]["mrr"]
    assert "logit_bias" in state(tmp_path / "out")
    load_encoder(report.model, device="cpu")


def test_the_index_takes_the_result(clip: Path, captions: Path, tmp_path: Path) -> None:
    from mmsearch import Index

    report = tune(captions, tmp_path / "tuned", clip)
    with Index(tmp_path / "index", model=f"local-dir:{clip}", device="cpu") as index:
        index.add(captions.parent / "red0.png", captions.parent / "blue0.png")
        index.reindex(report.model)
        assert index.info().model == report.model
        assert len(index.search("a red thing").hits) == 2


def test_the_captions_of_an_index_are_learned(captions: Path, tmp_path: Path) -> None:
    from mmsearch import Index
    from mmsearch.indexers.train.pairs import read_pairs

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("red0", "blue0", "green0", "pink0"):
        (folder / f"{name}.png").write_bytes((captions.parent / f"{name}.png").read_bytes())
    (folder / "red0.txt").write_text("a red thing beside the picture")
    (folder / "loose.txt").write_text("a text of no picture")
    (folder / "rows.csv").write_text("image,caption\nblue0.png,a blue row\nblue0.png,a second row\n")
    with Index(tmp_path / "index", model="starter") as index:
        index.add(folder, folder / "rows.csv")
    pairs = read_pairs(tmp_path / "index", holdout=0.0)
    found = {p.name: {pairs.texts[t] for t in rows} for p, rows in zip(pairs.paths, pairs.captions, strict=True)}
    assert found == {
        "red0.png": {"a red thing beside the picture"},
        "blue0.png": {"a blue row", "a second row"},
    }
    with Index(tmp_path / "index", model="starter") as index:
        index.tag("green", "other", min_relevance=0.0)
    tagged = read_pairs(tmp_path / "index", holdout=0.0)
    assert {path.name for path in tagged.paths} > {"red0.png", "blue0.png"}
    assert any("tags and no captions" in notice for notice in tagged.notices)


def test_an_index_is_trained_with_its_own_model(clip: Path, captions: Path, tmp_path: Path) -> None:
    import mmsearch

    with mmsearch.Index(tmp_path / "index", model=f"local-dir:{clip}", device="cpu") as index:
        index.add(captions)
    tuning = mmsearch.Tuning(batch_size=16, epochs=1, holdout=0.0)
    source, out = str(tmp_path / "index"), str(tmp_path / "out")
    report = mmsearch.finetune(source, out, model="auto", tuning=tuning, device="cpu", threads=1)
    assert isinstance(report, mmsearch.TrainReport)
    assert (report.base, report.pictures, report.captions) == (f"local-dir:{clip}", 48, 8)


def test_hard_negatives_of_the_first_epoch_come_out_of_the_index(
    clip: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch import Index
    from mmsearch.indexers.train.pairs import read_pairs, stored_images
    from mmsearch.indexers.train.tuning import Embedder
    from mmsearch.indexers.train.views import Views

    with Index(tmp_path / "index", model=f"local-dir:{clip}", device="cpu") as index:
        index.add(captions)
    pairs = read_pairs(tmp_path / "index", holdout=0.25)
    encoder = load_encoder(f"local-dir:{clip}", device="cpu")
    assert isinstance(encoder, OpenClipEncoder)
    stored = stored_images(tmp_path / "index", pairs, [encoder.identity])
    embedder = Embedder(encoder, pairs, Views(pairs.paths, encoder.image_size, encoder.settings))
    np.testing.assert_allclose(stored, embedder.images(pairs.train), atol=2e-3)
    assert stored_images(tmp_path / "index", pairs, ["another model"]) is None

    def embed(*arguments: Any) -> None:
        raise AssertionError("pictures were embedded")

    monkeypatch.setattr(Embedder, "images", embed)
    tuning = Tuning(batch_size=16, epochs=1, holdout=0.0, hard_negatives=2)
    report = finetune(tmp_path / "index", tmp_path / "out", tuning=tuning, device="cpu", threads=1)
    assert report.ending == "done"
    with pytest.raises(AssertionError, match="pictures were embedded"):
        tune(captions, tmp_path / "without", clip, epochs=1, holdout=0.0, hard_negatives=2)


def test_a_bare_index_says_how_pictures_get_captions(clip: Path, captions: Path, tmp_path: Path) -> None:
    from mmsearch import Index
    from mmsearch.indexers.train.pairs import read_pairs

    with Index(tmp_path / "index", model=f"local-dir:{clip}", device="cpu") as index:
        index.add(captions.parent / "red0.png")
    with pytest.raises(UsageError, match=r"no picture of .* has a caption or a tag"):
        read_pairs(tmp_path / "index")


def rows(folder: Path, lines: list[str], captions: Path) -> Path:
    for path in captions.parent.glob("*0.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "c.csv").write_text("\n".join(["image,caption", *lines]))
    return folder / "c.csv"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["red0.png,a red thing"], r"there is 1: it needs at least 2 different pictures"),
        (["red0.png,a red thing", "gone.png,a lost thing"], r"there is 1: it needs at least 2"),
        (["red0.png,the same", "blue0.png,The  same", "pink0.png,the same"], r"all 3 pictures have the same captions"),
        (["red0.png,", "blue0.png, "], r"all 2 are empty"),
        (["gone.png,a thing", "lost.png,another"], r"none of the 2 pictures .* is there \(gone.png, lost.png\)"),
        (["red0.png,a red thing", "blue0.png,a blue thing"], r"too few pictures: 2 in all"),
    ],
)
def test_pairs_that_teach_nothing_are_refused(
    lines: list[str], said: str, captions: Path, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        tune(rows(tmp_path, lines, captions), tmp_path / "out", clip)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_used_is_left_out_and_said(captions: Path, clip: Path, tmp_path: Path) -> None:
    lines = [f"{name}0.png,a {name} thing" for name in COLOURS]
    lines += ["gone.png,a lost thing", "red0.png,", "broken.png,a broken thing"]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    report = tune(rows(tmp_path, lines, captions), tmp_path / "out", clip, holdout=0.0, epochs=1, batch_size=8)
    assert report.pictures == 8
    said = " | ".join(report.notices)
    assert "1 pictures are not there: gone.png" in said
    assert "1 captions are empty" in said
    assert "1 pictures cannot be read" in said and "broken.png" in said


def test_copies_stay_on_one_side(captions: Path, tmp_path: Path) -> None:
    from mmsearch.indexers.train.pairs import read_pairs

    lines = [f"{name}0.png,a {name} thing" for name in COLOURS]
    for name in COLOURS:
        (tmp_path / f"copy-{name}.png").write_bytes((captions.parent / f"{name}0.png").read_bytes())
        lines.append(f"copy-{name}.png,a copied {name} thing")
    pairs = read_pairs(rows(tmp_path, lines, captions), holdout=0.5, seed=3)
    assert len(pairs.paths) == 8 == len(pairs.train) + len(pairs.held)
    assert all(len(one) == 2 for one in pairs.captions)
    assert set(pairs.train).isdisjoint(pairs.held)
    again = read_pairs(tmp_path / "c.csv", holdout=0.5, seed=3)
    assert again.digest == pairs.digest
    assert read_pairs(tmp_path / "c.csv", holdout=0.5, seed=4).held.tolist() != pairs.held.tolist()


def test_a_loss_that_is_no_number_keeps_the_last_good_weights(
    clip: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.indexers.train.tuning import TowerTask

    inner = TowerTask.losses

    def broken(self: Any, step: int, rng: Any) -> Any:
        found = inner(self, step, rng)
        return {"loss": found["loss"] * float("nan")} if step == bad else found

    monkeypatch.setattr(TowerTask, "losses", broken)
    bad = 20
    report = tune(captions, tmp_path / "late", clip)
    assert (report.ending, report.steps) == ("diverged", 20)
    assert 0 < report.best_step <= 20
    assert any("stopped being a number after step 20" in notice for notice in report.notices)
    assert all(bool(value.isfinite().all()) for value in state(tmp_path / "late").values())
    assert report.after["text_to_image"]["mrr"] > report.before["text_to_image"]["mrr"]
    bad = 0
    with pytest.raises(TrainingFailed, match="stopped being a number after step 0; a lower --lr may help; no model"):
        tune(captions, tmp_path / "early", clip)
    assert [path.name for path in (tmp_path / "early").iterdir()] == ["curves.json"]


def test_weights_that_do_worse_than_the_base_are_not_written(clip: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="no weights did better than the base's"):
        tune(captions, tmp_path / "out", clip, lr=1e-12, epochs=2)
    assert not (tmp_path / "out" / cache.CONFIG).exists()


def test_a_full_disk_at_the_end_can_be_gone_on_from(
    clip: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.indexers.train import saved

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saved, "save_file", full)
        with pytest.raises(TrainingFailed, match="No space left on device; run it again to go on"):
            tune(captions, tmp_path / "out", clip, epochs=3)
    assert not (tmp_path / "out" / cache.CONFIG).exists()
    steps: list[int] = []
    report = tune(captions, tmp_path / "out", clip, epochs=3, observe=lambda p: steps.append(p.step))
    assert steps == []
    assert report.identity == tune(captions, tmp_path / "unbroken", clip, epochs=3).identity


def test_a_folder_with_something_in_it_is_left_alone(clip: Path, captions: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    for name, said in (("file", "is a file"), ("full", "holds something else")):
        with pytest.raises(UsageError, match=said):
            tune(captions, tmp_path / name, clip)
    with pytest.raises(UsageError, match="holds a model already"):
        tune(captions, clip, clip)


@pytest.mark.parametrize(
    "options",
    [
        {"average": 0.0},
        {"average": 1.5},
        {"holdout": 1.0},
        {"batch_size": 1},
        {"epochs": 0},
        {"steps": 5},
        {"lr": 0.0},
        {"hard_negatives": -1},
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any], clip: Path, captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--|batch"):
        tune(captions, tmp_path / "out", clip, **options)


def test_a_model_that_is_none_of_open_clip_is_refused(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only models of open_clip"):
        finetune(captions, tmp_path / "out", model="fake")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cuda_learns_in_bfloat16_and_goes_on(
    kind: str, captions: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = f"local-dir:{request.getfixturevalue(kind)}"

    def stop(progress: Any) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGINT)

    tuning = Tuning(**QUICK, hard_negatives=1)
    first = finetune(captions, tmp_path / "out", model=model, tuning=tuning, device="cuda", observe=stop)
    assert (first.ending, first.steps) == ("interrupted", 5)
    report = finetune(captions, tmp_path / "out", model=model, tuning=tuning, device="cuda")
    for way in ("text_to_image", "image_to_text"):
        assert report.after[way]["mrr"] > report.before[way]["mrr"] + 0.1
    here = load_encoder(report.model, device="cpu")  # type: ignore[arg-type]
    assert here.identity == report.identity
    assert {str(value.dtype) for value in state(tmp_path / "out").values()} <= {"torch.float32", "torch.int64"}
