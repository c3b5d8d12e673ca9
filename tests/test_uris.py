from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.uris import absolute_path, path_to_uri, uri_to_path

NAMES = [
    "a.jpg",
    "a b.jpg",
    "50%.jpg",
    "a_b.jpg",
    'it\'s "q".jpg',
    "line\nbreak.jpg",
    "猫.jpg",
    "🐈.jpg",
    "a+b&c#d?.jpg",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_survives_the_round_trip(name: str) -> None:
    uri = path_to_uri(f"folder/{name}")
    assert uri.isascii()
    assert uri.isprintable()
    assert uri_to_path(uri) == os.path.join("folder", name)


def test_plain_names_stay_as_they_are_and_others_are_percent_encoded() -> None:
    assert path_to_uri("holidays/IMG_0001-a~.jpg") == "holidays/IMG_0001-a~.jpg"
    assert path_to_uri("50% off/猫.jpg") == "50%25%20off/%E7%8C%AB.jpg"


def test_bytes_that_are_no_utf8_survive() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert path_to_uri(name) == "caf%E9.jpg"
    assert uri_to_path("caf%E9.jpg") == name


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw))
def test_every_byte_string_survives(raw: bytes) -> None:
    name = os.fsdecode(raw)
    uri = path_to_uri(name)
    assert uri.isascii()
    assert os.fsencode(uri_to_path(uri)) == raw


def test_absolute_path_under_a_folder_and_under_a_drive_root() -> None:
    assert absolute_path("/photos", "a%20b.jpg") == "/photos/a b.jpg"
    assert absolute_path("/", "photos/a.jpg") == "/photos/a.jpg"
