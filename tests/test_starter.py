"""The bundled starter model: its tokenizer, its two towers, and the same weights in torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsearch.retrieval.encoders.export import export_open_clip
from mmsearch.retrieval.encoders.starter import FOLDER, StarterEncoder, Weights, identity
from mmsearch.retrieval.encoders.starter.tokenizer import EOS, UNK, normalise
from mmsearch.retrieval.errors import UsageError

TEXTS = [
    "a cat on a sofa",
    "一只猫坐在沙发上",
    "Ein Mädchen mit einem roten Ball läuft über die Straße.",
    "犬が緑の芝生の上を走っている",
    "Собака бежит по траве",
    "naïve café — ½ ﬁne…",
    "tabs\tand\nnew lines  and   spaces ",
    "emoji 🐕 and a rare \U00010348 letter",
    "x" * 90,
]


@pytest.fixture(scope="module")
def encoder() -> StarterEncoder:
    return StarterEncoder()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_open_clip(tmp_path_factory.mktemp("export") / "starter")


def test_texts_and_images_become_unit_rows(encoder: StarterEncoder) -> None:
    texts = encoder.encode_texts(TEXTS)
    images = encoder.encode_images([encoder.preprocess(Image.new("RGB", (300, 200), c)) for c in ("red", "blue")])
    assert texts.shape == (len(TEXTS), encoder.dim)
    assert images.shape == (2, encoder.dim)
    for rows in (texts, images):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)


def test_nothing_in_nothing_out(encoder: StarterEncoder) -> None:
    assert encoder.encode_texts([]).shape == (0, encoder.dim)
    assert encoder.encode_images([]).shape == (0, encoder.dim)


def test_an_embedding_does_not_depend_on_its_batch(encoder: StarterEncoder) -> None:
    together = encoder.encode_texts(TEXTS)
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-4)


def test_translations_are_neighbours(encoder: StarterEncoder) -> None:
    english, chinese, other = encoder.encode_texts(["a cat on a sofa", "一只猫坐在沙发上", "a man climbs a rock"])
    assert english @ chinese > english @ other + 0.2


def test_identity_is_known_without_loading(encoder: StarterEncoder) -> None:
    assert identity() == encoder.identity
    assert encoder.identity.startswith("starter-")


def test_long_texts_are_cut_at_the_end(encoder: StarterEncoder) -> None:
    words = "dog " * 10_000
    assert encoder.count_tokens(words) == 10_002
    ids = encoder.tokenizer.encode(words)
    assert len(ids) == encoder.max_tokens
    assert ids[-1] == EOS
    assert np.isfinite(encoder.encode_texts([words])).all()


def test_the_first_use_may_come_from_many_threads() -> None:
    fresh, rows = StarterEncoder(), []
    threads = [threading.Thread(target=lambda: rows.append(fresh.encode_texts(["a dog"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows) == 4
    for row in rows:
        np.testing.assert_allclose(row, rows[0], atol=1e-6)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from PIL import Image; from mmsearch.retrieval.encoders.starter import StarterEncoder as S;"
        "e = S();"
        "e.encode_texts(['a dog']); e.encode_images([e.preprocess(Image.new('RGB', (9, 9)))]);"
        "print(sorted({'torch', 'transformers', 'open_clip', 'tokenizers', 'faiss', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packed_rows_unpack_alone_as_in_whole() -> None:
    weights = Weights(FOLDER / "weights.safetensors")
    for name in (
        "text.transformer.embeddings.word_embeddings.weight",
        "text.transformer.encoder.layer.0.intermediate.dense.weight",
        "text.transformer.encoder.layer.11.intermediate.dense.weight",
    ):
        rows = np.array([3, 77, 5])
        some = weights.unpack(name, rows)
        assert some.shape == (3, 384)
        assert np.abs(some).max() > 0
        np.testing.assert_array_equal(some, weights.unpack(name, slice(0, 100))[rows])


def test_normalised_text() -> None:
    assert normalise("  a\tb\u3000ｃ ") == "▁a▁b▁c"
    assert normalise("") == ""


def test_the_tokenizer_agrees_with_the_tokenizers_library(encoder: StarterEncoder, exported: Path) -> None:
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for text in TEXTS:
        assert encoder.tokenizer.encode(text) == reference.encode(text).ids, text

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp", "Cn"]), max_size=60))
    def check(text: str) -> None:
        if "<" not in text:  # the library reads "<s>" as a special token, ours as text
            assert encoder.tokenizer.encode(text) == reference.encode(text).ids

    check()


def test_special_pieces_cannot_be_typed(encoder: StarterEncoder) -> None:
    assert encoder.tokenizer.encode("</s> <pad>").count(EOS) == 1
    assert UNK not in encoder.tokenizer.encode("</s>")


def test_stock_open_clip_loads_the_export_and_agrees(encoder: StarterEncoder, exported: Path) -> None:
    from mmsearch.retrieval.encoders.open_clip import import_torchvision

    import_torchvision()
    import open_clip
    import torch

    name = f"local-dir:{exported}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    assert type(model).__name__ == "CustomTextCLIP"
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 320, 3), np.uint8).astype(np.uint8))
    picture = picture.resize((640, 400), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        texts = model.encode_text(tokenizer(TEXTS[:5]), normalize=True).numpy()
        images = model.encode_image(preprocess(picture)[None], normalize=True).numpy()
    assert (texts * encoder.encode_texts(TEXTS[:5])).sum(1).min() > 0.9999
    assert (images * encoder.encode_images([encoder.preprocess(picture)])).sum() > 0.9999


def test_an_export_does_not_overwrite_other_things(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="no earlier export"):
        export_open_clip(tmp_path)
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"
    assert json.loads((exported / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 512
