"""Names, presets, what `auto` means, and the fake encoder. Nothing here imports torch."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsearch.retrieval.encoders import Encoder, cache, hub, models
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.encoders.machine import usable_cpus
from mmsearch.retrieval.encoders.models import canonical_name, list_models, load_encoder, parse_name, resolve
from mmsearch.retrieval.encoders.presets import AUTO_PRESET, PRESETS
from mmsearch.retrieval.errors import ModelUnavailable, UsageError
from tests.local_hub import COMMIT, LocalHub

STARTER = "mmsearch.retrieval.encoders.starter"


class _Starter(FakeEncoder):
    def __init__(self, threads: int | None = None) -> None:
        super().__init__("starter")
        self.threads = threads


@pytest.fixture
def _starter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the bundled model, so that these tests load no weights."""
    module = types.ModuleType(STARTER)
    module.StarterEncoder = _Starter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, STARTER, module)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with LocalHub({}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def _cache_repo(repo: str, *names: str) -> None:
    store = cache.cache_folder() / f"models--{repo.replace('/', '--')}"
    folder = store / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(COMMIT)
    for name in names:
        (folder / name).write_bytes(b"")


def _cache_balanced() -> None:
    assert AUTO_PRESET.repo
    _cache_repo(AUTO_PRESET.repo, "open_clip_model.safetensors", "tokenizer.json")


def _yes(name: str, size: int) -> bool:
    return True


# -- presets and names ------------------------------------------------------------------------------


def test_presets_are_complete() -> None:
    assert list(PRESETS) == ["starter", "fast", "balanced", "best"]
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.languages and preset.licence and preset.summary
        assert (preset.tag is None) == (preset.repo is None) == (preset.download_bytes == 0) == preset.bundled
        assert (preset.coco is None) == (preset.flickr30k is None) == (not preset.source)


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("starter", "preset", "starter"),
        ("best", "preset", "best"),
        ("ViT-B-32/openai", "tag", "ViT-B-32/openai"),
        ("hf-hub:timm/ViT-B-32-SigLIP2-256", "repo", "timm/ViT-B-32-SigLIP2-256"),
        ("local-dir:/models/mine", "folder", "/models/mine"),
    ],
)
def test_names(name: str, kind: str, target: str) -> None:
    found = parse_name(name)
    assert (found.name, found.kind, found.target) == (name, kind, target)


def test_a_folder_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_name("local-dir:mine").name == f"local-dir:{tmp_path / 'mine'}"


def test_one_model_has_one_canonical_name() -> None:
    assert canonical_name("ViT-B-32-SigLIP2-256/webli") == "balanced"
    assert canonical_name("balanced") == "balanced"
    assert canonical_name("ViT-B-32/openai") == "ViT-B-32/openai"
    assert canonical_name("auto") == "auto"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("startr", "nearest names are starter"),
        ("Balanced", "write balanced"),
        ("vit-b-32/openai", "write ViT-B-32/openai"),
        ("ViT-B-33/openai", "ViT-B-32/PRETRAINED"),
        ("google/siglip2-base-patch16-256", "write hf-hub:google/siglip2-base-patch16-256"),
        ("./mine", "write local-dir:./mine"),
        ("hf-hub:mine", "hf-hub:ORG/NAME"),
        ("local-dir:", "local-dir:PATH"),
        ("qqqqqqqqqqqq", "choose one of starter, fast, balanced, best"),
        ("", "choose one of"),
    ],
)
def test_a_name_that_is_none_is_refused_with_the_fix(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(name)
    assert said in str(caught.value)


def test_an_architecture_alone_is_ambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_tags", lambda arch: ["openai", "laion2b_s34b_b79k"])
    with pytest.raises(UsageError, match="choose one of ViT-B-32/openai, ViT-B-32/laion2b_s34b_b79k"):
        parse_name("ViT-B-32")


# -- what auto means --------------------------------------------------------------------------------


def test_auto_takes_what_is_cached(server: LocalHub) -> None:
    _cache_balanced()
    assert resolve() == models.Choice("balanced")
    assert server.log == []


def test_auto_needs_weights_and_tokenizer() -> None:
    assert AUTO_PRESET.repo
    _cache_repo(AUTO_PRESET.repo, "open_clip_model.safetensors")
    assert resolve().name == "starter"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", None])
def test_auto_offline_asks_nobody(server: LocalHub, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    choice = resolve(offline=variable is None, confirm=_yes)
    assert choice.name == "starter"
    assert "offline" in (choice.notice or "")
    assert server.log == []


def test_auto_never_downloads_without_being_asked_to(server: LocalHub) -> None:
    choice = resolve(confirm=None)
    assert choice.name == "starter"
    assert "1.5 GB" in (choice.notice or "")
    assert server.log == []


def test_auto_asks_with_the_size(server: LocalHub) -> None:
    asked: list[tuple[str, int]] = []

    def no(name: str, size: int) -> bool:
        asked.append((name, size))
        return False

    assert resolve(confirm=no).name == "starter"
    assert asked == [("balanced", AUTO_PRESET.download_bytes)]
    assert resolve(confirm=_yes) == models.Choice("balanced", confirmed=True)


def test_auto_without_a_hub_is_the_starter_and_does_not_ask() -> None:
    def asked(name: str, size: int) -> bool:
        raise AssertionError("must not ask")

    choice = resolve(confirm=asked)
    assert choice.name == "starter"
    assert "--refresh" in (choice.notice or "")


def test_auto_without_torch_is_the_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    _cache_balanced()
    monkeypatch.setattr(models, "_torch_is_here", lambda: False)
    assert resolve().name == "starter"


@pytest.mark.usefixtures("_starter")
def test_auto_takes_the_starter_when_the_download_fails(
    server: LocalHub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(tag: str, access: hub.Hub) -> Any:
        assert access.confirm is None  # agreed once, not asked again
        raise ModelUnavailable("the download failed")

    stand_in = types.ModuleType("open_clip")
    stand_in.files_of_tag = gone  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmsearch.retrieval.encoders.open_clip", stand_in)
    monkeypatch.setattr("mmsearch.retrieval.encoders.open_clip", stand_in, raising=False)
    assert load_encoder("auto", confirm=_yes).name == "starter"
    assert "the download failed" in caplog.text
    with pytest.raises(ModelUnavailable, match="the download failed"):
        load_encoder("balanced")


# -- loading and listing ----------------------------------------------------------------------------


@pytest.mark.usefixtures("_starter")
def test_the_starter_takes_the_settings_that_apply(caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder("starter", threads=2, batch_size=5, device="cuda")
    assert isinstance(encoder, _Starter)
    assert (encoder.threads, encoder.batch_size) == (2, 5)
    assert "runs on the processor" in caplog.text


@pytest.mark.usefixtures("_starter")
def test_auto_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load_encoder().name == "starter"
    assert "--model balanced" in caplog.text


@pytest.mark.parametrize("setting", [{"threads": 0}, {"batch_size": 0}])
def test_settings_below_one_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        load_encoder("fake", **setting)


def test_a_folder_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    _cache_repo("someone/tiny", "open_clip_config.json", "open_clip_model.safetensors")
    with pytest.raises(ModelUnavailable) as caught:
        load_encoder(f"local-dir:{tmp_path / 'gone'}")
    assert "can be had here: starter, hf-hub:someone/tiny" in str(caught.value)


def test_models_without_a_hub() -> None:
    _cache_repo("someone/tiny", "open_clip_config.json", "open_clip_model.safetensors")
    found = {status.name: status for status in list_models()}
    assert list(found) == [*PRESETS, "hf-hub:someone/tiny"]
    assert [found[name].state for name in found] == ["bundled", *["unavailable"] * 3, "cached"]
    assert "cannot be reached" in found["balanced"].why
    assert [name for name in found if found[name].default] == ["starter"]
    assert found["balanced"].coco == 0.472


def test_models_with_a_hub(server: LocalHub) -> None:
    assert [status.state for status in list_models()] == ["bundled", *["downloadable"] * 3]
    _cache_balanced()
    states = {status.name: status.state for status in list_models(offline=True)}
    assert states == {"starter": "bundled", "fast": "unavailable", "balanced": "cached", "best": "unavailable"}
    assert [status.name for status in list_models(offline=True) if status.default] == ["balanced"]


def test_refresh_asks_the_hub_again(server: LocalHub) -> None:
    cache.write_notes("hub.json", {server.url: time.time()})
    assert list_models()[1].state == "unavailable"
    assert list_models(refresh=True)[1].state == "downloadable"
    assert list_models()[1].state == "downloadable"


def test_importing_the_tables_is_light() -> None:
    code = (
        "import sys, mmsearch.retrieval.encoders.models, mmsearch.retrieval.encoders.presets\n"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'huggingface_hub', 'transformers', 'PIL', 'open_clip'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "mmsearch.retrieval.encoders.models.list_models(offline=True)\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# -- the fake ---------------------------------------------------------------------------------------


def test_the_fake_is_an_encoder(encoder: FakeEncoder) -> None:
    as_encoder: Encoder = encoder
    array = as_encoder.preprocess(Image.new("RGB", (50, 30), "red"))
    assert array.shape == (3, 16, 16) and array.dtype == np.float32
    for rows in (as_encoder.encode_images([array] * 3), as_encoder.encode_texts(["red", "", "a cat"])):
        assert rows.shape == (3, 32) and rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
    assert as_encoder.encode_images([]).shape == as_encoder.encode_texts([]).shape == (0, 32)
    assert isinstance(load_encoder("fake"), FakeEncoder)


def test_the_fake_is_deterministic(encoder: FakeEncoder) -> None:
    np.testing.assert_array_equal(encoder.encode_texts(["猫"]), FakeEncoder().encode_texts(["猫"]))
    assert FakeEncoder().identity == encoder.identity != FakeEncoder("other").identity


@pytest.mark.parametrize(
    ("text", "colour"), [("a red square", "red"), ("蓝色的天空", "blue"), ("green!", "green"), ("黄", "yellow")]
)
def test_the_fake_finds_colours(
    encoder: FakeEncoder, draw: Callable[..., Path], tmp_path: Path, text: str, colour: str
) -> None:
    colours = ["black", "blue", "green", "red", "yellow", "orange"]
    arrays = [encoder.preprocess(Image.open(draw(tmp_path / f"{name}.png", name))) for name in colours]
    scores = encoder.encode_images(arrays) @ encoder.encode_texts([text])[0]
    assert colours[int(scores.argmax())] == colour


def test_the_fake_tells_pictures_of_equal_colours_apart(encoder: FakeEncoder) -> None:
    left, right = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "white")
    left.putpixel((0, 0), (255, 0, 0))
    right.putpixel((15, 15), (255, 0, 0))
    one, other = encoder.encode_images([encoder.preprocess(left), encoder.preprocess(right)])
    assert not np.array_equal(one, other)


def test_the_fake_cuts_long_texts() -> None:
    encoder = FakeEncoder(max_tokens=3)
    assert encoder.count_tokens("one two three four") == 4
    rows = encoder.encode_texts(["one two three four", "one two three"])
    np.testing.assert_array_equal(rows[0], rows[1])


# -- the machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 64),
        ({"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
)
def test_processors_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64), raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    own = tmp_path / "own"
    own.write_text("0::/job/step\n" if any("job" in name for name in files) else "0::/\n")
    assert usable_cpus(tmp_path, own) == expected
    assert usable_cpus(tmp_path / "none", tmp_path / "none") == 64
