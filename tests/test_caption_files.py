"""Captions files: every format, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmsearch.retrieval.errors import MediaError, MMSearchError, PathNotFound, UsageError
from mmsearch.retrieval.evaluate.datasets import CaptionSet, read_captions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files that stand for pictures: reading captions opens none."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    return tmp_path


def _write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def _pairs(captions: CaptionSet) -> list[tuple[str, str, str]]:
    """Picture, language and text of every caption."""
    return [(captions.pictures[one.picture].name, one.language, one.text) for one in captions.captions]


_EXPECTED = [("a.jpg", "en", "a red ball"), ("a.jpg", "en", "a ball"), ("b.jpg", "en", "a blue sky")]

_COCO = {
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "a red ball"},
        {"image_id": 3, "id": 2, "caption": "a blue sky\n"},
        {"image_id": 7, "id": 3, "caption": "a ball"},
    ],
}
_KARPATHY = {
    "dataset": "flickr8k",
    "images": [
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a red ball", "tokens": []}, {"raw": "a ball"}]},
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "a blue sky"}]},
    ],
}
_RECORDS = [
    {"file_name": "a.jpg", "split": "val", "captions": ["a red ball", "a ball"]},
    {"file_name": "b.jpg", "split": "val", "captions": ["a blue sky"]},
]
_FORMATS: dict[str, tuple[Any, str]] = {
    "coco": (_COCO, "coco"),
    "karpathy": (_KARPATHY, "karpathy"),
    "flickr": ("a.jpg#0\ta red ball\na.jpg#1\ta ball\nb.jpg#0\ta blue sky\n", "flickr"),
    "csv": ("image,caption\na.jpg,a red ball\na.jpg,a ball\nb.jpg,a blue sky\n", "records"),
    "csv with other names": ('File_Name;Text\r\na.jpg;"a red ball"\r\na.jpg;a ball\r\nb.jpg;a blue sky\r\n', "records"),
    "tsv": ("filename\ttext\na.jpg\ta red ball\na.jpg\ta ball\nb.jpg\ta blue sky\n", "records"),
    "flickr30k's csv": (
        "image_name| comment_number| comment\na.jpg| 0| a red ball\na.jpg| 1| a ball\nb.jpg| 0| a blue sky\n",
        "records",
    ),
    "records": (_RECORDS, "records"),
    "by name": ({"a.jpg": ["a red ball", "a ball"], "b.jpg": "a blue sky"}, "records"),
    "records by name": ({"a.jpg": {"captions": ["a red ball", "a ball"]}, "b.jpg": {"text": "a blue sky"}}, "records"),
    "json lines": ("\n".join(json.dumps(each) for each in _RECORDS) + "\n", "records"),
    "one picture a line and caption": (
        "\n".join(json.dumps({"path": name, "caption": text}) for name, _, text in _EXPECTED),
        "records",
    ),
}


@pytest.mark.parametrize("name", _FORMATS)
def test_a_format_is_known_by_its_content(folder: Path, name: str) -> None:
    content, format_ = _FORMATS[name]
    captions = read_captions(_write(folder, "odd.name", content))
    assert captions.format == format_
    assert _pairs(captions) == _EXPECTED
    assert [picture.path for picture in captions.pictures] == [folder / "images" / "a.jpg", folder / "images" / "b.jpg"]
    assert captions.left_out.missing == ()


def test_a_byte_order_mark_and_utf_16_are_read(folder: Path) -> None:
    text = "image,caption\na.jpg,天空\n"
    (folder / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (folder / "b.csv").write_bytes(text.encode("utf-16"))
    for name in ("a.csv", "b.csv"):
        assert _pairs(read_captions(folder / name)) == [("a.jpg", "en", "天空")]


def test_a_caption_keeps_odd_line_separators_in_its_line(folder: Path) -> None:
    path = _write(folder, "token.txt", "a.jpg#0\tone\u2028two\nb.jpg#0\tthree\x85four\n")
    assert [one.text for one in read_captions(path).captions] == ["one two", "three four"]


def test_languages_are_columns_and_fields(folder: Path) -> None:
    path = _write(folder, "captions.json", [{"image": "a.jpg", "captions": ["sky"], "captions_zh": ["天空", "蓝天"]}])
    both = [("a.jpg", "en", "sky"), ("a.jpg", "zh", "天空"), ("a.jpg", "zh", "蓝天")]
    assert _pairs(read_captions(path)) == both
    assert read_captions(path).languages == ("en", "zh")
    assert _pairs(read_captions(path, languages=["zh"])) == both[1:]
    table = _write(folder, "x.csv", "image,text,language\na.jpg,sky,en\na.jpg,天空,zh\na.jpg,蓝天,zh\n")
    assert _pairs(read_captions(table)) == both
    with pytest.raises(UsageError, match=r"no captions in 'fr', only in en, zh"):
        read_captions(table, languages=["fr"])


def test_a_split_is_chosen_and_a_wrong_one_says_which_exist(folder: Path) -> None:
    rows = "image,caption,split\na.jpg,one,train\nb.jpg,two,val\n"
    path = _write(folder, "x.csv", rows)
    assert _pairs(read_captions(path, split="val")) == [("b.jpg", "en", "two")]
    with pytest.raises(UsageError, match=r"no split 'test'; it has train, val"):
        read_captions(path, split="test")
    with pytest.raises(UsageError, match="it has no splits"):
        read_captions(_write(folder, "token.txt", "a.jpg#0\tone\n"), split="val")


def test_karpathys_folders_are_part_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "a.jpg").write_bytes(b"")
    image = {"filepath": "val2014", "filename": "a.jpg", "split": "val", "sentences": [{"raw": "one"}]}
    path = _write(tmp_path, "dataset_coco.json", {"images": [image]})
    assert read_captions(path).pictures[0].path == tmp_path / "val2014" / "a.jpg"
    assert read_captions(path, images=tmp_path / "val2014").pictures[0].path == tmp_path / "val2014" / "a.jpg"


def test_cocos_folders_are_found(tmp_path: Path) -> None:
    for name in ("val2017", "annotations"):
        (tmp_path / name).mkdir()
    (tmp_path / "val2017" / "a.jpg").write_bytes(b"")
    captions = read_captions(_write(tmp_path / "annotations", "captions_val2017.json", _COCO))
    assert captions.pictures[0].path == tmp_path / "val2017" / "a.jpg"
    assert captions.left_out.missing == ("b.jpg",)


def test_a_folder_is_its_captions_file(folder: Path) -> None:
    with pytest.raises(UsageError, match="has no captions file"):
        read_captions(folder)
    _write(folder, "set.csv", _FORMATS["csv"][0])
    assert read_captions(folder).source == folder / "set.csv"
    _write(folder, "other.csv", _FORMATS["csv"][0])
    with pytest.raises(UsageError, match=r"several files .*other.csv, set.csv"):
        read_captions(folder)
    _write(folder, "captions.json", _RECORDS)
    assert read_captions(folder).source == folder / "captions.json"


def test_missing_pictures_are_counted_and_left_out(folder: Path) -> None:
    rows = "image,caption\na.jpg,one\ngone.jpg,two\ngone.jpg,three\nlost.jpg,four\n"
    captions = read_captions(_write(folder, "x.csv", rows))
    assert _pairs(captions) == [("a.jpg", "en", "one")]
    assert captions.left_out.missing == ("gone.jpg", "lost.jpg")
    assert captions.left_out.missing_captions == 3


def test_it_is_an_error_when_no_picture_is_there(folder: Path) -> None:
    path = _write(folder, "x.csv", "image,caption\ngone.jpg,one\nlost.jpg,two\n")
    with pytest.raises(UsageError, match=r"none of the 2 pictures .* is there \(gone.jpg, lost.jpg\).*--images"):
        read_captions(path)


def test_a_picture_that_a_caption_has_no_entry_for_is_missing(folder: Path) -> None:
    coco = {**_COCO, "annotations": [*_COCO["annotations"], {"image_id": 99, "caption": "nothing"}]}
    captions = read_captions(_write(folder, "coco.json", coco))
    assert captions.left_out.missing == ("(image 99)",)


def test_empty_captions_are_left_out_and_counted(folder: Path) -> None:
    records = [{"image": "a.jpg", "captions": ["", " \n", "one", None]}, {"image": "b.jpg", "captions": [""]}]
    captions = read_captions(_write(folder, "captions.json", records))
    assert _pairs(captions) == [("a.jpg", "en", "one")]
    assert (captions.left_out.empty, captions.left_out.uncaptioned) == (4, 1)
    with pytest.raises(UsageError, match="all 2 are empty"):
        read_captions(_write(folder, "empty.csv", "image,caption\na.jpg,\nb.jpg, \n"))


def test_one_pair_and_equal_captions_are_well(folder: Path) -> None:
    assert len(read_captions(_write(folder, "one.csv", "image,caption\na.jpg,one\n")).captions) == 1
    same = read_captions(_write(folder, "same.csv", "image,caption\na.jpg,one\nb.jpg,one\n"))
    assert [one.picture for one in same.captions] == [0, 1]


_BROKEN: dict[str, tuple[Any, type[MMSearchError], str]] = {
    "cut off": ('[{"file_name": "a.jpg",', MediaError, "broken JSON, in line 1"),
    "a broken line": ('{"image": "a.jpg", "text": "x"}\n{"image": \n', MediaError, "broken JSON, in line 2"),
    "deep": ("[" * 100_000, MediaError, "JSON"),
    "empty": ("", UsageError, "is empty"),
    "an empty list": ("[]", UsageError, "has no captions"),
    "no names": ([{"captions": ["x"]}], UsageError, "entry 1: it names no picture"),
    "no objects": (["a.jpg"], UsageError, "entry 1: not an object"),
    "COCO without captions": (
        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": []}]},
        UsageError,
        "annotations without captions",
    ),
    "COCO without names": (
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "x"}]},
        MediaError,
        "an entry has no 'file_name'",
    ),
    "Karpathy without text": (
        {"images": [{"filename": "a.jpg", "sentences": [{"tokens": []}]}]},
        MediaError,
        "an entry has no 'raw'",
    ),
    "flickr with another line": ("a.jpg#0\tone\nnonsense\n", MediaError, "line 2"),
    "no picture column": ("text,label\nx,y\n", UsageError, "no column with pictures"),
    "no caption column": ("image,label\na.jpg,y\n", UsageError, "no column with captions"),
    "labels only": ([{"image": "a.jpg", "label": "shirt"}], UsageError, "has no captions"),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_broken_file_says_what_is_wrong(folder: Path, name: str) -> None:
    content, error, message = _BROKEN[name]
    with pytest.raises(error, match=message):
        read_captions(_write(folder, "broken", content))


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "x.csv").write_bytes(b"image,caption\na.jpg,\xff\xfe\n")
    with pytest.raises(MediaError, match=r"x.csv: not UTF-8"):
        read_captions(folder / "x.csv")


def test_paths_that_are_not_there(folder: Path) -> None:
    with pytest.raises(PathNotFound, match=r"none.csv does not exist"):
        read_captions(folder / "none.csv")
    with pytest.raises(PathNotFound, match="is no folder with pictures"):
        read_captions(_write(folder, "x.csv", _FORMATS["csv"][0]), images=folder / "nowhere")


def test_the_shared_captions_are_read(shared: Path) -> None:
    val = read_captions(shared / "flickr8k", split="val")
    assert (len(val.pictures), len(val.captions), val.languages) == (1000, 10_000, ("en", "zh"))
    assert len(read_captions(shared / "coco_dev").captions) == 650
