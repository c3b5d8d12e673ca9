from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.indexers.chunks import chunk_chars, chunk_text, cut_further
from mmsearch.retrieval.types import TextChunk

PIECES = st.sampled_from(
    "a|Word |sentence. |Ende! |什么？|猫坐在沙发上。|，|\n|\n\n|  |# Head\n|- item\n|é|e\u0301|👩\u200d🚀|\u3000|3.14 "
    "|e.g. this |“Ja.” |\r\n|\t|\x85|\ufeff|xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx|长长长长长长长长长长长长".split("|")
)


def check(text: str, chunks: list[TextChunk]) -> None:
    end = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.start >= end, "chunks overlap or are out of order"
        assert not text[end : chunk.start].strip(), "text between two chunks is lost"
        end = chunk.end
    assert not text[end:].strip(), "text after the last chunk is lost"


@given(st.one_of(st.text(), st.lists(PIECES, max_size=80).map("".join)), st.integers(1, 500))
def test_offsets_are_exact_and_nothing_is_lost(text: str, max_chars: int) -> None:
    chunks = chunk_text(text, max_chars=max_chars)
    check(text, chunks)
    assert all(len(chunk.text) <= max(max_chars, 1) for chunk in chunks)


@pytest.mark.parametrize("text", ["", " ", "\n\n\t \u3000\r\n"])
def test_white_space_has_no_chunks(text: str) -> None:
    assert chunk_text(text) == []


def test_a_short_text_is_one_chunk_with_its_offsets() -> None:
    (chunk,) = chunk_text("\n  A dog runs. It is wet.\n")
    assert chunk == TextChunk("A dog runs. It is wet.", 3, 25)
    assert chunk.fragment == "char=3-25"


def test_latin_text_is_cut_at_sentence_ends() -> None:
    text = " ".join(f"Sentence number {n} says that Dr. Who has 3.14 apples, e.g. red ones." for n in range(40))
    chunks = chunk_text(text)
    check(text, chunks)
    assert len(chunks) > 5
    assert all(chunk.text.startswith("Sentence number") and chunk.text.endswith("red ones.") for chunk in chunks)
    assert all(250 < len(chunk.text) <= 400 for chunk in chunks[:-1])


def test_chinese_text_is_cut_at_sentence_ends_and_shorter() -> None:
    text = "".join(f"第{n}只猫坐在红色的沙发上；它在看窗外的鸟，“你好。”天气怎么样？非常好！" for n in range(40))
    chunks = chunk_text(text)
    check(text, chunks)
    assert all(chunk.text[-1] in "。！？；”" for chunk in chunks)
    assert all(60 < len(chunk.text) <= 130 for chunk in chunks[:-1])


def test_closing_quotes_stay_with_their_sentence() -> None:
    text = "她说：“猫在沙发上。”然后走了。" * 20
    assert not any(chunk.text.startswith("”") for chunk in chunk_text(text))


def test_markdown_is_cut_at_headings_and_items() -> None:
    text = "# Title\n\n" + "\n".join(f"- item {number} without a full stop at its end" for number in range(40))
    chunks = chunk_text(text)
    check(text, chunks)
    assert len(chunks) > 2
    assert all(chunk.text.startswith(("# ", "- ")) for chunk in chunks)


@pytest.mark.parametrize("unit", ["x", "长", "word ", "ก", "عربي "])
def test_text_without_punctuation_is_cut_all_the_same(unit: str) -> None:
    text = unit * (20_000 // len(unit))
    chunks = chunk_text(text)
    check(text, chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 400
    assert len(chunks) <= 20_000 / 60


def test_a_cut_leaves_letters_with_their_accents() -> None:
    text = "e\u0301" * 1000
    chunks = chunk_text(text, max_chars=101)
    check(text, chunks)
    assert not any(chunk.text.startswith("\u0301") for chunk in chunks)


def test_windows_line_ends_keep_their_offsets() -> None:
    text = ("First paragraph. " * 20 + "\r\n\r\n") * 5
    check(text, chunk_text(text))


@pytest.mark.parametrize(("max_tokens", "chars"), [(None, 400), (256, 400), (77, 231), (64, 192)])
def test_chunk_chars(max_tokens: int | None, chars: int) -> None:
    assert chunk_chars(max_tokens) == chars


@given(st.one_of(st.text(), st.lists(PIECES, max_size=80).map("".join)), st.integers(10, 200))
def test_a_chunk_is_cut_further_only_for_a_model_that_reads_less(text: str, most: int) -> None:
    for chunk in chunk_text(text, max_chars=most):
        assert cut_further(chunk.fragment, chunk.text, max_chars=most) == [(chunk.fragment, chunk.text)]
        for fragment, piece in cut_further(chunk.fragment, chunk.text, max_chars=most // 2):
            assert fragment is not None
            start, end = map(int, fragment.removeprefix("char=").split("-"))
            assert text[start:end] == piece


@pytest.mark.parametrize(
    ("fragment", "first"),
    [(None, "char=0-9"), ("char=40-58", "char=40-49"), ("page=2&char=40-58", "page=2&char=40-49"), ("p", "p&char=0-9")],
)
def test_the_fragments_of_what_is_cut_further(fragment: str | None, first: str) -> None:
    assert cut_further(fragment, "Some one. Some two", max_chars=10)[0] == (first, "Some one.")
