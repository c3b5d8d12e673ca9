"""Bytes to correct pixels and clean text: what a person would see, whatever the file does to hide it.

`load_image` gives an upright RGB picture:

- EXIF (or XMP) orientation is applied, once: TIFF and HEIF readers apply it themselves.
- JPEGs far larger than needed are decoded at 1/2, 1/4 or 1/8 size (DCT scaling), other formats are reduced by a
  whole factor; both sides stay at least twice the target, so the encoder's own resize has the last word.
- Transparent pictures are shown on white, as a browser shows them; if that leaves nothing to see (a white logo),
  on black.
- 16-bit and float pictures are scaled to 8 bits, not clipped. CMYK and non-sRGB profiles go through ICC.
- Animations and multi-page files give their first frame that is not one flat colour.

Refused with a `MediaError`: truncated files (half a photo embeds as something else, and the copy is likely to be
completed or replaced later), pictures over `MAX_PIXELS` (or over what half of the machine's memory holds), and
everything that no reader knows. EPS and PostScript are never opened: their reader runs a program on them.

All functions are safe to call from several threads; Pillow's global settings are not touched.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.errors import MediaError
from mmsearch.retrieval.exif import Exif, parse_exif
from mmsearch.retrieval.types import AssetMetadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image, ImageFile

_log = logging.getLogger(__name__)

TEXT_EXTENSIONS = frozenset({".txt", ".md"})

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .webp .avif .avifs .heic .heics .heif .heifs .hif .tif .tiff .bmp"
    " .dib .jp2 .j2k .j2c .jpc .jpf .jpx .ico .icns .cur .ppm .pgm .pbm .pnm .pfm .psd .tga .icb .vda .vst .qoi .dds"
    " .pcx .dcx .sgi .rgb .rgba .bw .ras .fits .fli .flc .xbm .xpm .im .msp .pcd .pxr .blp .ftc .ftu .gbr".split()
)
"""What Pillow and pillow-heif read as a picture, lower case. Left out on purpose: `.eps .ps` (see above), `.wmf
.emf` (drawn on Windows only), `.fit` (mostly sports watches) and containers that Pillow only recognises."""

MAX_PIXELS = 300_000_000
"""Larger pictures are refused by their header: phones make 200 megapixels, bombs claim thousands."""

_BYTES_PER_PIXEL = 8  # the decoded picture and one converted copy of it
_LARGE_PIXELS = 48_000_000
_FRAME_PIXELS = 64_000_000  # how far an animation is searched for a frame with something on it
_MAX_FRAMES = 64
_FLAT = 8  # a frame whose channels span no more than this is blank

_UNSAFE_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
_UPRIGHT_FORMATS = frozenset({"TIFF", "HEIF"})  # their readers apply the orientation themselves
_PAGED_FORMATS = frozenset({"GIF", "PNG", "WEBP", "AVIF", "FLI", "TIFF"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_FULL_RANGE_FORMATS = frozenset({"PNG", "PPM", "JPEG2000"})  # defined to use all 16 bits

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

# Pictures this large are decoded one at a time: a dozen threads must not hold a dozen of them.
_one_large_picture = threading.Lock()


@dataclass(frozen=True)
class LoadedImage:
    """An upright RGB picture and what its file says of it."""

    image: Image.Image
    metadata: AssetMetadata


def content_hash(content: bytes) -> bytes:
    """32 bytes (BLAKE2b) that stand for the content of a file."""
    return hashlib.blake2b(content, digest_size=32).digest()


def text_hash(text: str) -> bytes:
    """32 bytes (BLAKE2b) that stand for a text, or a piece of one: equal texts share one embedding."""
    return content_hash(text.encode("utf-8", "surrogatepass"))


def decode_text(content: bytes) -> str:
    """The text of a .txt or .md file: UTF-8, or UTF-16/UTF-32 with a byte order mark; line ends are kept.

    Raises:
        MediaError: the bytes are something else. Guessing an encoding would index gibberish unnoticed.
    """
    encoding = "utf-8-sig"
    if content.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        encoding = "utf-32"
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise MediaError(f"not {kind} text (at byte {error.start}); save it as UTF-8") from None
    if "\x00" in text:
        raise MediaError("not a text file: it contains NUL characters")
    return text


def load_image(content: bytes, *, target: tuple[int, int], name: str = "") -> LoadedImage:
    """Decodes a picture as a person would see it; see the module's docstring for the rules.

    Args:
        content: the whole file.
        target: (height, width) that the caller will resize to, such as `Encoder.image_size`.
        name: put in front of an error's message where the caller does not show the path anyway.

    Raises:
        MediaError: the file gives no picture; the message is one line that says why.
    """
    _ignore_pillow_warnings()
    try:
        return _load(content, target)
    except Exception as error:  # damaged files raise nearly everything, from KeyError to RecursionError
        reason = f"{name}: {_reason(error)}" if name else _reason(error)
        raise MediaError(reason) from (None if isinstance(error, MediaError) else error)


def upright(image: Image.Image) -> Image.Image:
    """A picture that is open already, as `load_image` shows it (the current frame, in full size).

    Raises:
        MediaError: its pixels cannot be read.
    """
    _ignore_pillow_warnings()
    try:
        image.load()
        file_format = getattr(image, "format", None)
        orientation = 1 if file_format in _UPRIGHT_FORMATS else _exif(image, b"").orientation
        return _transposed(_rgb(image, image.size), orientation)
    except Exception as error:
        raise MediaError(_reason(error)) from error


def _load(content: bytes, target: tuple[int, int]) -> LoadedImage:
    with _open(content) as image:
        width, height = image.size
        limit = _pixel_limit()
        if width * height > limit:
            raise MediaError(f"too large: {width} x {height} pixels; the limit is {limit // 10**6} megapixels")
        exif = _exif(image, content)
        jpeg = image.format in ("JPEG", "MPO")
        if jpeg:
            target_height, target_width = _turned(target, exif.orientation)
            image.draft("RGB", (2 * target_width, 2 * target_height))
        large = image.width * image.height > _LARGE_PIXELS
        with _one_large_picture if large else nullcontext():
            image.load()
            if not jpeg:
                width, height = image.size  # icons and HEIF may know better only now
                if exif.orientation is None and image.format == "PNG":
                    exif = _exif(image, content)  # a PNG may carry it behind the pixels
            upright = image.format in _UPRIGHT_FORMATS
            orientation = 1 if upright else exif.orientation
            shown = _shown_frame(image, _turned(target, orientation))
        shown = _transposed(shown, orientation)
        width, height = _turned((width, height), orientation)
        return LoadedImage(
            shown,
            AssetMetadata(
                width=width,
                height=height,
                taken=exif.taken,
                camera=exif.camera,
                orientation=exif.orientation,
                latitude=exif.latitude,
                longitude=exif.longitude,
                phash=perceptual_hash(shown),
            ),
        )


# --- opening ---------------------------------------------------------------------------------------------------


def _open(content: bytes) -> ImageFile.ImageFile:
    """Reads the header. Not `Image.open`: that one has a global pixel limit of its own (179 megapixels)."""
    from PIL import Image

    if not content:
        raise MediaError("the file is empty")
    Image.preinit()  # the five common formats; safe to repeat
    reasons: list[str] = []
    image = _try_readers(content, Image.ID[:], reasons)
    if image is None and _is_heif(content):
        from pillow_heif import HeifImageFile

        image = _try_reader(content, HeifImageFile, reasons)
    if image is None:
        Image.init()
        image = _try_readers(content, Image.ID[:], reasons)
    if image is None:
        raise MediaError(f"not a picture: {reasons[-1]}" if reasons else "not a picture in a known format")
    return image


def _try_readers(content: bytes, formats: list[str], reasons: list[str]) -> ImageFile.ImageFile | None:
    from PIL import Image

    start = content[:16]
    for name in formats:
        if name in _UNSAFE_FORMATS:
            continue
        factory, accepts = Image.OPEN[name]
        if accepts is not None and not _accepted(start, accepts):
            continue
        image = _try_reader(content, factory, reasons if accepts is not None else [])
        if image is not None:
            return image
    return None


def _accepted(start: bytes, accepts: Callable[[bytes], object]) -> bool:
    try:
        return accepts(start) is True  # else False, or why a plugin that would read it is missing
    except (SyntaxError, IndexError, TypeError, struct.error):  # a file of a few bytes
        return False


def _try_reader(content: bytes, factory: Callable[..., Any], reasons: list[str]) -> ImageFile.ImageFile | None:
    try:
        image: ImageFile.ImageFile = factory(io.BytesIO(content), "")
    except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
        # what Pillow's readers raise for "not mine", also for a damaged header
        reasons.append(_one_line(error))
        return None
    return image


def _is_heif(content: bytes) -> bool:
    if content[4:8] != b"ftyp":
        return False
    brand = content[8:12]
    if brand in (b"mif1", b"msf1"):  # a container's brand: the coding is among the compatible ones
        return not {b"avif", b"avis"} & {content[at : at + 4] for at in range(16, min(content[3], 128), 4)}
    return brand in _HEIF_BRANDS


def _pixel_limit() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return MAX_PIXELS
    return min(MAX_PIXELS, memory // 2 // _BYTES_PER_PIXEL) if memory > 0 else MAX_PIXELS


def _ignore_pillow_warnings() -> None:
    """Keeps Pillow from warning about odd files, in this process and from now on.

    A damaged file is either readable or a failure that is listed. `warnings.catch_warnings` would do it for a
    moment only, but it swaps a list that all threads share.
    """
    if _PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _reason(error: Exception) -> str:
    """One line that a person can act on."""
    if isinstance(error, MediaError):
        return str(error)
    text = _one_line(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, ImportError):
        return f"a reader is missing: {text}"
    if "bomb" in text:
        return "too large: its parts claim more pixels than can be meant"
    if "truncated" in text.lower():
        return f"truncated: the file ends too early ({text})"
    return f"damaged: {text}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- metadata --------------------------------------------------------------------------------------------------


def _exif(image: Image.Image, content: bytes) -> Exif:
    block = image.info.get("exif")
    if image.format == "TIFF":
        block = content
    elif block is None and "Raw profile type exif" in image.info:  # ImageMagick's way in PNG: a hex dump
        block = _hex_profile(str(image.info["Raw profile type exif"]))
    exif = parse_exif(block) if isinstance(block, bytes) else Exif()
    if image.format == "HEIF":  # its reader has turned the tag to 1 and kept the original
        return replace(exif, orientation=image.info.get("original_orientation") or exif.orientation)
    if exif.orientation is None:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        if match:
            return replace(exif, orientation=int(match[1]))
    return exif


def _hex_profile(text: str) -> bytes | None:
    try:
        return bytes.fromhex("".join(text.split()[2:]))
    except ValueError:
        return None


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that stay nearly the same when a picture is scaled, recompressed or toned, as a signed int64.

    The classic pHash: grey, averaged to 32 x 32, two-dimensional DCT-II, the 8 x 8 lowest frequencies; a bit is
    set where a coefficient is above their median, row by row, the first (the mean) in the highest bit. Pictures
    of the same motif differ in few bits: compare with `(a ^ b).bit_count()` of the unsigned values.
    """
    import numpy as np
    from PIL import Image

    small = image.resize((32, 32), Image.Resampling.BOX, reducing_gap=2.0).convert("L")
    basis = _dct_basis()
    low = basis @ np.asarray(small, dtype=np.float64) @ basis.T
    low = np.round(low, 3)  # a flat picture has zeros here, not rounding noise
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big", signed=True)


@functools.cache
def _dct_basis() -> NDArray[np.float64]:
    """The eight lowest DCT-II basis vectors of length 32, as (8, 32)."""
    import numpy as np

    frequency, sample = np.arange(8)[:, None], np.arange(32)[None, :]
    return np.asarray(np.cos(np.pi / 32 * frequency * (sample + 0.5)))


# --- pixels ----------------------------------------------------------------------------------------------------


def _turned(size: tuple[int, int], orientation: int | None) -> tuple[int, int]:
    return (size[1], size[0]) if orientation is not None and orientation >= 5 else size


def _transposed(image: Image.Image, orientation: int | None) -> Image.Image:
    """Undoes what the EXIF orientation says the camera did."""
    from PIL.Image import Transpose

    how = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation or 1)
    return image if how is None else image.transpose(how)


def _shown_frame(image: ImageFile.ImageFile, target: tuple[int, int]) -> Image.Image:
    """The first frame that is not one flat colour, else the first; animations often fade in from nothing."""
    shown = first = _rgb(image, target)
    if image.format not in _PAGED_FORMATS or not getattr(image, "is_animated", False):
        return first
    frames = min(_MAX_FRAMES, _FRAME_PIXELS // (image.width * image.height))
    for number in range(1, frames):
        if not _is_flat(shown):
            return shown
        try:
            image.seek(number)
            shown = _rgb(image, target)
        except Exception as error:  # the end, or damage after a good first frame
            _log.debug("no frame %d: %s", number, error)
            break
    return first if _is_flat(shown) else shown


def _is_flat(image: Image.Image) -> bool:
    return all(high - low <= _FLAT for low, high in image.getextrema())  # type: ignore[misc]


def _rgb(image: Image.Image, target: tuple[int, int]) -> Image.Image:
    """A copy of any mode in RGB (sRGB), reduced by a whole factor while both sides stay >= twice `target`."""
    file, profile = image, image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image, image.format if isinstance(image.format, str) else "")
    elif image.has_transparency_data:
        image = _flattened(image)
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):  # 1, P, YCbCr, HSV, RGBX
        image = image.convert("RGB")
    factor = min(image.height // (2 * target[0]), image.width // (2 * target[1]))
    if factor > 1:
        image = image.reduce(factor)
    if image.mode == "LAB" or (isinstance(profile, bytes) and _is_foreign_profile(profile, image.mode)):
        image = _to_srgb(image, profile)
    if image.mode != "RGB" or image is file:
        image = image.convert("RGB")
    image.info = {}  # what it said (profile, transparency, orientation) no longer holds
    return image


def _eight_bit(image: Image.Image, format: str) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits.

    Formats that are defined to use all 16 bits are divided. Others (TIFF, FITS) often hold 8-, 12- or 14-bit
    samples in wider numbers: there the full scale is the smallest of these depths that holds the brightest pixel;
    1.0 for small floats; and numbers outside all of them are stretched from darkest to brightest.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if finite.size < values.size:
        values = np.nan_to_num(values, nan=low, neginf=low, posinf=high)
    if low >= 0 and image.mode == "F" and high <= 1:
        white = 1.0
    elif low >= 0 and high <= 65535:
        depths = (255, 4095, 16383, 65535)
        white = 65535 if format in _FULL_RANGE_FORMATS else next(full for full in depths if high <= full)
    else:
        values, white = values - low, max(high - low, 1e-30)
    return Image.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))


def _flattened(image: Image.Image) -> Image.Image:
    """A transparent picture on white, or on black where white leaves nothing to see."""
    from PIL import Image

    layers = image.convert("RGBA")
    alpha = layers.getchannel("A")
    shown = layers.convert("RGB")
    if alpha.getextrema() == (255, 255):
        return shown
    for ground in ("white", "black"):
        flat = Image.new("RGB", layers.size, ground)
        flat.paste(shown, mask=alpha)
        if ground == "black" or not _is_flat(flat):
            break
    return flat


def _is_foreign_profile(profile: bytes, mode: str) -> bool:
    """Whether an ICC profile is for pictures of this mode and is not sRGB."""
    space = {"RGB": b"RGB ", "CMYK": b"CMYK"}.get(mode)
    if len(profile) < 132 or profile[16:20] != space:
        return False
    return mode == "CMYK" or (b"sRGB" not in profile and b"s\0R\0G\0B" not in profile)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Through the ICC profile; a broken profile is as good as none."""
    from PIL import ImageCms

    try:
        source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(profile or b"")
        shown = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        _log.debug("ICC profile not used: %s", error)
        return image
    return shown or image
