"""Segment files: their bytes, and exact search over several of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from store_kit import ROWS, add, add_tokens, key, make, prepare, sql, tokens_of

from mmsearch.retrieval.errors import IndexCorrupt, IndexTooNew
from mmsearch.retrieval.store import segments
from mmsearch.retrieval.store.segments import Segment, SegmentRows, search_rows, write_segment
from mmsearch.retrieval.types import Root

DTYPES = ("float32", "float16")
NONE = np.empty(0, np.int64)


def write(path: Path, rows: NDArray[Any], dtype: str = "float32", first_id: int = 1, step: int = 1) -> Segment:
    count, dim = rows.shape
    ids = np.arange(first_id, first_id + step * count, step, dtype=np.int64)
    keys = np.frombuffer(b"".join(hashlib.sha256(b"%d" % id_).digest() for id_ in ids), np.uint8).reshape(count, 32)
    longest = 1.001 * float(np.linalg.norm(rows, axis=1).max(initial=0.0))
    file = write_segment(
        path,
        SegmentRows(ids, keys, ids * 10, iter(np.array_split(rows, 3)), longest),
        space="image",
        dim=dim,
        dtype=dtype,  # type: ignore[arg-type]
        about={"identity": "fake-1"},
        steps=lambda name: None,
    )
    segment = Segment(path)
    assert (file.size, file.checksum) == (path.stat().st_size, segment.checksum())
    assert file.checksum == hashlib.blake2b(path.read_bytes(), digest_size=32).digest()
    return segment


def unit(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def naive(
    parts: list[Segment], dead: list[NDArray[np.int64]], query: NDArray[np.float32], k: int
) -> list[tuple[float, int]]:
    scored = []
    for part, gone in zip(parts, dead, strict=True):
        for at in set(range(part.count)) - set(gone.tolist()):
            row = part.rows[at].astype(np.float64)
            scored.append((-float((row * query.astype(np.float64)).sum()), int(part.ids[at])))
    return [(-score, id_) for score, id_ in sorted(scored)[:k]]


def best(found: tuple[NDArray[np.int64], NDArray[np.float64]], k: int) -> list[tuple[float, int]]:
    ids, scores = found
    pairs = sorted((-score, id_) for score, id_ in zip(scores.tolist(), ids.tolist(), strict=True))
    return [(-score, id_) for score, id_ in pairs[:k]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, count: int) -> None:
    rows = unit(count, 12)
    segment = write(tmp_path / "image-000001.seg", rows, dtype, first_id=5, step=3)
    assert segment.rows.dtype == np.dtype(dtype)
    assert np.array_equal(segment.rows, rows.astype(dtype))
    assert segment.ids.tolist() == [5 + 3 * i for i in range(count)]
    assert segment.item_ids.tolist() == [10 * id_ for id_ in segment.ids]
    assert [key.tobytes() for key in segment.keys] == [hashlib.sha256(b"%d" % i).digest() for i in segment.ids]
    assert segment.header["identity"] == "fake-1"
    assert all(segment.header[f"{name}_offset"] % 64 == 0 for name in ("ids", "keys", "item_ids", "vectors"))
    assert (tmp_path / "image-000001.seg").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["image-000001.seg"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tail_is_what_faiss_serialises(tmp_path: Path, dtype: str) -> None:
    faiss = pytest.importorskip("faiss")
    rows = unit(9, 12)
    segment = write(tmp_path / "image-000001.seg", rows, dtype)
    if dtype == "float32":
        index = faiss.IndexFlatIP(12)
    else:
        index = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
    index.add(rows)
    block = segment.path.read_bytes()[segment.header["faiss_offset"] :]
    assert block == faiss.serialize_index(index).tobytes()
    opened = faiss.deserialize_index(np.frombuffer(block, np.uint8))
    assert opened.ntotal == 9


def decoders(repository: Path) -> dict[str, str]:
    """The code of the documentation by the heading it stands under."""
    sections = (repository / "docs" / "storage.md").read_text(encoding="utf-8").split("\n## ")
    found = {part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, flags=re.DOTALL) for part in sections}
    return {heading: code for heading, blocks in found.items() for code in blocks}


def test_every_kind_of_file_has_a_decoder_of_two_lines(repository: Path) -> None:
    codes = decoders(repository)
    assert list(codes) == ["A segment", "Tokens", "The catalog", "The lock"]
    for code in codes.values():
        assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_decoder_of_segments_works(tmp_path: Path, repository: Path, dtype: str) -> None:
    rows = unit(5, 6)
    path = tmp_path / f"{dtype}-000001.seg"
    write(path, rows, dtype)
    names: dict[str, Any] = {"path": path}
    exec(decoders(repository)["A segment"], names)
    assert np.array_equal(names["rows"], rows.astype(dtype))


def test_the_decoder_of_tokens_works(tmp_path: Path, repository: Path) -> None:
    store = prepare(tmp_path / "index")
    with store.writer() as writer:
        add_tokens(writer, "c", "a")
        writer.commit()
    names: dict[str, Any] = {"path": store.path / "segments" / "tokens-000001.seg"}
    exec(decoders(repository)["Tokens"], names)
    assert np.array_equal(names["tokens"], [tokens_of(key("a")), tokens_of(key("c"))])


def test_the_decoders_of_the_catalog_and_the_lock_work(tmp_path: Path, repository: Path) -> None:
    from mmsearch.retrieval.store import layout

    store = prepare(tmp_path / "index")
    codes = decoders(repository)
    catalog: dict[str, Any] = {"path": store.path / layout.CATALOG}
    lock: dict[str, Any] = {"path": store.path / layout.LOCK}
    with store.writer():
        exec(codes["The catalog"], catalog)
        catalog["catalog"].close()
        exec(codes["The lock"], lock)
    assert catalog["rows"] == [
        ("a.jpg", None, None),
        ("c.jpg", None, None),
        ("a-again.jpg", None, None),
        ("notes.txt", None, "one"),
        ("notes.txt", None, "two"),
    ]
    assert lock["pid"] == os.getpid()


def test_every_table_is_documented(tmp_path: Path, repository: Path) -> None:
    text = (repository / "docs" / "storage.md").read_text(encoding="utf-8")
    store = prepare(tmp_path / "index")
    tables = [name for (name,) in sql(store, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    documented = re.findall(r"^\| `([a-z]+)` \|", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(name for name in tables if not name.startswith(("sqlite_", "words_")))


def test_every_header_field_is_documented(tmp_path: Path, repository: Path) -> None:
    text = (repository / "docs" / "storage.md").read_text(encoding="utf-8")
    store = prepare(tmp_path / "index")
    with store.writer() as writer:
        add_tokens(writer, "a")
        writer.commit()
    header = Segment(store.path / "segments" / "image-000001.seg").header
    tokens = Segment(store.path / "segments" / "tokens-000001.seg").header
    for name in (*header, *header["roots"][0], *tokens):
        assert f"`{name}`" in text, name


def test_a_header_says_what_a_lost_catalog_would_need(tmp_path: Path) -> None:
    """As many roots as there is room for: a long one must not keep the segment from being written."""
    store = make(tmp_path / "photos" / "index")
    with store.writer() as writer:
        writer.root(Root(Path("/", *["x" * 200] * 20), 1))
        writer.root(ROWS)
        writer.root(Root(tmp_path / "photos" / "é.csv", 1, kind="manifest", columns='{"id": "key"}'))
        for number in range(60):
            writer.root(Root(Path("/", f"{number}" * 20), 1))
        add(writer, tmp_path / "photos", "a.jpg", "a")
        writer.scanned(ROWS)
        writer.commit()
        add(writer, tmp_path / "photos", "b.jpg", "b")
        writer.commit()
    header = Segment(store.path / "segments" / "image-000002.seg").header
    assert (header["identity"], header["model"], header["max_tokens"]) == ("fake-1", "fake", None)
    assert header["roots"][:2] == [
        {"path": "rows%3A", "relative": False, "kind": "rows", "columns": None, "whole": True},
        {"path": "../%C3%A9.csv", "relative": True, "kind": "manifest", "columns": '{"id": "key"}', "whole": False},
    ]
    assert 10 < len(header["roots"]) < 62


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data: data[:-1], IndexCorrupt),
        (lambda data: data[:100], IndexCorrupt),
        (lambda data: b"", IndexCorrupt),
        (lambda data: data + b"x", IndexCorrupt),
        (lambda data: b"XXXXX" + data[5:], IndexCorrupt),
        (lambda data: data[:5] + b"\xff" + data[6:], IndexCorrupt),
        (lambda data: data[:5] + b"[]".ljust(4091) + data[4096:], IndexCorrupt),
        (lambda data: data.replace(b'"dtype": "float32"', b'"dtype": "float99"'), IndexCorrupt),
        (lambda data: data.replace(b'"version": 1', b'"version": 9'), IndexTooNew),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], error: type[Exception]) -> None:
    path = tmp_path / "image-000001.seg"
    write(path, unit(3, 4))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(error, match=re.escape(str(path))):
        Segment(path)


@pytest.mark.parametrize(
    "field",
    ["version", "dtype", "dim", "count", "bytes", "max_norm"]
    + [f"{section}_offset" for section in ("ids", "keys", "item_ids", "vectors")],
)
def test_a_header_without_a_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "image-000001.seg"
    write(path, unit(3, 4))
    data = path.read_bytes()
    header = json.loads(data[5:4096])
    del header[field]
    path.write_bytes(data[:5] + json.dumps(header).encode().ljust(4091) + data[4096:])
    with pytest.raises(IndexCorrupt, match=rf"{re.escape(str(path))} is not .*; `mmsearch doctor`"):
        Segment(path)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="before Python 3.13 a mapped file keeps its descriptor")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux lists them")
def test_an_open_segment_takes_no_file_descriptor(tmp_path: Path) -> None:
    write(tmp_path / "image-000001.seg", unit(3, 4))
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = [Segment(tmp_path / "image-000001.seg") for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [segment.count for segment in opened] == [3] * 5


def test_a_segment_stays_readable_after_its_file_is_gone(tmp_path: Path) -> None:
    rows = unit(3, 4)
    segment = write(tmp_path / "image-000001.seg", rows)
    segment.path.unlink()
    assert np.array_equal(segment.rows, rows)
    assert not segment.rows.flags.owndata  # mapped, not copied
    assert not segment.rows.flags.writeable


def test_positions(tmp_path: Path) -> None:
    segment = write(tmp_path / "image-000001.seg", unit(4, 2), first_id=10, step=5)
    assert segment.positions(np.array([10, 25, 11, 30, 0])).tolist() == [0, 3, -1, -1, -1]
    assert write(tmp_path / "image-000002.seg", unit(0, 2)).positions(np.array([1])).tolist() == [-1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_search_equals_the_naive_one(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Small whole numbers: ties everywhere, in several segments, around dead rows and across blocks."""
    folder = tmp_path_factory.mktemp("segments")
    dim = data.draw(st.integers(1, 5))
    cell = st.integers(-2, 2)
    parts, dead, first = [], [], 1
    for number in range(data.draw(st.integers(0, 3))):
        rows = data.draw(st.lists(st.lists(cell, min_size=dim, max_size=dim), max_size=12))
        dtype = data.draw(st.sampled_from(DTYPES))
        array = np.array(rows, np.float32).reshape(-1, dim)
        parts.append(write(folder / f"image-{number:06d}.seg", array, dtype, first_id=first))
        first += len(rows)
        gone = data.draw(st.sets(st.integers(0, len(rows) - 1))) if rows else set()
        dead.append(np.array(sorted(gone), np.int64))
    wanted = data.draw(st.lists(st.lists(cell, min_size=dim, max_size=dim), max_size=3))
    queries = np.array(wanted, np.float32).reshape(-1, dim)
    k = data.draw(st.integers(1, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_BLOCK_ROWS", data.draw(st.integers(1, 6)))
        patch.setattr(segments, "_QUERY_ROWS", data.draw(st.integers(1, 2)))
        found = search_rows(parts, dead, queries, k)
    assert [best(one, k) for one in found] == [naive(parts, dead, query, k) for query in queries]


def test_a_score_depends_on_the_two_vectors_only(tmp_path: Path) -> None:
    """Equal rows have equal scores to the last bit, wherever they lie and however many queries come at once."""
    rows = unit(400, 67, seed=1)
    rows[[3, 77, 399]] = rows[200]
    one = write(tmp_path / "image-000001.seg", rows)
    split = [
        write(tmp_path / "image-000002.seg", rows[:50]),
        write(tmp_path / "image-000003.seg", rows[50:], first_id=51),
    ]
    queries = unit(9, 67, seed=2)
    queries[4] = rows[200]
    together = search_rows([one], [NONE], queries, 10)
    apart = [search_rows(split, [NONE, NONE], queries[i : i + 1], 10)[0] for i in range(9)]
    assert [best(found, 10) for found in together] == [best(found, 10) for found in apart]
    assert [id_ for _, id_ in best(together[4], 4)] == [4, 78, 201, 400]
    assert len({score for score, _ in best(together[4], 4)}) == 1
    ids, _ = search_rows([one], [NONE], queries[4:5], 2)[0]
    assert sorted(ids) == [4, 78, 201, 400]  # everything that ties with the last


@pytest.mark.parametrize("dead_rows", [0, 30])
def test_large_half_precision_segments_go_through_faiss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_rows: int
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(segments, "_FAISS_ROWS", 1)
    rows = unit(3000, 16, seed=3)
    rows[1000:1100] = rows[0]  # more ties than FAISS is asked for: numpy does that query
    segment = write(tmp_path / "image-000001.seg", rows, "float16")
    queries = np.concatenate([unit(5, 16, seed=4), rows[:1]])
    dead = np.arange(dead_rows, dtype=np.int64) * 7
    found = search_rows([segment], [dead], queries, 10)
    assert [best(one, 10) for one in found] == [naive([segment], [dead], query, 10) for query in queries]
    assert segment.faiss_index() is not None
    calls: list[int] = []
    monkeypatch.setattr(Segment, "faiss_index", lambda self: calls.append(1))
    monkeypatch.setitem(sys.modules, "torch", object())  # torch and FAISS in one process crash on macOS
    assert [best(one, 10) for one in search_rows([segment], [dead], queries, 10)] == [best(o, 10) for o in found]
    assert not calls


def test_header_is_readable_without_this_library(tmp_path: Path) -> None:
    segment = write(tmp_path / "image-000001.seg", unit(2, 3))
    head = segment.path.read_bytes()[:4096]
    assert head.startswith(b"MMSEG{") and head.endswith(b"\n")
    assert json.loads(head[5:])["count"] == 2
