"""`starter-joint`: tokens of pictures, scores of texts with them, and the same weights in torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mmsearch
from mmsearch.retrieval.encoders.starter import FOLDER, StarterEncoder, Weights
from mmsearch.retrieval.media import load_image
from mmsearch.retrieval.rerank import RerankCandidate
from mmsearch.retrieval.rerank.models import list_rerankers, load_reranker
from mmsearch.retrieval.rerank.starter_joint import StarterJointReranker

QUERY = "a red square"


@pytest.fixture(scope="module")
def encoder() -> StarterEncoder:
    return StarterEncoder()


@pytest.fixture
def paths(pictures: Path) -> list[Path]:
    return sorted(path for path in pictures.rglob("*") if path.suffix in (".png", ".jpg", ".webp", ".gif"))


def pixels(encoder: StarterEncoder, paths: list[Path]) -> list[NDArray[np.uint8]]:
    size = encoder.image_size
    return [encoder.preprocess(load_image(path.read_bytes(), target=size, name=path.name).image) for path in paths]


def test_tokens_come_with_the_same_embeddings(encoder: StarterEncoder, paths: list[Path]) -> None:
    arrays = pixels(encoder, paths)
    embeddings, tokens = encoder.encode_image_tokens(arrays)
    np.testing.assert_array_equal(embeddings, encoder.encode_images(arrays))
    assert tokens.shape == (len(paths), *encoder.token_shape)
    assert tokens.dtype == np.int8
    assert tokens[0].size <= 32 * 128
    again = np.concatenate([encoder.encode_image_tokens([one])[1] for one in arrays])
    assert np.abs(tokens.astype(int) - again).max() <= 1
    empty = encoder.encode_image_tokens([])
    assert [part.shape for part in empty] == [(0, encoder.dim), (0, *encoder.token_shape)]


def test_states_come_with_the_same_embedding(encoder: StarterEncoder) -> None:
    embedding, states = encoder.encode_text_states("一只猫坐在沙发上")
    np.testing.assert_allclose(embedding, encoder.encode_texts(["一只猫坐在沙发上"])[0], atol=1e-5)
    assert states.shape == (len(encoder.tokenizer.encode("一只猫坐在沙发上")), 384)


def test_the_embedding_survives_its_eight_bits(encoder: StarterEncoder, paths: list[Path]) -> None:
    embeddings, tokens = encoder.encode_image_tokens(pixels(encoder, paths))
    embedding, states = encoder.encode_text_states(QUERY)
    parts, scores = encoder.joint.parts(states, embedding, tokens)
    np.testing.assert_allclose(parts[:, 0], embeddings @ embedding, atol=3e-3)
    np.testing.assert_array_equal(scores, encoder.joint.score(states, embedding, tokens))


def test_the_graphs_compute_what_was_trained(encoder: StarterEncoder, paths: list[Path]) -> None:
    """The torch model with the weights of the bundle, against ONNX Runtime."""
    torch = pytest.importorskip("torch")
    from mmsearch.indexers.train.joint.model import JointModel, Shape

    weights = Weights(FOLDER / "joint" / "weights.safetensors")
    model = JointModel(Shape(), torch.zeros(1280), torch.ones(1280)).eval()
    state = {name: torch.from_numpy(weights[name].astype(np.float32)) for name in weights}
    left = model.load_state_dict(state, strict=False)
    assert set(left.missing_keys) == {"mean", "std", "late_scale"}
    assert not left.unexpected_keys

    _, cells = encoder.graphs.get("cells.onnx").run(None, {"pixels": np.stack(pixels(encoder, paths))})
    embeddings, tokens = encoder.encode_image_tokens(pixels(encoder, paths))
    embedding, states = encoder.encode_text_states("two dogs run behind a man in the snow")
    parts, _ = encoder.joint.parts(states, embedding, tokens)
    with torch.inference_mode():
        made = model.compress(torch.from_numpy(cells))
        assert np.abs(made.numpy() * 127 - tokens[:, :25]).max() <= 1
        kept = torch.from_numpy(tokens[:, :25].astype(np.float32) / 127)
        whole = tokens[:, 25:].reshape(len(tokens), -1).astype(np.float32)
        whole /= np.linalg.norm(whole, axis=1, keepdims=True)
        text, mask = torch.from_numpy(states)[None], torch.ones(1, len(states), dtype=torch.bool)
        late = model.late(*model.pieces(text, mask), kept)[0]
        pictures = model.picture(kept, torch.from_numpy(whole))
        n = len(paths)
        cross = model.cross(text.expand(n, -1, -1), mask.expand(n, -1), pictures, torch.arange(n))
    np.testing.assert_allclose(parts[:, 1], late.numpy(), atol=1e-4)
    np.testing.assert_allclose(parts[:, 2], cross.numpy(), atol=1e-3)
    np.testing.assert_allclose(embeddings @ embedding, whole @ embedding, atol=3e-3)


def test_a_picture_without_tokens_is_read_from_its_file(encoder: StarterEncoder, paths: list[Path]) -> None:
    reranker = StarterJointReranker(encoder=encoder)
    _, tokens = encoder.encode_image_tokens(pixels(encoder, paths))
    stored = [RerankCandidate(i, "image", None, None, row) for i, row in enumerate(tokens)]
    read = [RerankCandidate(i, "image", None, path) for i, path in enumerate(paths)]
    mixed = [one if i % 2 else other for i, (one, other) in enumerate(zip(stored, read, strict=True))]
    expected = reranker.score(QUERY, stored)
    np.testing.assert_allclose(reranker.score(QUERY, read), expected, atol=1e-3)
    np.testing.assert_allclose(reranker.score(QUERY, mixed), expected, atol=1e-3)


def test_what_cannot_be_scored_is_no_number(encoder: StarterEncoder, tmp_path: Path, paths: list[Path]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    scores = StarterJointReranker(encoder=encoder).score(
        QUERY,
        [
            RerankCandidate(1, "text", "a red square", None),
            RerankCandidate(2, "image", None, tmp_path / "gone.png"),
            RerankCandidate(3, "image", None, broken),
            RerankCandidate(4, "image", None, None),
            RerankCandidate(5, "image", None, paths[0]),
        ],
    )
    assert np.isnan(scores).tolist() == [True, True, True, True, False]


def test_long_and_empty_queries_are_read(encoder: StarterEncoder, paths: list[Path]) -> None:
    reranker = StarterJointReranker(encoder=encoder)
    for query in ("", "dog " * 2000, "🐕", "\x00"):
        assert np.isfinite(reranker.score(query, [RerankCandidate(1, "image", None, paths[0])])).all()


def test_the_bundle_is_small_and_named_by_its_content() -> None:
    files = sorted((FOLDER / "joint").glob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) < 24 * 2**20
    about = json.loads((FOLDER / "joint" / "model.json").read_text("utf-8"))
    digest = hashlib.sha256()
    for name in ("weights.safetensors", "tokens.onnx", "score.onnx"):
        digest.update((FOLDER / "joint" / name).read_bytes())
    assert about["identity"] == f"starter-joint-score-{digest.hexdigest()[:32]}"


def test_it_is_listed_and_loaded_by_name() -> None:
    (status,) = [one for one in list_rerankers(offline=True) if one.name == "starter-joint"]
    assert (status.state, status.download_bytes, status.why) == ("bundled", 0, "")
    reranker = load_reranker("starter-joint", offline=True)
    assert (reranker.name, reranker.modalities) == ("starter-joint", frozenset({"image"}))


def test_a_search_reads_the_tokens_of_the_index(pictures: Path, tmp_path: Path) -> None:
    with mmsearch.open(tmp_path / "index", model="starter") as index:
        index.add(pictures)
        for path in pictures.rglob("*.*g"):
            path.unlink()  # nothing but the tokens is left
        plain = index.search("a red square", k=6, modality="image")
        hits = index.search("a red square", k=6, modality="image", rerank="starter-joint")
    assert {hit.item_id for hit in hits} == {hit.item_id for hit in plain}
    assert {hit.rank_before for hit in hits} == set(range(1, 7))


def test_an_index_without_tokens_gets_them_from_the_next_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(StarterEncoder, "token_identity", None)
        older.setattr("mmsearch.retrieval.encoders.models.token_identity", lambda name: None)
        with mmsearch.open(tmp_path / "index", model="starter") as index:
            index.add(pictures)
    segments = tmp_path / "index" / "segments"
    assert not list(segments.glob("tokens-*"))
    with mmsearch.open(tmp_path / "index") as index:
        before = index.search(QUERY, k=6, modality="image", rerank="starter-joint")
        index.add()
        assert len(list(segments.glob("tokens-*"))) == 1
        after = index.search(QUERY, k=6, modality="image", rerank="starter-joint")
    assert [hit.item_id for hit in after] == [hit.item_id for hit in before]


def test_the_command_needs_no_torch(pictures: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    with mmsearch.open(index, model="starter") as opened:
        opened.add(pictures)
    code = (
        "import sys; from mmsearch.cli import main\n"
        f"sys.argv = ['mmsearch', 'query', 'a red square', '--index', {str(index)!r}, '--rerank', 'starter-joint']\n"
        "try: main()\n"
        "except SystemExit as left: print(left.code)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "False False" in done.stdout, done.stderr
