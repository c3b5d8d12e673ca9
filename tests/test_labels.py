"""Labels: what can be one, files of them, and the lists that come with mmsearch."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.indexers.labels import Label, gathered, list_names, listed_labels, parse_label, read_labels
from mmsearch.retrieval.errors import PathNotFound, UsageError


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("dog", Label("dog", "dog")),
        ("  two   words ", Label("two words", "two words")),
        ("pool = a swimming pool, outdoors", Label("pool", "a swimming pool, outdoors")),
        ("a=b=c", Label("a", "b=c")),
        ("狗 = dog", Label("狗", "dog")),
        ('"; DROP TABLE tags; --', Label('"; DROP TABLE tags; --', '"; DROP TABLE tags; --')),
        ("rock'n'roll", Label("rock'n'roll", "rock'n'roll")),
        ("cafe\u0301", Label("caf\u00e9", "cafe\u0301")),
    ],
)
def test_what_a_label_is_read_as(text: str, label: Label) -> None:
    assert parse_label(text) == label


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is no label: write a tag"),
        ("   ", "is no label: write a tag"),
        ("=", "is no label: write a tag"),
        ("= a dog", "is no label: write a tag"),
        ("dog =", "is no label: write a tag"),
        ("dog,cat,beach", "'dog,cat,beach' is no tag, for its comma: give each label by itself"),
        ("dog\ncat", "'dog\\ncat' is no label: it has a line end"),
        ("dog = a\x1b[31m dog", "control character"),
        ("dog\tcat", "control character"),
        ("half\udcff", "control character"),
        ("x" * 201, "200 characters at most"),
        ("dog = " + "x" * 201, "200 characters at most"),
    ],
)
def test_what_is_no_label(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_label(text)
    assert said in str(raised.value)
    assert "\x1b" not in str(raised.value) and len(str(raised.value)) < 250


@given(st.text())
def test_any_text_is_a_label_or_refused(text: str) -> None:
    try:
        tag, words = parse_label(text)
    except UsageError:
        return
    assert tag.strip() == tag != "" and words.strip() == words != ""
    assert parse_label(f"{tag} = {words}") == (tag, words)


def test_files_of_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeff# what I have\r\ndog\r\n\r\n  猫 = a cat  \n#cat\nC# = a score\n".encode())
    assert read_labels(file) == [Label("dog", "dog"), Label("猫", "a cat"), Label("C#", "a score")]
    file.write_bytes(b"")
    assert read_labels(file) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"dog\ncat, horse\n", "line 2: 'cat, horse' is no tag"),
        (b"# cats\n\ncaf\xe9\n", "line 3 is not UTF-8"),
        (b"dog = \n", "line 1: 'dog =' is no label"),
        ("dog\n".encode("utf-16"), "line 1 is not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_labels(file)
    assert str(raised.value).startswith(f"{file}, {said}")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PathNotFound, match=r"no-such\.txt does not exist"):
        read_labels(tmp_path / "no-such.txt")
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_labels("nul\0")


def test_labels_are_gathered_in_order_each_once(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\nDOG = a puppy\ndog\n", encoding="utf-8")
    labels = gathered(["Dog = dog", "dog", "beach"], [file], ["everyday"])
    assert labels[:4] == [Label("Dog", "dog"), Label("beach", "beach"), Label("cat", "cat"), Label("Dog", "a puppy")]
    assert len(labels) == len(set(labels)) == len(listed_labels("everyday")) + 1  # two of the list were named
    for nothing in ([], [file.parent / "empty.txt"]):
        (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
        with pytest.raises(UsageError, match="there are no labels: name some"):
            gathered([], nothing)


def test_the_lists_that_come_with_mmsearch() -> None:
    assert list_names() == ["everyday", "everyday-zh"]
    english, chinese = listed_labels("everyday"), listed_labels("everyday-zh")
    assert len(english) > 200
    assert [label.words for label in chinese] == [label.words for label in english]
    for labels in (english, chinese):
        assert len({label.tag.lower() for label in labels}) == len(labels)
    assert all(label.tag.isascii() for label in english)
    assert not any(label.tag.isascii() for label in chinese)
    with pytest.raises(UsageError, match="the lists are everyday, everyday-zh; --labels reads a file"):
        listed_labels("../everyday")
