from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mmsearch.retrieval.encoders import cache, hub
from mmsearch.retrieval.errors import ModelUnavailable
from tests.local_hub import COMMIT, LocalHub

REPO = "someone/tiny"
WEIGHTS = save({"weight": np.arange(50_000, dtype=np.float32)})
FILES = {
    "open_clip_config.json": json.dumps({"model_cfg": {"text_cfg": {}}}).encode(),
    "open_clip_model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"an older format of the same" * 100,
    "README.md": b"# tiny",
}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub({REPO: dict(FILES)}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_downloads_what_is_needed_and_reports_progress(server: LocalHub) -> None:
    told: list[tuple[str, int, int]] = []
    folder, weights = hub.Hub(progress=lambda *args: told.append(args)).model(REPO, config=True)
    assert weights.read_bytes() == WEIGHTS
    assert sorted(path.name for path in folder.iterdir()) == [cache.CONFIG, "open_clip_model.safetensors"]
    big = [entry for entry in told if entry[0] == "open_clip_model.safetensors"]
    assert [done for _, done, _ in big] == sorted(done for _, done, _ in big)
    assert big[-1][1:] == (len(WEIGHTS), len(WEIGHTS))


def test_other_tools_find_the_download(server: LocalHub) -> None:
    from huggingface_hub import try_to_load_from_cache

    _, weights = hub.Hub().model(REPO, config=True)
    found = try_to_load_from_cache(REPO, weights.name, cache_dir=cache.cache_folder())
    assert found == str(weights)
    assert cache.cached_repos() == [REPO]


def test_a_cut_connection_is_continued_not_restarted(server: LocalHub) -> None:
    server.cuts, server.cut_at = 1, 60_000
    _, weights = hub.Hub().model(REPO, config=True)
    assert weights.read_bytes() == WEIGHTS
    assert [entry[2] for entry in server.gets(weights.name)] == [None, "bytes=60000-"]


def test_a_download_that_failed_is_continued_by_the_next_run(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_RETRIES", 0)
    server.cuts, server.cut_at = 1, 70_000
    with pytest.raises(ModelUnavailable, match="70000 of"):
        hub.Hub().model(REPO, config=True)
    assert cache.weights_file(cache.snapshot_folder(REPO) or Path()) is None  # nothing half-written is visible
    folder, weights = hub.Hub().model(REPO, config=True)
    assert weights.read_bytes() == WEIGHTS
    assert server.gets(weights.name)[-1][2] == "bytes=70000-"
    assert not list(folder.parent.parent.glob("blobs/*part*"))


def test_a_server_without_ranges_starts_over(server: LocalHub) -> None:
    server.cuts, server.cut_at, server.ranges = 1, 60_000, False
    _, weights = hub.Hub().model(REPO, config=True)
    assert weights.read_bytes() == WEIGHTS


def test_damaged_bytes_are_refused_and_fetched_again(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_RETRIES", 0)
    server.cuts, server.cut_at = 1, 60_000
    with pytest.raises(ModelUnavailable):
        hub.Hub().model(REPO, config=True)
    (part,) = cache.cache_folder().glob("models--*/blobs/*-part")
    part.write_bytes(b"x" * 60_000)
    with pytest.raises(ModelUnavailable, match="damaged"):
        hub.Hub().model(REPO, config=True)
    assert hub.Hub().model(REPO, config=True)[1].read_bytes() == WEIGHTS


def test_what_is_cached_asks_no_network(server: LocalHub) -> None:
    first = hub.Hub().model(REPO, config=True)
    server.log.clear()
    assert hub.Hub().model(REPO, config=True) == first
    assert hub.Hub(offline=True).model(REPO, config=True) == first
    assert server.log == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", None])
def test_offline_asks_no_network(server: LocalHub, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelUnavailable, match="offline"):
        hub.Hub(offline=variable is None).model(REPO, config=True)
    assert server.log == []


def test_a_large_download_is_confirmed_once(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def confirm(repo: str, size: int) -> bool:
        asked.append((repo, size))
        return len(asked) > 1

    monkeypatch.setattr(hub, "ASK_ABOVE", 100_000)
    with pytest.raises(ModelUnavailable, match="declined"):
        hub.Hub(confirm=confirm).model(REPO, config=True)
    assert server.sent < 2_000
    hub.Hub(confirm=confirm).model(REPO, config=True)
    assert asked == [(REPO, len(WEIGHTS) + len(FILES[cache.CONFIG]))] * 2


def test_a_small_download_is_not_asked_about(server: LocalHub) -> None:
    hub.Hub(confirm=lambda repo, size: False).model(REPO, config=True)


def test_the_token_stays_with_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with LocalHub({REPO: dict(FILES)}) as storage, LocalHub({REPO: dict(FILES)}, storage=storage.url) as front:
        monkeypatch.setenv("HF_ENDPOINT", front.url)
        _, weights = hub.Hub().model(REPO, config=True)
        assert weights.read_bytes() == WEIGHTS
        assert any(entry[3] == "Bearer hf_secret" for entry in front.log)
        assert storage.gets(weights.name)
        assert all(entry[3] is None for entry in storage.log)


@pytest.mark.parametrize(
    ("repo", "files", "said"),
    [
        ("no/such", None, "no such model"),
        ("has/no-config", {"model.safetensors": WEIGHTS}, "no open_clip model"),
        ("has/no-weights", {"open_clip_config.json": b"{}"}, "no open_clip weights"),
    ],
)
def test_a_model_that_is_not_there_is_a_one_line_error(
    server: LocalHub, repo: str, files: dict[str, bytes] | None, said: str
) -> None:
    if files is not None:
        server.files[repo] = files
    with pytest.raises(ModelUnavailable, match=said) as caught:
        hub.Hub().model(repo, config=True)
    assert repo in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_remembered_for_a_day(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert not hub.reachable()
    probes: list[str] = []
    monkeypatch.setattr(hub, "_probe", lambda address: probes.append(address) or True)
    assert not hub.reachable()
    assert probes == []
    assert hub.reachable(refresh=True)
    assert hub.reachable()  # the good news has replaced the bad
    assert len(probes) == 2
    monkeypatch.setattr(hub, "_probe", lambda address: False)
    assert not hub.reachable()
    monkeypatch.setattr(hub, "_probe", lambda address: True)
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr("mmsearch.retrieval.encoders.hub.time.time", lambda: tomorrow)
    assert hub.reachable()


def test_one_hub_does_not_speak_for_another(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not hub.reachable()
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    assert hub.reachable()


def test_a_hub_that_does_not_answer_is_given_up(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.2)
    server.mute = True
    assert not hub.reachable()
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        hub.Hub().model(REPO, config=True)


def test_the_promised_five_seconds() -> None:
    assert hub._PROBE_SECONDS < 5


def test_a_damaged_note_is_forgotten(server: LocalHub) -> None:
    cache.write_notes("hub.json", {server.url: time.time()})
    assert not hub.reachable()
    (cache.user_cache() / "hub.json").write_text("{")
    assert hub.reachable()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.bin", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["b.bin", "z.safetensors"], "z.safetensors"),
        (["onnx/model.safetensors", "README.md"], None),
        ([], None),
    ],
)
def test_weights_are_chosen_as_open_clip_does(names: list[str], chosen: str | None) -> None:
    assert cache.pick_weights(names) == chosen


def test_named_weights_have_a_safetensors_twin() -> None:
    assert cache.pick_weights(["x.pt", "x.safetensors", "model.safetensors"], "x.pt") == "x.safetensors"
    assert cache.pick_weights(["x.pt", "model.safetensors"], "x.pt") == "x.pt"
    assert cache.pick_weights(["model.safetensors"], "x.pt") is None


def test_the_cache_is_where_the_hub_library_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", "~/models")
    assert cache.cache_folder() == tmp_path / "models"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert cache.cache_folder() == tmp_path / "hf" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / ".cache" / "huggingface" / "hub"


def test_a_tokenizer_has_its_own_repository(server: LocalHub) -> None:
    server.files["someone/words"] = {
        "tokenizer.json": b'{"version": "1.0"}',
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }
    folder = hub.Hub().tokenizer("someone/words")
    assert folder.name == COMMIT
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    with pytest.raises(ModelUnavailable, match="no tokenizer"):
        hub.Hub().tokenizer(REPO)
