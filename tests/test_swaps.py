"""Captions with one thing changed."""

from __future__ import annotations

import difflib

import pytest

from mmsearch.indexers.train.joint.swaps import swaps

CAPTION = "A black dog and a white dog run behind a man in the snow ."


def test_one_thing_is_changed_by_kind() -> None:
    found = {swap.kind: swap.text for swap in swaps(CAPTION, "en")}
    assert set(found) == {"attribute", "object", "relation", "order"}
    for kind in ("attribute", "object", "relation"):
        old, new = CAPTION.split(), found[kind].split()
        different = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
        assert len([pair for pair in different if pair[0].lower() not in ("a", "an")]) == 1, found[kind]


def test_two_words_of_a_kind_change_places() -> None:
    order = next(swap.text for swap in swaps(CAPTION, "en") if swap.kind == "order")
    assert order == "A white dog and a black dog run behind a man in the snow ."


def test_the_new_word_is_not_in_the_caption_already() -> None:
    for seed in range(30):
        found = {swap.kind: swap.text for swap in swaps("a red ball and a blue ball", "en", seed)}
        assert found["attribute"].count("red") + found["attribute"].count("blue") == 1


def test_articles_follow_the_new_word() -> None:
    made = {swap.text for seed in range(60) for swap in swaps("A blue hat .", "en", seed) if swap.kind == "attribute"}
    assert "An orange hat ." in made
    assert "A red hat ." in made
    assert not {text for text in made if text.startswith("An ") and text[3] not in "aeio"}


def test_words_within_words_stay() -> None:
    assert swaps("the rediscovered manual of a catalogue", "en") == []


def test_chinese_words_are_changed() -> None:
    (swap,) = swaps("一只狗", "zh")[:1]
    assert swap.kind in ("attribute", "object")
    kinds = {one.kind for one in swaps("一个穿红色衬衫的男人坐在海滩上面", "zh")}
    assert {"attribute", "object", "relation"} <= kinds


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_same_seed_gives_the_same_changes(language: str) -> None:
    caption = CAPTION if language == "en" else "两只狗在草地上跑"
    assert swaps(caption, language, 3) == swaps(caption, language, 3)
    assert len({tuple(one.text for one in swaps(caption, language, seed)) for seed in range(20)}) > 1


def test_other_languages_have_no_words_here() -> None:
    assert swaps("ein roter Ball", "de") == []


def test_changes_are_small() -> None:
    for swap in swaps(CAPTION, "en"):
        assert difflib.SequenceMatcher(None, CAPTION, swap.text).ratio() > 0.8
