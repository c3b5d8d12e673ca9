"""Heat-maps: what cells are scored, that exact maps are exact, and how they are painted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_kit import Run
from PIL import Image

import mmsearch
from mmsearch.retrieval import explain
from mmsearch.retrieval.encoders.cells import WINDOW, spread
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.encoders.models import load_encoder
from mmsearch.retrieval.encoders.open_clip import _import_open_clip
from mmsearch.retrieval.encoders.starter import StarterEncoder
from mmsearch.retrieval.explain import HeatMap, heat_map, heat_map_of

CLIP_VIT = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TIMM = {"timm_model_pretrained": False}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}

TOWERS: dict[str, tuple[dict[str, Any], str, tuple[int, int]]] = {
    "clip": (CLIP_VIT, "gradient", (4, 4)),
    "mean of tokens": ({**CLIP_VIT, "pool_type": "avg"}, "activation", (4, 4)),
    "coca": (
        {**CLIP_VIT, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 4},
        "gradient",
        (4, 4),
    ),
    "clip resnet": ({"image_size": 96, "layers": [1, 1, 1, 1], "width": 16, "head_width": 16}, "gradient", (3, 3)),
    "siglip": (
        {**TIMM, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "gradient",
        (10, 10),
    ),
    "timm class token": (
        {**TIMM, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
        "gradient",
        (10, 10),
    ),
    "linear": (
        {**TIMM, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 96},
        "activation",
        (3, 3),
    ),
    "mlp": (
        {**TIMM, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "mlp", "image_size": 96},
        "windows",
        (6, 6),
    ),
    "convnext": (
        {**TIMM, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "image_size": 96},
        "windows",
        (6, 6),
    ),
}
"""Small towers of each kind, the method that they allow, and the grid."""


def _encoder(folder: Path, vision: dict[str, Any], resize_mode: str = "squash") -> Any:
    """An open_clip model with random weights."""
    open_clip = _import_open_clip()
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=TEXT)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT}}
    config["preprocess_cfg"] = {"resize_mode": resize_mode}
    (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    return load_encoder(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The encoder of a kind of tower, made once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = _encoder(tmp_path_factory.mktemp("towers"), TOWERS[kind][0])
        return made[kind]

    return get


@pytest.fixture(scope="module")
def starter() -> StarterEncoder:
    return StarterEncoder(threads=1)


def _noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _collage(colours: tuple[str, str, str, str], side: int = 40) -> Image.Image:
    whole = Image.new("RGB", (2 * side, 2 * side))
    for place, colour in enumerate(colours):
        whole.paste(colour, (place % 2 * side, place // 2 * side, (place % 2 + 1) * side, (place // 2 + 1) * side))
    return whole


def _map(cells: Any, picture: Image.Image, box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> HeatMap:
    return HeatMap(np.array(cells, np.float32), "windows", box, 0.5, "x", picture)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_scores_its_cells_for_each_query(encoders: Callable[[str], Any], kind: str) -> None:
    encoder, (_, method, grid) = encoders(kind), TOWERS[kind]
    queries = encoder.encode_texts(["a red dog", "two cats"])
    first, second = (encoder.heat_map(_noise(120, 90), row) for row in queries)
    for cells in (first, second):
        assert (cells.method, cells.scores.shape, cells.scores.dtype) == (method, grid, np.float32)
        assert np.isfinite(cells.scores).all()
        assert cells.box == (0.0, 0.0, 1.0, 1.0)
        assert cells.scores.std() > 0
    assert np.abs(first.scores - second.scores).max() > 1e-3 * np.abs(first.scores).max()


@pytest.mark.parametrize("kind", [kind for kind, (_, method, _) in TOWERS.items() if method == "activation"])
def test_class_activation_maps_sum_to_the_cosine(encoders: Callable[[str], Any], kind: str) -> None:
    encoder, picture = encoders(kind), _noise(120, 90)
    row = encoder.encode_texts(["a red dog"])[0]
    cosine = encoder.encode_images([encoder.preprocess(picture)])[0] @ row
    assert encoder.heat_map(picture, row).scores.sum() == pytest.approx(cosine, abs=1e-5)
    assert abs(cosine) > 1e-3


@pytest.mark.parametrize("kind", TOWERS)
def test_what_moves_in_the_picture_moves_in_the_map(encoders: Callable[[str], Any], kind: str) -> None:
    encoder, size = encoders(kind), 160
    row = encoder.encode_texts(["a red dog"])[0]
    plain = Image.new("RGB", (size, size), (120, 130, 110))

    def changed(x: int, y: int) -> tuple[float, float]:
        """Where the map changes when a patch of noise is put into a plain picture there: the centre of the change."""
        with_patch = plain.copy()
        with_patch.paste(_noise(48, 48), (x, y))
        change = np.abs(encoder.heat_map(with_patch, row).scores - encoder.heat_map(plain, row).scores)
        change = change**2 / (change**2).sum()
        rows, columns = change.shape
        return float(change.sum(0) @ np.arange(columns)) / columns, float(change.sum(1) @ np.arange(rows)) / rows

    (left, top), (right, bottom) = changed(0, 0), changed(size - 48, size - 48)
    assert right > left + 0.1 and bottom > top + 0.1
    assert changed(size - 48, 0)[0] > left + 0.1 and changed(0, size - 48)[1] > top + 0.1


@pytest.mark.parametrize("kind", ["clip", "siglip", "mlp"])
def test_looking_into_a_tower_does_not_disturb_who_encodes(encoders: Callable[[str], Any], kind: str) -> None:
    encoder, picture = encoders(kind), _noise(64, 64)
    row = encoder.encode_texts(["a red dog"])[0]
    array = encoder.preprocess(picture)
    expected, cells = encoder.encode_images([array]), encoder.heat_map(picture, row).scores
    failures: list[object] = []

    def encode() -> None:
        for _ in range(10):
            rows = encoder.encode_images([array])
            if not np.allclose(rows, expected, atol=1e-6):
                failures.append(rows)

    def look() -> None:
        for _ in range(10):
            found = encoder.heat_map(picture, row).scores
            if not np.allclose(found, cells, rtol=1e-3, atol=1e-6):
                failures.append(found)

    threads = [threading.Thread(target=target) for target in (encode, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    np.testing.assert_allclose(encoder.encode_images([array]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "box"), [("shortest", (0.25, 0, 0.75, 1)), ("longest", (0, -0.5, 1, 1.5)), ("squash", (0, 0, 1, 1))]
)
def test_cells_lie_where_the_model_looks(tmp_path: Path, mode: str, box: tuple[float, ...]) -> None:
    encoder = _encoder(tmp_path / mode, CLIP_VIT, mode)
    picture = _noise(200, 100)
    row = encoder.encode_texts(["a red dog"])[0]
    found = heat_map_of(encoder, picture, row)
    assert found.box == pytest.approx(box)
    seen = ~np.isnan(found.heat)
    assert seen.all(axis=0).sum() == {"shortest": 100}.get(mode, 200)
    assert seen.any(axis=0).sum() == seen.all(axis=0).sum()
    x, y = found.hottest
    assert max(box[0], 0) <= x <= min(box[2], 1) and 0 <= y <= 1
    outside = picture.copy()  # what the model crops away changes nothing
    outside.paste("white", (0, 0, 45, 100))
    same = np.allclose(heat_map_of(encoder, outside, row).cells, found.cells, atol=1e-7)
    assert same == (mode == "shortest")


def test_a_window_as_large_as_the_map_is_the_towers_own_pool(starter: StarterEncoder) -> None:
    pixels = np.asarray(_noise(32 * WINDOW, 32 * WINDOW))
    (windows,) = starter.graphs.get("windows.onnx").run(None, {"pixels": pixels[None]})[0]
    assert windows.shape == (1, 1, starter.dim)
    row = windows[0, 0] / np.linalg.norm(windows[0, 0])
    np.testing.assert_allclose(row, starter.encode_images([pixels])[0], atol=1e-5)


def test_the_starter_gives_the_same_map_in_torch(starter: StarterEncoder, tmp_path: Path) -> None:
    from mmsearch.retrieval.encoders.export import export_open_clip

    other = load_encoder(f"local-dir:{export_open_clip(tmp_path / 'starter')}", device="cpu")
    picture = _collage(("red", "green", "blue", "white"), 100)
    row = starter.encode_texts(["a red ball"])[0]
    mine, theirs = heat_map_of(starter, picture, row), heat_map_of(other, picture, row)
    assert mine.method == theirs.method == "windows"
    assert mine.cells.shape == (17, 17)
    np.testing.assert_allclose(mine.cells, theirs.cells, atol=1e-3)
    assert np.ptp(mine.cells) > 0.05
    assert mine.score == pytest.approx(theirs.score, abs=1e-3)


def test_the_starter_points_at_what_a_caption_names(starter: StarterEncoder, shared: Path) -> None:
    from mmsearch.indexers.train.data import read_captioned

    photos = read_captioned(shared / "flickr8k", "train")
    right = 0
    for case in range(8):
        four = [Image.open(photos.paths[500 * case + 100 * place]).convert("RGB") for place in range(4)]
        whole = Image.new("RGB", (448, 448))
        for place, photo in enumerate(four):
            whole.paste(photo.resize((224, 224)), (place % 2 * 224, place // 2 * 224))
        x, y = heat_map(lambda: starter, photos.english[500 * case + 100 * (case % 4)][0], whole).hottest
        right += 2 * (y >= 0.5) + (x >= 0.5) == case % 4
    assert right >= 6


def test_the_starter_looks_without_torch() -> None:
    code = (
        "import sys; from PIL import Image; from mmsearch.retrieval.encoders.starter import StarterEncoder as S;"
        "from mmsearch.retrieval.explain import heat_map; heat_map(S, 'a dog', Image.new('RGB', (9, 9))).png();"
        "print(sorted({'torch', 'onnx', 'transformers', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cells_get_the_mean_of_the_windows_that_cover_them() -> None:
    windows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    found = spread(windows, 3)
    assert (found.shape, found.dtype) == ((5, 6), np.float32)
    for row in range(5):
        for column in range(6):
            covering = windows[max(0, row - 2) : row + 1, max(0, column - 2) : column + 1]
            assert found[row, column] == pytest.approx(covering.mean(), abs=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_an_encoder_that_cannot_be_looked_into_encodes_crops(place: int) -> None:
    colours = ["grey"] * 4
    colours[place] = "red"
    found = heat_map(FakeEncoder, "红色", _collage((colours[0], colours[1], colours[2], colours[3])))
    assert (found.method, found.cells.shape, found.model) == ("crops", (8, 8), "fake")
    x, y = found.hottest
    assert 2 * (y >= 0.5) + (x >= 0.5) == place


def test_a_tower_of_an_unknown_kind_is_given_crops(tmp_path: Path) -> None:
    vision = {**TIMM, "timm_model_name": "test_byobnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
    encoder = _encoder(tmp_path / "model", vision)
    assert encoder.heat_map(_noise(64, 64), np.ones(64, np.float32)) is not None
    encoder.module.visual.trunk.output_fmt = "NHWC"  # as Swin's is, which has no small one
    assert encoder.heat_map(_noise(64, 64), np.ones(64, np.float32)) is None
    assert heat_map(lambda: encoder, "a dog", _noise(64, 64)).method == "crops"


def test_the_score_is_that_of_a_search(tmp_path: Path, pictures: Path) -> None:
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        index.add(pictures)
        hit = index.search("red", mode="dense")[0]
        assert hit.path is not None
        found = index.heat_map("red", hit.path)
    assert found.score == pytest.approx(hit.score, abs=1e-3)  # a search decodes to another size


def test_turned_photos_are_shown_and_searched_upright(tmp_path: Path) -> None:
    upright = _collage(("red", "grey", "grey", "grey"), 64).resize((96, 128))
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    found = heat_map(FakeEncoder, "red", path)
    assert found.picture.size == (96, 128)
    assert max(found.hottest) < 0.5
    assert Image.open(io.BytesIO(found.png())).size == (96, 128)


def test_large_pictures_are_painted_smaller() -> None:
    found = heat_map(FakeEncoder, "red", Image.new("RGB", (5000, 300), "red"))
    assert found.picture.size == (2048, 123)
    assert found.paint().size == (2048, 123)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_pictures_of_a_line_are_painted(encoders: Callable[[str], Any], tmp_path: Path, size: tuple[int, int]) -> None:
    cropping = _encoder(tmp_path / "cropping", CLIP_VIT, "shortest")
    for encoder in (FakeEncoder(), encoders("mlp"), cropping):
        assert heat_map(lambda encoder=encoder: encoder, "red", Image.new("RGB", size)).paint().size == size


def test_paint_is_grey_where_it_is_cold_and_bright_where_it_is_hot() -> None:
    picture = Image.new("RGB", (100, 100), (200, 40, 40))
    painted = np.asarray(_map([[0, 0, 0], [0, 0, 0], [0, 0, 9]], picture).paint()).astype(int)
    cold, hot = painted[10, 10], painted[95, 95]
    assert cold[0] == cold[1] == cold[2]
    assert hot.sum() > cold.sum() + 150 and hot[0] > hot[2] + 50


def test_what_the_model_does_not_see_is_dark_and_never_hottest() -> None:
    picture = Image.new("RGB", (100, 50), "white")
    cropped = _map([[0, 1], [0, 0]], picture, (0.25, 0.0, 0.75, 1.0))
    painted = np.asarray(cropped.paint())
    assert painted[:, :25].max() < painted[:, 25:75].min()
    assert painted[:, 75:].max() < painted[:, 25:75].min()
    assert 0.5 < cropped.hottest[0] < 0.75 and cropped.hottest[1] < 0.5
    padded = _map([[9, 9, 9, 9], [0, 1, 2, 1], [0, 0, 0, 0], [9, 9, 9, 9]], picture, (0.0, -0.5, 1.0, 1.5))
    assert padded.heat.shape == (50, 100)
    assert not np.isnan(padded.heat).any()
    assert all(0 <= share <= 1 for share in padded.hottest)


def test_a_map_without_differences_is_cold() -> None:
    flat = _map(np.full((4, 4), 0.3), _noise(20, 20))
    assert flat.heat.max() == 0
    assert flat.half_of_heat == 0.5
    flat.paint()


def test_half_of_the_heat_lies_on_so_much_of_the_picture() -> None:
    picture = Image.new("RGB", (160, 160))
    one, many = np.zeros((8, 8)), np.zeros((8, 8))
    one[2, 2] = 1
    many[:, :3] = 1
    assert _map(one, picture).half_of_heat < 0.03
    assert _map(many, picture).half_of_heat == pytest.approx(3 / 16, abs=0.03)


def test_lightness_rises_in_even_steps() -> None:
    rgb = np.array(explain._COLOURS) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16  # CIE L*, sRGB primaries
    steps = np.diff(lightness)
    assert (np.abs(steps - steps.mean()) < 2).all()
    assert steps.mean() > 15


@pytest.mark.parametrize("query", ["", "  \n", "a\ud800"])
def test_a_query_that_says_nothing_loads_no_model(query: str) -> None:
    def never() -> Any:
        raise AssertionError

    with pytest.raises(mmsearch.UsageError):
        heat_map(never, query, Image.new("RGB", (9, 9)))


def test_python_takes_paths_bytes_and_pictures(tmp_path: Path) -> None:
    picture = _collage(("red", "grey", "grey", "grey"))
    path = tmp_path / "x.png"
    picture.save(path)
    with mmsearch.open(tmp_path / "none", model="fake") as index:
        maps = [index.heat_map("red", each) for each in (path, str(path), path.read_bytes(), picture)]
    assert not (tmp_path / "none").exists()
    for found in maps:
        np.testing.assert_array_equal(found.cells, maps[0].cells)
    assert isinstance(maps[0], mmsearch.HeatMap)


def test_the_model_of_the_index_looks_unless_another_is_named(tmp_path: Path, pictures: Path) -> None:
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        index.add(pictures)
    picture = pictures / "red-square.png"
    assert mmsearch.open(tmp_path / "index").heat_map("red", picture).model == "fake"
    assert mmsearch.open(tmp_path / "index", model="starter").heat_map("red", picture).model == "starter"


def test_the_command_writes_a_picture_and_says_what_it_shows(run: Run, pictures: Path, tmp_path: Path) -> None:
    picture, out = pictures / "red-square.png", tmp_path / "heat.png"
    plain = run("explain", "红色", picture, "-o", out, "--model", "fake")
    assert plain.code == 0
    score, place, path = plain.out.rstrip("\n").split("\t")
    assert path == str(out)
    with Image.open(out) as shown, Image.open(picture) as original:
        assert shown.format == "PNG"
        assert shown.size == original.size
        assert all(0 <= int(at) < side for at, side in zip(place.split(","), shown.size, strict=True))
    (found,) = run("explain", "红色", picture, "-o", out, "--model", "fake", "--json").json
    assert found["path"] == str(out)
    assert found["score"] == pytest.approx(float(score), abs=1e-6)
    assert found["hottest"] == [int(at) for at in place.split(",")]
    assert (found["model"], found["method"]) == ("fake", "crops")
    assert 0 < found["half_of_heat"] <= 0.5


def test_the_command_refuses_what_cannot_be_meant(run: Run, pictures: Path, tmp_path: Path) -> None:
    picture, out = pictures / "red-square.png", tmp_path / "heat.png"
    before = picture.read_bytes()
    (tmp_path / "link.png").symlink_to(picture)

    def refused(query: str, image: Path, target: Path, code: int, says: str) -> None:
        result = run("explain", query, image, "-o", target, "--model", "fake")
        assert result.code == code
        assert says in result.err
        assert result.err.startswith("mmsearch: ") and result.err.count("\n") == 1
        assert result.out == ""

    refused("red", tmp_path / "none.png", out, 2, "does not exist")
    refused("red", pictures / "roses.txt", out, 1, "not a picture")
    refused("red", pictures, out, 1, "cannot be read")
    refused(" ", picture, out, 2, "the query is empty")
    refused("red", picture, picture, 2, "is the picture itself")
    refused("red", picture, tmp_path / "link.png", 2, "is the picture itself")
    refused("red", picture, tmp_path, 2, "is a folder")
    refused("red", picture, tmp_path / "heat.jpg", 2, "end the name with .png")
    refused("red", picture, tmp_path / "none" / "heat.png", 2, "does not exist")
    assert picture.read_bytes() == before
    assert not out.exists()
    without = run("explain", "red", picture)
    assert without.code == 2
    assert "--out" in without.err


def test_a_disk_that_is_full_is_an_error_in_words(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("explain", "red", pictures / "red-square.png", "-o", tmp_path / "heat.png", "--model", "fake")
    assert result.code == 2
    assert "cannot be written: No space left on device" in result.err
