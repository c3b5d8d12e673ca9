"""Names of rerankers: what they are read as, where they are loaded from, and what `mmsearch models` says of them.

The checkpoints are tiny ones of the true classes; the hub is one on this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_kit import Result
from local_hub import LocalHub

import mmsearch
from mmsearch.retrieval.encoders import hub
from mmsearch.retrieval.errors import ModelUnavailable, UsageError
from mmsearch.retrieval.rerank import RerankCandidate, models
from mmsearch.retrieval.rerank.models import RerankerName, list_rerankers, load_reranker, parse_name
from mmsearch.retrieval.rerank.presets import RERANKERS

Run = Callable[..., Result]
MINILM = RERANKERS["minilm"].repo
BLIP = RERANKERS["blip-itm"].repo


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from rerank_kit import save_blip, save_cross_encoder

    root = tmp_path_factory.mktemp("models")
    return {"blip-itm": save_blip(root / "blip"), "minilm": save_cross_encoder(root / "cross-encoder")}


@pytest.fixture
def server(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub that has both presets, and each once more under a name of its own."""

    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folders[name].iterdir()} | {"README.md": b"# tiny"}

    held = {BLIP: files("blip-itm"), MINILM: files("minilm"), "me/b": files("blip-itm"), "me/c": files("minilm")}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with LocalHub(held) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


# Names


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [("minilm", "preset", "minilm"), ("blip-itm", "preset", "blip-itm"), ("hf-hub:me/b", "repo", "me/b")],
)
def test_names_are_read(name: str, kind: str, target: str) -> None:
    assert parse_name(name) == RerankerName(name, kind, target)  # type: ignore[arg-type]


def test_folders_are_named_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert parse_name("local-dir:./mine").name == f"local-dir:{tmp_path / 'mine'}"
    assert parse_name("local-dir:~/mine").target == str(tmp_path / "home" / "mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minlm", "the nearest names are minilm"),
        ("BLIP-ITM", "write blip-itm"),
        (MINILM, "write minilm"),
        ("someone/else", "write hf-hub:someone/else"),
        ("./folder", "write local-dir:./folder"),
        ("hf-hub:else", "write hf-hub:ORG/NAME"),
        ("hf-hub:a/b/c", "write hf-hub:ORG/NAME"),
        ("local-dir:", "local-dir:PATH"),
        ("", "choose one of starter-joint, minilm, blip-itm, hf-hub:ORG/NAME, local-dir:PATH"),
        ("open_clip:ViT-B-32/openai", "choose one of"),
    ],
)
def test_other_names_are_refused_with_what_to_write(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse_name(name)


# Loading


@pytest.mark.parametrize("preset", ["blip-itm", "minilm"])
def test_a_folder_is_loaded_by_the_adapter_of_its_class(folders: dict[str, Path], preset: str) -> None:
    reranker = load_reranker(f"local-dir:{folders[preset]}", device="cpu")
    assert reranker.name == f"local-dir:{folders[preset]}"
    assert reranker.modalities == frozenset(RERANKERS[preset].modalities)


@pytest.mark.parametrize(("preset", "repo"), [("blip-itm", "me/b"), ("minilm", "me/c")])
def test_the_hub_gives_presets_and_repositories(
    server: LocalHub, folders: dict[str, Path], preset: str, repo: str
) -> None:
    named = load_reranker(preset, device="cpu")
    other = load_reranker(f"hf-hub:{repo}", device="cpu")
    local = load_reranker(f"local-dir:{folders[preset]}", device="cpu")
    assert (named.name, other.name) == (preset, f"hf-hub:{repo}")
    assert named.identity == other.identity == local.identity
    assert server.gets("README.md") == []
    server.log.clear()
    assert load_reranker(preset, device="cpu", offline=True).identity == local.identity
    assert server.log == []


def test_a_large_download_is_asked_about(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ASK_ABOVE", 1000)
    asked: list[str] = []

    def refuse(name: str, size: int) -> bool:
        asked.append(name)
        return False

    with pytest.raises(ModelUnavailable, match="declined"):
        load_reranker("minilm", device="cpu", confirm=refuse)
    assert len(asked) == 1
    assert server.gets("model.safetensors") == []


def test_what_is_no_reranker_is_refused(server: LocalHub, tmp_path: Path) -> None:
    server.files["me/tower"] = {"config.json": b'{"architectures": ["BertModel"]}'}
    server.files["me/images"] = {"open_clip_config.json": b"{}"}
    server.files["me/bare"] = {"config.json": b'{"architectures": ["BertForSequenceClassification"]}'}
    with pytest.raises(ModelUnavailable, match=f"holds BertModel, and rerankers are .* such as {MINILM}"):
        load_reranker("hf-hub:me/tower")
    with pytest.raises(ModelUnavailable, match=r"it has no config\.json"):
        load_reranker("hf-hub:me/images")
    with pytest.raises(ModelUnavailable, match=r"it wants config\.json, a tokenizer, model.safetensors or"):
        load_reranker("hf-hub:me/bare")
    for content, said in (("{", "cannot be read"), ("[]", "cannot be read"), ("{}", "does not name its class")):
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(ModelUnavailable, match=said):
            load_reranker(f"local-dir:{tmp_path}")


# What can be had


def test_states_are_told(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.name: (one.state, one.why) for one in list_rerankers(offline=True)} == {
        "starter-joint": ("bundled", ""),
        "minilm": ("unavailable", "offline"),
        "blip-itm": ("unavailable", "offline"),
    }
    assert {one.state for one in list_rerankers(refresh=True)} == {"bundled", "downloadable"}
    load_reranker("minilm", device="cpu")
    assert {one.name: one.state for one in list_rerankers(offline=True)} == {
        "starter-joint": "bundled",
        "minilm": "cached",
        "blip-itm": "unavailable",
    }
    monkeypatch.setattr(models, "_missing", lambda kind: "torch")
    assert {(one.state, one.why) for one in list_rerankers()} == {("unavailable", "torch is not installed")}


def test_the_models_command_lists_rerankers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [line.split("\t")[0] for line in run("models", "--offline").out.splitlines()]
    assert names[-5:] == ["", "reranker", "starter-joint", "minilm", "blip-itm"]
    listed = [one for one in run("models", "--offline", "--json").json if one.get("kind") == "reranker"]
    assert [one["name"] for one in listed] == ["starter-joint", "minilm", "blip-itm"]
    assert {"state", "why", "repo", "reads", "languages", "licence", "download_bytes", "summary"} <= set(listed[0])
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: True)
    assert "blip-itm" in run("models", "--offline").out


# In a search


@pytest.mark.parametrize("preset", ["blip-itm", "minilm"])
def test_a_search_puts_hits_in_the_order_of_the_models_own_scores(
    folders: dict[str, Path], pictures: Path, tmp_path: Path, preset: str
) -> None:
    name = f"local-dir:{folders[preset]}"
    modality = "image" if preset == "blip-itm" else "text"
    for at, text in enumerate(("a dog runs", "the cat sleeps", "red", "green sofa")):
        (pictures / f"{at}.txt").write_text(text, encoding="utf-8")
    with mmsearch.open(tmp_path / "index", model="fake", device="cpu") as index:
        index.add(pictures)
        answer = index.search("a red dog", modality=modality, rerank=name)
        before = index.search("a red dog", modality=modality)
    given = [RerankCandidate(hit.item_id, hit.modality, hit.text, hit.path) for hit in before]
    found = load_reranker(name, device="cpu").score("a red dog", given)
    scores = dict(zip((hit.item_id for hit in before), found.tolist(), strict=True))
    assert answer.notices == ()
    assert len(answer) == len(before) == 6
    assert [hit.item_id for hit in answer] == sorted(scores, key=lambda item_id: -scores[item_id])
    assert sorted(hit.rank_before or 0 for hit in answer) == [1, 2, 3, 4, 5, 6]


def test_a_reader_of_texts_says_why_it_ordered_no_pictures(run: Run, folders: dict[str, Path], pictures: Path) -> None:
    run("index", pictures, "--model", "fake")
    plain = run("query", "a red dog", "--json")
    result = run("query", "a red dog", "--rerank", f"local-dir:{folders['minilm']}", "--device", "cpu", "--json")
    assert (result.code, result.json) == (0, plain.json)
    assert result.err.endswith("(it could score none of the candidates; none has a text or a caption)\n")


def test_the_command_line_downloads_and_shows_the_rank_before(run: Run, server: LocalHub, pictures: Path) -> None:
    run("index", pictures, "--model", "fake")
    result = run("query", "a red dog", "--rerank", "hf-hub:me/b", "--device", "cpu", "--depth", "4", "--json")
    assert result.code == 0
    assert sorted(hit["rank_before"] for hit in result.json) == [1, 2, 3, 4, 5, 6]
    assert [hit["rank_before"] for hit in result.json][4:] == [5, 6]
    assert json.loads(server.files["me/b"]["config.json"])["architectures"] == ["BlipForImageTextRetrieval"]
