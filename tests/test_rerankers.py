"""The two rerankers on tiny checkpoints of the true classes, against transformers and sentence-transformers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable, UsageError
from mmsearch.retrieval.rerank import RerankCandidate, Reranker
from mmsearch.retrieval.rerank.blip import BlipReranker
from mmsearch.retrieval.rerank.cross_encoder import CrossEncoderReranker
from tests.rerank_kit import PIECES, save_blip, save_cross_encoder, save_tokenizer, torch, transformers

BLIP = "Salesforce/blip-itm-base-coco"
CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L6-v2"
QUERY = "a red dog runs"
TEXTS = ["the cat sleeps on a sofa.", "dog", "a red dog runs on the green sofa", "猫", "the dogs " * 40]

Loads = tuple[Callable[..., Any], Callable[..., Path]]
"""A reranker's class, and what saves a folder for it."""

KINDS: dict[str, Loads] = {
    "blip": (BlipReranker, save_blip),
    "cross-encoder": (CrossEncoderReranker, save_cross_encoder),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind) for kind, (_, save) in KINDS.items()}


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Noise of several shapes, and a photo that lies on its side."""
    random = np.random.default_rng(3)
    found = []
    for number, (width, height) in enumerate([(40, 32), (64, 64), (17, 90), (50, 33)]):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        found.append(tmp_path / f"{number}.png")
        image.save(found[-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    found.append(tmp_path / "turned.png")
    Image.open(found[0]).save(found[-1], exif=exif)
    return found


def of_pictures(paths: list[Path]) -> list[RerankCandidate]:
    return [RerankCandidate(number, "image", None, path) for number, path in enumerate(paths)]


def of_texts(texts: list[str]) -> list[RerankCandidate]:
    return [RerankCandidate(number, "text", text, None) for number, text in enumerate(texts)]


def blip_directly(folder: Path, query: str, images: list[Image.Image]) -> Any:
    """Log-odds of "match" from the model's own call, with its own processor."""
    from transformers.models.blip import image_processing_blip, image_processing_pil_blip

    assert image_processing_blip.BlipImageProcessor  # the same on torchvision, which rounds otherwise
    processor = image_processing_pil_blip.BlipImageProcessorPil.from_pretrained(folder)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    ids = tokenizer([query] * len(images), return_tensors="pt", truncation=True, max_length=16)
    with torch.inference_mode():
        scores = model(input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=pixels).itm_score
    assert scores.shape == (len(images), 2)
    return pixels.numpy(), scores.softmax(-1)[:, 1].logit().numpy()


def cross_encoder_directly(folder: Path, pairs: list[tuple[str, str]]) -> Any:
    import sentence_transformers

    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    return model.predict(pairs, show_progress_bar=False)


@pytest.fixture
def candidates(photos: list[Path]) -> dict[str, list[RerankCandidate]]:
    return {"blip": of_pictures(photos), "cross-encoder": of_texts(TEXTS)}


# --- scores ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [QUERY, "", "cat " * 100, "nonsense !"])
def test_blip_equals_transformers_called_directly(folders: dict[str, Path], photos: list[Path], query: str) -> None:
    reranker = BlipReranker("tiny", folders["blip"], device="cpu")
    images = [Image.open(path).convert("RGB") for path in photos]
    images[-1] = images[-1].transpose(Image.Transpose.ROTATE_270)  # upright, as its EXIF wants it
    pixels, expected = blip_directly(folders["blip"], query, images)
    for image, array in zip(images, pixels, strict=True):
        mine = reranker.preprocess(image)
        assert mine.dtype == np.float32
        np.testing.assert_array_equal(mine, array)
    scores = reranker.score(query, of_pictures(photos))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.01  # or else equality would say little
    assert (reranker.image_size, reranker.max_tokens) == ((32, 32), 16)


@pytest.mark.parametrize("query", [QUERY, "", "cat " * 100])
def test_a_cross_encoder_equals_sentence_transformers(folders: dict[str, Path], query: str) -> None:
    reranker = CrossEncoderReranker("tiny", folders["cross-encoder"], device="cpu")
    scores = reranker.score(query, of_texts(TEXTS))
    expected = cross_encoder_directly(folders["cross-encoder"], [(query, text) for text in TEXTS])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 0.01
    assert reranker.max_tokens == 24


@pytest.mark.parametrize("kind", KINDS)
def test_scores_depend_on_neither_batches_nor_order(
    kind: str, folders: dict[str, Path], candidates: dict[str, list[RerankCandidate]]
) -> None:
    load, given = KINDS[kind][0], candidates[kind]
    expected = load("tiny", folders[kind], device="cpu").score(QUERY, given)
    assert len(set(expected.round(4))) == len(given)
    for batch_size in (1, 2, 100):
        reranker: Reranker = load("tiny", folders[kind], device="cpu", batch_size=batch_size)
        assert reranker.batch_size == batch_size
        np.testing.assert_allclose(reranker.score(QUERY, given), expected, atol=1e-5)
        np.testing.assert_allclose(reranker.score(QUERY, given[::-1]), expected[::-1], atol=1e-5)
    assert reranker.score(QUERY, []).shape == (0,)
    assert (np.abs(reranker.score("the cat sleeps", given) - expected) > 1e-4).any()  # the query counts


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_disturb_each_other(
    kind: str, folders: dict[str, Path], candidates: dict[str, list[RerankCandidate]]
) -> None:
    reranker = KINDS[kind][0]("tiny", folders[kind], device="cpu")
    queries = ["a cat", "the red dog " * 30, "", "猫"] * 4
    alone = [reranker.score(query, candidates[kind]) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        for mine, together in zip(
            alone, pool.map(lambda query: reranker.score(query, candidates[kind]), queries), strict=True
        ):
            np.testing.assert_allclose(mine, together, atol=1e-5)


def test_a_picture_that_cannot_be_read_is_not_scored(
    folders: dict[str, Path], photos: list[Path], tmp_path: Path
) -> None:
    reranker = BlipReranker("tiny", folders["blip"], device="cpu", batch_size=2)
    (tmp_path / "noise.jpg").write_bytes(b"no picture")
    (tmp_path / "half.png").write_bytes(photos[0].read_bytes()[:-200])
    odd = [tmp_path / "noise.jpg", tmp_path / "half.png", tmp_path / "gone.png", tmp_path, photos[0]]
    given = [*of_pictures(odd), RerankCandidate(8, "image", "a dog", None), RerankCandidate(9, "text", "a dog", None)]
    scores = reranker.score(QUERY, given)
    assert np.isnan(scores).tolist() == [True] * 4 + [False] + [True] * 2
    np.testing.assert_allclose(scores[4], reranker.score(QUERY, of_pictures(photos[:1]))[0], atol=1e-5)


def test_pictures_are_decoded_as_they_are_indexed(folders: dict[str, Path], tmp_path: Path) -> None:
    # Palette, transparency (shown on white) and grey of one look.
    reranker = BlipReranker("tiny", folders["blip"], device="cpu")
    grey = Image.new("RGB", (40, 40), "white")
    grey.paste((90, 90, 90), (8, 8, 30, 30))
    grey.save(tmp_path / "plain.png")
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((90, 90, 90, 255), (8, 8, 30, 30))
    clear.save(tmp_path / "clear.png")
    grey.quantize(4).save(tmp_path / "palette.png")
    grey.convert("L").save(tmp_path / "grey.png")
    names = ("plain.png", "clear.png", "palette.png", "grey.png")
    scores = reranker.score(QUERY, of_pictures([tmp_path / name for name in names]))
    np.testing.assert_allclose(scores, scores[0], atol=1e-5)


def test_a_cross_encoder_reads_captions_and_skips_what_has_none(folders: dict[str, Path], photos: list[Path]) -> None:
    reranker = CrossEncoderReranker("tiny", folders["cross-encoder"], device="cpu")
    given = [
        RerankCandidate(1, "text", "the cat sleeps", None),
        RerankCandidate(2, "image", None, photos[0]),
        RerankCandidate(3, "image", "the cat sleeps", photos[0]),
        RerankCandidate(4, "text", "", None),
    ]
    scores = reranker.score(QUERY, given)
    assert np.isnan(scores).tolist() == [False, True, False, True]
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-5)
    assert np.isnan(reranker.score(QUERY, given[1:2])).all()
    assert (reranker.modalities, BlipReranker.modalities) == ({"text", "image"}, {"image"})


@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision_is_asked_for_and_close(
    kind: str, folders: dict[str, Path], candidates: dict[str, list[RerankCandidate]]
) -> None:
    load = KINDS[kind][0]
    exact = load("tiny", folders[kind], device="cpu")
    quick = load("tiny", folders[kind], device="cpu", precision="bf16")
    assert (exact.precision, quick.precision, exact.device) == ("fp32", "bf16", "cpu")
    scores, expected = quick.score(QUERY, candidates[kind]), exact.score(QUERY, candidates[kind])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=0.1)
    assert (scores != expected).any()  # it was in use
    assert quick.identity == exact.identity


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_both_formats_of_weights_give_the_same_scores(
    kind: str, folders: dict[str, Path], tmp_path: Path, candidates: dict[str, list[RerankCandidate]]
) -> None:
    load, save = KINDS[kind]
    pickled = load("tiny", save(tmp_path / "bin", weights="pytorch_model.bin"), device="cpu")
    safe = load("tiny", folders[kind], device="cpu")
    np.testing.assert_array_equal(pickled.score(QUERY, candidates[kind]), safe.score(QUERY, candidates[kind]))
    # Where both are, transformers takes the safe one, and so does the identity.
    shutil.copy(folders[kind] / "model.safetensors", tmp_path / "bin")
    assert load("tiny", tmp_path / "bin", device="cpu").identity == safe.identity != pickled.identity


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_of_weights_configuration_and_tokenizer(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    load, save = KINDS[kind]
    first = load("tiny", folders[kind], device="cpu").identity

    def changed(name: str, change: Callable[[Path], object]) -> Any:
        folder = Path(shutil.copytree(folders[kind], tmp_path / name))
        change(folder)
        return load(name, folder, device="cpu").identity

    def edit(folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    assert first.startswith({"blip": "blip-itm-", "cross-encoder": "cross-encoder-"}[kind])
    assert changed("moved", lambda folder: None) == first
    assert changed("saved", lambda folder: edit(folder, transformers_version="9", _name_or_path="elsewhere")) == first
    assert changed("config", lambda folder: edit(folder, initializer_factor=2.0)) != first
    assert changed("words", lambda folder: save_tokenizer(folder, [*PIECES[:-1], "cow"])) != first
    assert load("tiny", save(tmp_path / "weights", seed=8), device="cpu").identity != first


def test_blip_identity_is_of_its_preprocess_too(folders: dict[str, Path], tmp_path: Path) -> None:
    def identity(name: str, **preprocess: Any) -> str:
        return BlipReranker("tiny", save_blip(tmp_path / name, **preprocess), device="cpu").identity

    first = BlipReranker("tiny", folders["blip"], device="cpu").identity
    assert identity("defaults", size=32, resample=3, image_mean=[0.48145466, 0.4578275, 0.40821073]) == first
    assert identity("bilinear", resample=2) != first
    assert identity("mean", image_mean=[0.5] * 3) != first


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _cut_state(folder: Path, name: str) -> None:
    """Weights without those whose name begins so."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if not key.startswith(name)}
    assert len(kept) < len(state)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "does not name its class"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors or pytorch_model.bin"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "does not load"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "does not load.*download it again"),
        (lambda folder: _truncate(folder / "model.safetensors"), "does not load.*download it again"),
    ],
)
def test_a_damaged_folder_is_a_one_line_error(
    kind: str, damage: Callable[[Path], object], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelUnavailable, match=said) as caught:
        KINDS[kind][0]("tiny", folder, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("kind", "head"), [("blip", "itm_head"), ("cross-encoder", "classifier")])
def test_a_head_that_would_be_random_is_refused(kind: str, head: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[kind], tmp_path / "model"))
    _cut_state(folder, head)
    with pytest.raises(ModelUnavailable, match=rf"missing, {head}\.bias for one"):
        KINDS[kind][0]("tiny", folder, device="cpu")
    pickled = save_cross_encoder(tmp_path / "pickled", weights="pytorch_model.bin")
    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    torch.save(
        {name: value for name, value in state.items() if "classifier" not in name}, pickled / "pytorch_model.bin"
    )
    with pytest.raises(ModelUnavailable, match=r"missing, classifier\.bias for one"):
        CrossEncoderReranker("tiny", pickled, device="cpu")


def test_models_of_another_kind_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=f"BertForSequenceClassification, but.*such as {BLIP}"):
        BlipReranker("tiny", folders["cross-encoder"], device="cpu")
    with pytest.raises(ModelUnavailable, match=f"BlipForImageTextRetrieval, but.*such as {CROSS_ENCODER}"):
        CrossEncoderReranker("tiny", folders["blip"], device="cpu")
    with pytest.raises(ModelUnavailable, match="BertModel, but"):
        CrossEncoderReranker("tiny", save_cross_encoder(tmp_path / "body", kind="body"), device="cpu")
    with pytest.raises(ModelUnavailable, match=r"classifier of 3 labels; .* one score"):
        CrossEncoderReranker("tiny", save_cross_encoder(tmp_path / "three", labels=3), device="cpu")


@pytest.mark.parametrize(
    ("preprocess", "said"),
    [
        ({"size": {"height": 64, "width": 64}}, r"resizes to \(64, 64\), but the model reads 32 x 32"),
        ({"size": {"shortest_edge": 32}}, "no height and width"),
        ({"do_normalize": False}, "leaves out a step"),
    ],
)
def test_a_preprocess_that_is_not_blips_is_refused(preprocess: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        BlipReranker("tiny", save_blip(tmp_path / "model", **preprocess), device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_that_runs_code_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    folder = Path(shutil.copytree(folders[kind], tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="does not load"):
        KINDS[kind][0]("tiny", folder, device="cpu")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_devices_and_precisions_that_are_not_here(kind: str, folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="cpu"):
        KINDS[kind][0]("tiny", folders[kind], device="cuda:99")
    with pytest.raises(UsageError, match="fp32, bf16, fp16"):
        KINDS[kind][0]("tiny", folders[kind], device="cpu", precision="int3")


def test_a_missing_package_names_the_extra(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mmsearch\[rerank\]'"):
        CrossEncoderReranker("tiny", folders["cross-encoder"], device="cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="pip install transformers"):
        BlipReranker("tiny", folders["blip"], device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_loading_prints_nothing_and_leaves_transformers_as_it_was(
    kind: str, folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    KINDS[kind][0]("tiny", folders[kind], device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.network
@pytest.mark.parametrize(("kind", "repo"), [("blip", BLIP), ("cross-encoder", CROSS_ENCODER)])
def test_the_public_models_load(kind: str, repo: str, tmp_path: Path, draw: Callable[..., Path]) -> None:
    from huggingface_hub import snapshot_download

    files = ["config.json", "model.safetensors", "tokenizer*", "special*", "vocab.txt", "preprocessor_config.json"]
    folder = Path(
        snapshot_download(repo, endpoint="https://huggingface.co", allow_patterns=files, local_dir=tmp_path / "model")
    )
    reranker = KINDS[kind][0](repo, folder, device="cpu")
    pictures = of_pictures([draw(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue")])
    texts = of_texts(["a red picture", "how to bake bread"])
    red, other = reranker.score("a red picture", pictures if kind == "blip" else texts)
    assert red > other
