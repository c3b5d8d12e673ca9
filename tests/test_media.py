from __future__ import annotations

import io
import json
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from mmsearch.retrieval import media
from mmsearch.retrieval.errors import MediaError
from mmsearch.retrieval.exif import Exif, parse_exif
from mmsearch.retrieval.media import content_hash, decode_text, load_image, perceptual_hash, upright

TARGET = (64, 64)
RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 200, 20), (20, 20, 220), (230, 220, 20)


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Four colours, so that every orientation is another picture."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def photo(width: int, height: int) -> Image.Image:
    """Something with structure at every scale."""
    gradient = Image.linear_gradient("L").resize((width, height))
    image = Image.merge("RGB", (gradient, gradient.rotate(180), Image.radial_gradient("L").resize((width, height))))
    draw = ImageDraw.Draw(image)
    for step in range(0, width, max(width // 12, 1)):
        draw.ellipse((step, step // 2, step + width // 10, step // 2 + height // 8), fill=(step % 256, 90, 200))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """A colour PNG by hand, whose header may lie."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


def loaded(content: bytes, target: tuple[int, int] = TARGET) -> Image.Image:
    return load_image(content, target=target).image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    width, height = image.size
    places = [(width // 4, height // 4), (3 * width // 4, height // 4)]
    places += [(x, 3 * height // 4) for x, _ in places]
    return [image.getpixel(place) for place in places]  # type: ignore[misc]


def close(left: Any, right: Any, most: float) -> bool:
    return bool(np.abs(np.asarray(left, dtype=float) - np.asarray(right, dtype=float)).max() <= most)


# --- orientation -----------------------------------------------------------------------------------------------

CAMERA_TURNS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned: Image.Image = CAMERA_TURNS[orientation](quarters())
    result = load_image(saved(turned, kind, exif=exif), target=TARGET)
    assert result.image.size == (result.metadata.width, result.metadata.height) == (96, 64)
    assert close(corners(result.image), [RED, GREEN, BLUE, YELLOW], 40)
    assert result.metadata.orientation == orientation or kind == "AVIF"
    assert result.image.getexif().get(0x0112, 1) == 1, "nobody may turn it a second time"


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    result = load_image(saved(quarters(), "JPEG", exif=exif), target=TARGET)
    assert result.metadata.orientation is None
    assert close(corners(result.image), [RED, GREEN, BLUE, YELLOW], 40)


def test_orientation_from_xmp_and_from_imagemagicks_png_profile() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    turned = CAMERA_TURNS[3](quarters())
    assert close(corners(loaded(saved(turned, "JPEG", xmp=xmp))), [RED, GREEN, BLUE, YELLOW], 40)
    from PIL.PngImagePlugin import PngInfo

    exif = Image.Exif()
    exif[0x0112] = 3
    block = exif.tobytes()
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    assert close(corners(loaded(saved(turned, "PNG", pnginfo=text))), [RED, GREEN, BLUE, YELLOW], 5)


# --- modes -----------------------------------------------------------------------------------------------------


def test_cmyk_with_the_inversion_of_adobe() -> None:
    content = saved(quarters().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in content
    assert close(corners(loaded(content)), [RED, GREEN, BLUE, YELLOW], 40)
    assert close(corners(loaded(saved(quarters().convert("CMYK"), "TIFF"))), [RED, GREEN, BLUE, YELLOW], 40)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour_is_on_white(kind: str) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 10, 30, 30))
    result = loaded(saved(image, kind, transparency=0))
    assert close(result.getpixel((2, 2)), (255, 255, 255), 0)
    assert close(result.getpixel((20, 20)), (255, 0, 0), 0)


def test_a_palette_with_many_alphas_is_on_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(1, (10, 10, 30, 30))
    result = loaded(saved(image, "PNG", transparency=bytes([128, 255])))
    assert close(result.getpixel((2, 2)), (127, 127, 255), 1)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_alpha_is_on_white(mode: str) -> None:
    layers = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    layers.paste((0, 0, 0, 255), (10, 10, 30, 30))
    layers.paste((0, 0, 0, 128), (0, 0, 5, 5))
    image = layers.convert(mode) if mode != "PA" else layers.convert("P").convert("PA")
    result = loaded(saved(image, "TIFF" if mode == "PA" else "PNG"))
    if mode != "PA":
        assert close(result.getpixel((35, 35)), (255, 255, 255), 0)
        assert close(result.getpixel((2, 2)), (127, 127, 127), 1)
    assert close(result.getpixel((20, 20)), (0, 0, 0), 0)


def test_a_white_logo_is_on_black() -> None:
    layers = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    layers.paste((255, 255, 255, 255), (10, 10, 30, 30))
    result = loaded(saved(layers, "PNG"))
    assert result.getpixel((2, 2)) == (0, 0, 0)
    assert result.getpixel((20, 20)) == (255, 255, 255)


def test_a_png_with_a_transparent_grey_or_colour() -> None:
    grey = Image.new("L", (20, 20), 0)
    grey.paste(100, (5, 5, 15, 15))
    assert loaded(saved(grey, "PNG", transparency=0)).getpixel((1, 1)) == (255, 255, 255)
    colour = Image.new("RGB", (20, 20), (1, 2, 3))
    colour.paste(RED, (5, 5, 15, 15))
    result = loaded(saved(colour, "PNG", transparency=(1, 2, 3)))
    assert (result.getpixel((1, 1)), result.getpixel((10, 10))) == ((255, 255, 255), RED)


def ramp(dtype: str, most: float) -> np.ndarray[Any, Any]:
    return np.linspace(0, most, 64 * 64).reshape(64, 64).astype(dtype)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (ramp("uint16", 65535), "PNG"),
        (ramp("uint16", 65535), "TIFF"),
        (ramp("uint16", 4095), "TIFF"),
        (ramp("int32", 65535), "TIFF"),
        (ramp("int32", 10_000_000), "TIFF"),
        (ramp("int32", 2000) - 1000, "TIFF"),
        (ramp("float32", 1), "TIFF"),
        (ramp("float32", 255), "TIFF"),
        (ramp("float32", 65535), "TIFF"),
    ],
)
def test_deep_grey_is_scaled_and_not_clipped(values: np.ndarray[Any, Any], kind: str) -> None:
    result = np.asarray(loaded(saved(Image.fromarray(values), kind)))[:, :, 0]
    assert close(result, np.linspace(0, 255, 64 * 64).reshape(64, 64), 1.1)


def test_a_dark_16_bit_png_stays_dark() -> None:
    assert loaded(saved(Image.fromarray(ramp("uint16", 4000)), "PNG")).getextrema()[0] == (0, 16)


def test_floats_that_are_no_numbers() -> None:
    values = ramp("float32", 1)
    values[0, :3] = [np.nan, np.inf, -np.inf]
    assert loaded(saved(Image.fromarray(values), "TIFF")).mode == "RGB"


def test_16_bits_from_pgm_and_colour_png() -> None:
    pgm = b"P5 64 64 65535 " + ramp(">u2", 65535).tobytes()
    assert close(np.asarray(loaded(pgm))[:, :, 0], np.linspace(0, 255, 4096).reshape(64, 64), 1.1)
    rows = b"".join(b"\0" + np.array([[40000, 20000, 10000]] * 8, ">u2").tobytes() for _ in range(8))
    assert close(loaded(png(8, 8, 16, rows)).getpixel((4, 4)), (156, 78, 39), 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind: str) -> None:
    image = Image.new("1", (40, 40), 0)
    image.paste(1, (10, 10, 30, 30))
    result = loaded(saved(image, kind))
    assert (result.getpixel((20, 20)), result.getpixel((2, 2))) == ((255, 255, 255), (0, 0, 0))


@pytest.mark.parametrize("mode", ["L", "YCbCr", "LAB", "HSV"])
def test_other_modes(mode: str) -> None:
    image = Image.new("LAB", (20, 20), (128, 128, 128)) if mode == "LAB" else quarters().convert(mode)
    result = loaded(saved(image, "TIFF") if mode != "HSV" else saved(image.convert("RGB"), "PNG"))
    assert result.mode == "RGB"
    if mode == "LAB":
        assert close(result.getpixel((5, 5)), (119, 119, 119), 8)


# --- colour profiles -------------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """An RGB profile whose red and blue are exchanged: what it does cannot be missed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {}
    for entry in range(struct.unpack_from(">I", profile, 128)[0]):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
        at[name] = (132 + 12 * entry, offset, size)
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    struct.pack_into(">II", profile, red[0] + 4, *blue[1:])
    struct.pack_into(">II", profile, blue[0] + 4, *red[1:])
    return bytes(profile).replace(b"sRGB", b"xXXX").replace(b"s\0R\0G\0B", b"x\0X\0X\0X")


def test_a_profile_is_applied_and_a_broken_or_foreign_one_is_not() -> None:
    plain, profile = saved(quarters(), "PNG"), swapped_profile()
    swapped = loaded(saved(quarters(), "PNG", icc_profile=profile))
    assert close(swapped.getpixel((10, 10)), RED[::-1], 12)
    assert "icc_profile" not in swapped.info
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for other in (profile[:200], b"junk", b"\0" * 500, srgb, profile[:16] + b"CMYK" + profile[20:]):
        assert loaded(saved(quarters(), "PNG", icc_profile=other)).tobytes() == loaded(plain).tobytes()
    grey = saved(quarters().convert("L"), "PNG", icc_profile=profile)
    assert loaded(grey).getpixel((10, 10)) == loaded(saved(quarters().convert("L"), "PNG")).getpixel((10, 10))


# --- formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", "JPEG PNG GIF WEBP AVIF TIFF BMP JPEG2000 PPM TGA PCX SGI ICO".split())
def test_formats(kind: str) -> None:
    result = load_image(saved(quarters(), kind), target=TARGET)
    assert result.image.size == (result.metadata.width, result.metadata.height)
    assert close(corners(result.image), [RED, GREEN, BLUE, YELLOW], 60)


def test_heic_is_read_upright_without_a_registered_opener(tmp_path: Path) -> None:
    import pillow_heif

    if not pillow_heif.libheif_info()["encoders"]:
        pytest.skip("this libheif cannot write the file")
    heif = pillow_heif.from_pillow(CAMERA_TURNS[6](quarters(128, 96)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Apple"
    heif.info["exif"] = exif.tobytes()
    stream = io.BytesIO()
    heif.save(stream, quality=90)
    result = load_image(stream.getvalue(), target=TARGET)
    assert result.metadata.camera == "Apple"
    assert result.image.size == (result.metadata.width, result.metadata.height)
    assert sorted(result.image.size) == [96, 128]
    assert "HEIF" not in Image.OPEN, "Pillow's registry is everybody's: leave it alone"


def test_a_wrong_extension_does_not_matter() -> None:
    assert load_image(saved(quarters(), "PNG"), target=TARGET, name="x.jpg").image.size == (96, 64)


def test_a_multi_picture_file_shows_its_first() -> None:
    content = saved(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))])
    assert close(corners(loaded(content)), [RED, GREEN, BLUE, YELLOW], 40)
    big = saved(photo(1600, 1200), "MPO", save_all=True, append_images=[Image.new("RGB", (1600, 1200))])
    assert loaded(big).size == (200, 150)


# --- frames ----------------------------------------------------------------------------------------------------


def frames(*colours: Any) -> list[Image.Image]:
    result = []
    for colour in colours:
        image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        if colour == "picture":
            image.paste(quarters(40, 40))
        elif colour is not None:
            image.paste(colour, (0, 0, 40, 40))
        result.append(image)
    return result


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("blank", [None, "black", "white"])
def test_an_animation_shows_a_frame_with_something_on_it(kind: str, blank: str | None) -> None:
    pictures = frames(blank, blank, "picture", "black")
    if kind == "TIFF":
        pictures = [picture.convert("RGB") for picture in pictures]
    options = {} if kind == "TIFF" else {"duration": 100}
    content = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], **options)
    assert close(corners(loaded(content)), [RED, GREEN, BLUE, YELLOW], 60)


def test_an_animation_whose_frames_are_all_blank_shows_the_first() -> None:
    first, *rest = frames("red", "blue", "red")
    assert loaded(saved(first, "GIF", save_all=True, append_images=rest)).getpixel((5, 5)) == (255, 0, 0)


def test_an_animation_that_is_damaged_further_on_shows_what_there_is() -> None:
    first, *rest = frames("white", "picture", "picture", "blue")
    content = saved(first, "GIF", save_all=True, append_images=rest, duration=100)
    for cut in (len(content) // 2, len(content) // 4):
        try:
            assert loaded(content[:cut]).mode == "RGB"
        except MediaError as error:
            assert "\n" not in str(error)


# --- scaled decoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [(2000, 1500), (1030, 700), (600, 3000), (256, 256), (100, 80)])
def test_scaled_decoding_keeps_twice_the_target_and_looks_the_same(kind: str, size: tuple[int, int]) -> None:
    image = photo(*size)
    content = saved(image, kind, **({"quality": 92} if kind != "PNG" else {}))
    result = load_image(content, target=(64, 96))
    assert (result.metadata.width, result.metadata.height) == size
    width, height = result.image.size
    assert width >= min(size[0], 192)
    assert height >= min(size[1], 128)
    if min(size[0] // 192, size[1] // 128) >= 2:
        assert width * height < size[0] * size[1] / 3
    with Image.open(io.BytesIO(content)) as whole:
        full = whole.convert("RGB").resize((96, 64), Image.Resampling.BICUBIC)
    scaled = result.image.resize((96, 64), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(full, float) - np.asarray(scaled, float))
    assert difference.mean() < 1.5
    assert (result.metadata.phash ^ perceptual_hash(image)).bit_count() <= 8  # type: ignore[operator]


def test_scaled_decoding_of_a_turned_photo_swaps_the_target() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = load_image(saved(photo(1600, 800), "JPEG", exif=exif), target=(400, 100))
    assert result.image.size == (400, 800)
    assert (result.metadata.width, result.metadata.height) == (800, 1600)


# --- what is refused -------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    return png(width, height, 8, b"\0" * 1000)


JPEG = saved(photo(400, 300), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, this is no picture at all", "not a picture"),
        (b"bad", "not a picture"),
        (b"\0" * 4096, "not a picture"),
        (JPEG[:20], "not a picture|truncated"),
        (JPEG[: len(JPEG) // 2], "truncated: the file ends too early"),
        (saved(photo(400, 300), "PNG")[:5000], "truncated"),
        (saved(quarters(), "WEBP")[:60], "damaged|not a picture|truncated"),
        (saved(quarters(), "AVIF")[:200], "damaged|not a picture|truncated"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"x" * 400, "not a picture"),
        (bomb(100_000, 100_000), r"too large: 100000 x 100000 pixels; the limit is \d+ megapixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(rm) run\n", "not a picture"),
        (b"%PDF-1.7\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason) as caught:
        load_image(content, target=TARGET)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MediaError, match=rf"^x\.jpg: (?:{reason})"):
        load_image(content, target=TARGET, name="x.jpg")


def test_the_limit_is_that_of_mmsearch_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert loaded(saved(quarters(), "PNG")).size == (96, 64)
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.setattr(media, "MAX_PIXELS", 5000)
    with pytest.raises(MediaError, match="too large: 96 x 64"):
        loaded(saved(quarters(), "PNG"))


def test_the_limit_follows_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    assert media._pixel_limit() == 256_000
    with pytest.raises(MediaError, match="too large"):
        load_image(bomb(600, 600), target=TARGET)


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_LARGE_PIXELS", 100)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(loaded, [saved(quarters(), "PNG")] * 12))
    assert len({result.tobytes() for result in results}) == 1
    assert not media._one_large_picture.locked()
    with pytest.raises(MediaError):
        loaded(JPEG[:-3000])
    assert not media._one_large_picture.locked()


def test_no_damage_raises_anything_else() -> None:
    random = np.random.default_rng(7)
    kinds: dict[str, Callable[[], bytes]] = {
        kind: lambda kind=kind: saved(quarters(), kind)  # type: ignore[misc]
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TGA", "PCX", "PPM")
    }
    for make in kinds.values():
        whole = make()
        for _ in range(40):
            broken = bytearray(whole)
            for place in random.integers(0, len(broken), 6):
                broken[place] = random.integers(0, 256)
            try:
                assert loaded(bytes(broken[: random.integers(1, len(broken) + 1)])).mode == "RGB"
            except MediaError as error:
                assert len(str(error).splitlines()) == 1


# --- threads and warnings --------------------------------------------------------------------------------------


def test_warnings_of_pillow_stay_inside() -> None:
    exif = bytearray(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\xff\xff\xff\x7f\xff\xff\xff\x7f\0\0\0\0")
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    contents = [
        saved(quarters(), "JPEG", exif=bytes(exif)),
        saved(palette, "PNG", transparency=bytes([0, 255])),
        bomb(15_000, 10_000),  # over Pillow's own warning
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in contents:
            try:
                loaded(content)
            except MediaError as error:
                assert "truncated" in str(error) or "damaged" in str(error)
        filters = list(warnings.filters)
        loaded(contents[0])
        assert warnings.filters == filters, "one filter is enough"
        with pytest.raises(UserWarning):
            warnings.warn("ours still count", UserWarning, stacklevel=1)


def test_decoding_in_threads_gives_the_same() -> None:
    kinds = ("JPEG", "PNG", "WEBP", "AVIF")
    contents = [saved(photo(500 + 10 * number, 400), kind) for number in range(4) for kind in kinds]
    expected = [load_image(content, target=TARGET) for content in contents]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[media.LoadedImage]:
        barrier.wait()
        return [load_image(content, target=TARGET) for content in contents]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for result, right in zip(results, expected, strict=True):
                assert result.metadata == right.metadata
                assert result.image.tobytes() == right.image.tobytes()


def test_upright_takes_an_open_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = CAMERA_TURNS[6](quarters())
    for kind in ("JPEG", "TIFF"):
        with Image.open(io.BytesIO(saved(turned, kind, exif=exif))) as image:
            assert close(corners(upright(image)), [RED, GREEN, BLUE, YELLOW], 40)
    assert upright(Image.new("RGBA", (9, 9), (0, 0, 255, 255))).getpixel((4, 4)) == (0, 0, 255)
    assert upright(quarters()).tobytes() == quarters().tobytes()
    with Image.open(io.BytesIO(JPEG[:3000])) as image, pytest.raises(MediaError, match="truncated"):
        upright(image)


# --- metadata --------------------------------------------------------------------------------------------------


def exif_block(
    main: dict[int, Any] | None = None, photo: dict[int, Any] | None = None, gps: dict[int, Any] | None = None
) -> bytes:
    exif = Image.Exif()
    exif.update(main or {})
    exif.get_ifd(0x8769).update(photo or {})
    exif.get_ifd(0x8825).update(gps or {})
    return exif.tobytes()


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ({0x9003: "2008:10:22 16:28:39"}, "2008-10-22T16:28:39"),
        ({0x9003: "2008:10:22 16:28:39", 0x9011: "+03:00"}, "2008-10-22T16:28:39+03:00"),
        ({0x9003: "2008:10:22 16:28:39", 0x9011: "Z", 0x9291: "042"}, "2008-10-22T16:28:39+00:00"),
        ({0x9003: "2008:10:22 16:28:39", 0x9011: "   :  "}, "2008-10-22T16:28:39"),
        ({0x9003: "2008-10-22T16:28:39", 0x9010: "-05:30"}, "2008-10-22T16:28:39-05:30"),
        ({0x9003: "0000:00:00 00:00:00"}, None),
        ({0x9003: "    :  :     :  :  "}, None),
        ({0x9003: "2008:13:45 16:28:39", 0x9004: "2009:01:02 03:04:05"}, "2009-01-02T03:04:05"),
        ({0x9003: "yesterday"}, None),
        ({0x9003: 7}, None),
    ],
)
def test_capture_time(tags: dict[int, Any], taken: str | None) -> None:
    assert parse_exif(exif_block(photo=tags)).taken == taken


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D70", "NIKON D70"),
        ("Apple", "iPhone 15", "Apple iPhone 15"),
        ("  OLYMPUS  ", "E-P3\0\0junk", "OLYMPUS E-P3"),
        ("Canon", None, "Canon"),
        (None, "iPhone", "iPhone"),
        ("", "\n", None),
    ],
)
def test_camera(make: str | None, model: str | None, camera: str | None) -> None:
    tags = {tag: text for tag, text in ((0x010F, make), (0x0110, model)) if text is not None}
    assert parse_exif(exif_block(tags)).camera == camera


Angle = list[tuple[int, int]]


def gps_block(latitude: Angle, longitude: Angle, refs: str = "SW", order: str = ">") -> bytes:
    """A block by hand: Pillow does not write zero denominators."""
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    main = struct.pack(order + "HHHIII", 1, 0x8825, 4, 1, 26, 0)
    at = 26 + 2 + 4 * 12 + 4
    gps = struct.pack(order + "H", 4)
    gps += struct.pack(order + "HHI4s", 1, 2, 2, refs[0].encode() + b"\0\0\0")
    gps += struct.pack(order + "HHII", 2, 5, 3, at)
    gps += struct.pack(order + "HHI4s", 3, 2, 2, refs[1].encode() + b"\0\0\0")
    gps += struct.pack(order + "HHII", 4, 5, 3, at + 24) + b"\0\0\0\0"
    numbers = [number for pair in latitude + longitude for number in pair]
    return b"Exif\0\0" + head + main + gps + struct.pack(order + "12I", *numbers)


FINE = [(43, 1), (30, 1), (3600, 100)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_position(order: str) -> None:
    exif = parse_exif(gps_block(FINE, [(11, 1), (15, 1), (0, 0)], order=order))
    assert (exif.latitude, exif.longitude) == (-43.51, -11.25)
    north = parse_exif(gps_block(FINE, FINE, "NE", order))
    assert (north.latitude, north.longitude) == (43.51, 43.51)


@pytest.mark.parametrize(
    "block",
    [
        gps_block([(0, 0), (0, 0), (0, 0)], FINE),
        gps_block([(0, 1), (0, 1), (0, 1)], [(0, 1), (0, 1), (0, 1)]),
        gps_block([(1, 0), (0, 1), (0, 1)], FINE),
        gps_block([(91, 1), (0, 1), (0, 1)], FINE),
        gps_block(FINE, [(180, 1), (30, 1), (0, 1)]),
        gps_block([(43, 1), (75, 1), (0, 1)], FINE),
        gps_block([(43, 1), (0, 0), (0, 1)], FINE),
        gps_block(FINE, FINE, "XW"),
        gps_block(FINE, FINE, "\0\0"),
        gps_block(FINE, FINE)[:-10],
        exif_block(gps={1: "N", 2: (1.0, 2.0, 3.0)}),
    ],
)
def test_a_position_that_makes_no_sense_is_none(block: bytes) -> None:
    exif = parse_exif(block)
    assert (exif.latitude, exif.longitude) == (None, None)


def test_damaged_exif_never_raises() -> None:
    whole = exif_block({0x010F: "Canon", 0x0112: 6}, {0x9003: "2008:10:22 16:28:39"}, {1: "N", 2: (1.0, 2.0, 3.0)})
    for end in range(len(whole)):
        parse_exif(whole[:end])
    random = np.random.default_rng(3)
    for _ in range(500):
        broken = bytearray(whole)
        for place in random.integers(0, len(broken), 8):
            broken[place] = random.integers(0, 256)
        parse_exif(bytes(broken))
    assert parse_exif(b"") == parse_exif(b"Exif\0\0") == parse_exif(b"not exif at all") == Exif()


def test_metadata_of_a_whole_photo() -> None:
    block = exif_block(
        {0x010F: "Canon", 0x0110: "EOS", 0x0112: 8},
        {0x9003: "2020:02:29 12:00:00"},
        {1: "S", 2: (33.0, 52.0, 10.0), 3: "E", 4: (151.0, 12.0, 30.0)},
    )
    found = load_image(saved(quarters(), "JPEG", exif=block), target=TARGET).metadata
    assert (found.width, found.height, found.orientation) == (64, 96, 8)
    assert (found.taken, found.camera) == ("2020-02-29T12:00:00", "Canon EOS")
    assert (found.latitude, found.longitude) == (-33.8694444, 151.2083333)


def test_perceptual_hash_is_stable_and_tells_pictures_apart() -> None:
    image = photo(640, 480)
    right = perceptual_hash(image)
    assert -(2**63) <= right < 2**63
    darker = Image.eval(image, lambda value: value * 9 // 10)
    for other in (image.resize((320, 240)), image.convert("L").convert("RGB"), darker):
        assert (perceptual_hash(other) ^ right).bit_count() <= 6
    worse = loaded(saved(image, "JPEG", quality=30), (240, 320))
    assert (perceptual_hash(worse) ^ right).bit_count() <= 6
    assert (perceptual_hash(quarters()) ^ right).bit_count() > 16
    assert (perceptual_hash(ImageOps.mirror(image)) ^ right).bit_count() > 10
    assert perceptual_hash(Image.new("RGB", (99, 55), RED)) == perceptual_hash(Image.new("RGB", (640, 480), BLUE))


# --- text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_unicode(encoding: str) -> None:
    text = "Ein Café.\r\n一只猫坐在沙发上。🐈"
    assert decode_text(text.encode(encoding)) == text


def test_text_with_big_endian_marks() -> None:
    assert decode_text(b"\xfe\xff" + "猫".encode("utf-16-be")) == "猫"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Café".encode("latin-1"), r"not UTF-8 text \(at byte 3\); save it as UTF-8"),
        (b"\xff\xfea", "not UTF-16 text"),
        (b"binary\0text", "not a text file"),
    ],
)
def test_text_that_is_none(content: bytes, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        decode_text(content)


def test_content_hash_is_32_bytes_of_everything() -> None:
    assert len(content_hash(b"")) == 32
    assert content_hash(b"head" + b"x" * 100 + b"tail") != content_hash(b"head" + b"y" * 100 + b"tail")


# --- the awkward files -----------------------------------------------------------------------------------------

READABLE_HERE = {"pillow_heif/200MP.heic"}  # Pillow's own limit is lower than ours
EITHER = {"pillow_tests/crash-2020-10-test.tif", "pillow_tests/crash-63b1dffefc8c075ddc606c0a2f5fdc15ece78863.tif"}


def test_every_awkward_file_is_a_picture_or_a_listed_failure(shared: Path) -> None:
    folder = shared / "awkward"
    records = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    records = records if isinstance(records, list) else records["files"]
    assert len(records) > 100
    wrong = []
    for record in records:
        name = record["file"]
        try:
            result = load_image((folder / name).read_bytes(), target=TARGET)
        except MediaError as error:
            if record["decode"] == "ok" or name in READABLE_HERE or len(str(error).splitlines()) != 1:
                wrong.append((name, str(error)))
            continue
        if record["decode"] != "ok" and name not in READABLE_HERE | EITHER:
            wrong.append((name, "was read"))
            continue
        found = result.metadata
        size = record.get("size")
        if size and record.get("orientation", 1) >= 5 and record.get("format") not in ("TIFF", "HEIF"):
            size = size[::-1]
        if size and [found.width, found.height] != size:
            wrong.append((name, f"{found.width} x {found.height}, not {size}"))
        if record.get("orientation", 1) != (found.orientation or 1) and record.get("format") not in (None, "HEIF"):
            wrong.append((name, f"orientation {found.orientation}"))
        if record.get("gps") and found.latitude is None:
            wrong.append((name, "lost its position"))
        if result.image.mode != "RGB" or found.phash is None:
            wrong.append((name, "incomplete"))
    assert wrong == []


@pytest.mark.parametrize("series", ["Landscape", "Portrait"])
def test_all_orientations_of_a_photo_are_the_same_picture(shared: Path, series: str) -> None:
    folder = shared / "awkward" / "exif_orientation"
    # Their captions differ ("Landscape 3"), so the pictures are compared as a whole.
    small = [
        np.asarray(
            loaded((folder / f"{series}_{number}.jpg").read_bytes()).resize((16, 16), Image.Resampling.BOX), float
        )
        for number in range(9)
    ]
    for picture in small[1:]:
        assert np.abs(picture - small[0]).mean() < 4
