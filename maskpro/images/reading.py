"""One image file to pixels: any mode of Pillow becomes 8 bits, upright, opaque, at the model's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize

from maskpro.errors import MaskproError
from maskpro.files import is_lfs_pointer
from maskpro.images.deep import LARGEST, deep_tiles, deep_values, is_signed, lowest_is_white, tiff_bits

FILTERS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")
# (left, top, right, bottom) of named crops. CelebA's aligned images are 178x218; this is the crop of DDIM's authors.
_NAMED_BOXES = {"celeba": (25, 57, 153, 185)}

# Formats that Pillow reads but that are no pictures: documents (for EPS it starts Ghostscript), video, science data without
# a scale, formats known by their first bytes alone, metadata.
_NO_PICTURES = {"EPS", "WMF", "MPEG", "FLI", "BUFR", "GRIB", "HDF5", "FITS", "SPIDER", "MCIDAS", "IMT", "XVTHUMB", "IPTC"}

# EXIF's orientation to the operation that turns an image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_JPEG_END = b"\xff\xd9"
_GREY = ("1", "L", "LA", "La")
# Ratio of an image's sides above which only its middle is resized, as the whole would take gigabytes.
_LARGEST_RATIO = 16


class UnreadableImageError(Exception):
    """A file can't be read as an image of the model's size; the message is a few words."""


@dataclass(frozen=True, kw_only=True)
class ImageReading:
    """How the images of a folder are read.

    Attributes:
        resize: Pillow's filter for resizing to the model's size.
        crop: "centre" resizes the shorter side and takes the middle of the longer one. "none" resizes both sides, whatever
            their ratio. A number first takes a central square of so many pixels. "left,top,right,bottom" first takes that
            part, in pixels; "celeba" is 25,57,153,185 of an aligned 178x218 image.
        background: colour under transparent pixels, by name or as #rrggbb.
        skip_unreadable: skip files that can't be read.

    Raises:
        MaskproError: no such filter, crop or colour.
    """

    resize: str = "bilinear"
    crop: str = "centre"
    background: str = "white"
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.resize not in FILTERS:
            raise MaskproError(f"resize is {self.resize!r}; allowed: {', '.join(FILTERS)}")
        object.__setattr__(self, "background", _parse_colour(self.background))
        if self.crop == "center":
            object.__setattr__(self, "crop", "centre")
        if self.crop not in ("centre", "none", *_NAMED_BOXES) and not self._numbers():
            raise MaskproError(
                f"crop is {self.crop!r}; allowed: centre, none, {', '.join(_NAMED_BOXES)}, a number of pixels such as 140 "
                "(a central square), or left,top,right,bottom in pixels"
            )

    def _numbers(self) -> tuple[int, ...]:
        """The numbers of a crop in pixels; () for other crops."""
        if self.crop in _NAMED_BOXES:
            return _NAMED_BOXES[self.crop]
        parts = self.crop.replace(" ", "").split(",")
        if not all(part.isdecimal() for part in parts):
            return ()
        numbers = tuple(int(part) for part in parts)
        if len(numbers) == 1:
            return numbers if numbers[0] > 0 else ()
        is_box = len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]
        return numbers if is_box else ()

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """The part (left, top, right, bottom) to be taken first from an image of that size (width, height), if any.

        Raises:
            UnreadableImageError: the image is smaller.
        """
        numbers = self._numbers()
        if not numbers:
            return None
        width, height = size
        if len(numbers) == 1:
            left, top = (width - numbers[0]) // 2, (height - numbers[0]) // 2
            box = (left, top, left + numbers[0], top + numbers[0])
        else:
            box = (numbers[0], numbers[1], numbers[2], numbers[3])
        if min(box) < 0 or box[2] > width or box[3] > height:
            raise UnreadableImageError(f"it is {width}x{height}, and crop {self.crop} does not fit into it")
        return box

    def describe(self) -> dict[str, Any]:
        """The settings that pixels depend on, for the records."""
        return {"resize": self.resize, "crop": self.crop, "background": self.background}


def _parse_colour(text: str) -> str:
    """An opaque colour in its one normal form: white, black, or #rrggbb."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text.strip())
    except ValueError:
        red, green, blue, alpha = 0, 0, 0, [0]
    if alpha not in ([], [255]):
        raise MaskproError(f"background is {text!r}; allowed: white, black, another opaque colour by its name, or #rrggbb")
    return {"#ffffff": "white", "#000000": "black"}.get(code := f"#{red:02x}{green:02x}{blue:02x}", code)


@cache
def picture_formats() -> Mapping[str, str]:
    """Endings of file names (".png") to their formats: all pictures that Pillow reads."""
    Image.init()
    known = {ending: name for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    # MPO is a JPEG with further frames; Pillow opens it as JPEG.
    return {".mpo": "JPEG"} | {ending: name for ending, name in known.items() if name not in _NO_PICTURES}


def read_image(path: Path, reading: ImageReading, *, resolution: int, channels: int) -> tuple[np.ndarray, list[str]]:
    """A file's pixels, uint8 `[channels, resolution, resolution]`, and a phrase for each conversion, to be counted.

    The first of several frames (animations, MPO, pages) is taken. The number of frames, the orientation and the bits come
    from the file's content, whatever its ending.

    Raises:
        UnreadableImageError: the file is no picture, is broken or too large, or its values have no known scale.
    """
    try:
        with Image.open(path, formats=sorted({*picture_formats().values()})) as opened:
            if opened.format == "JPEG" and not _has_end(opened):
                raise UnreadableImageError("truncated: a JPEG without its end")
            if opened.format == "PNG":
                _check_sums(path)
            done = ["first of several frames"] if getattr(opened, "is_animated", False) else []
            deep_from = deep_tiles(opened)
            stored_as = _orientation(opened)
            if stored_as in _UPRIGHT:
                done.append("turned as EXIF says")
            deep = deep_values(opened, path, deep_from) if deep_from else None
            opened.load()
            left = _orientation(opened)  # Pillow turns TIFF by itself
            eight = _eight_bits(opened, done) if deep is None else _scaled(deep, LARGEST, _transparent(opened), done)
            picture = _opaque(eight, reading, done)
            if left in _UPRIGHT:
                picture = picture.transpose(_UPRIGHT[left])
            if deep_from and deep is None:
                done.append("cut from 16-bit colour")
            return _pixels(picture, reading, resolution, channels, done), done
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        what = "a pointer of Git LFS, to be fetched with git lfs pull" if is_lfs_pointer(path) else ""
        raise UnreadableImageError(what or "not an image that Pillow reads") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except Exception as error:  # decoders raise any error for a broken file
        raise UnreadableImageError(" ".join(str(error).split())[:100] or type(error).__name__) from error


def _has_end(opened: Any) -> bool:
    """Whether a JPEG that was just opened ends somewhere after its header; a download that broke off ends in zeros."""
    place = opened.fp.tell()
    rest = opened.fp.read()
    opened.fp.seek(place)
    return _JPEG_END in rest


def _check_sums(path: Path) -> None:
    """Raise where a PNG's checksums are not those of its pixels: Pillow makes pixels of damaged bytes, too."""
    with Image.open(path, formats=["PNG"]) as opened:
        try:
            opened.verify()
        except (OSError, SyntaxError) as error:  # of a PNG that was cut off, loading tells whether pixels are missing
            if "bad header checksum in b'IDAT'" in str(error):  # a damaged text behind the pixels does no harm
                raise UnreadableImageError("damaged: a PNG whose checksum is not that of its pixels") from error


def _orientation(opened: Image.Image) -> int:
    try:
        return int(opened.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken EXIF does not make the pixels unreadable
        return 1


def _eight_bits(opened: Image.Image, done: list[str]) -> Image.Image:
    """The image with 8 bits a channel: the full range of its values is scaled to 0 to 255 and rounded."""
    if is_signed(opened) or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
        raise UnreadableImageError("32-bit or signed integers, whose range isn't known; save it with 8 or 16 bits")
    if opened.mode.startswith("I;16"):
        largest = 2 ** (tiff_bits(opened) or 16) - 1
        values = np.asarray(opened)
        return _scaled(largest - values if lowest_is_white(opened) else values, largest, _transparent(opened), done)
    if opened.mode == "I":
        return _scaled(np.asarray(opened), 65535, _transparent(opened), done)
    if opened.mode == "F":
        values = np.asarray(opened)
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnreadableImageError(f"floating-point values from {values.min():g} to {values.max():g}; allowed: 0 to 1")
        done.append("scaled from floating-point values 0 to 1")
        values = 1.0 - values if lowest_is_white(opened) else values
        return Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
    return opened


def _transparent(opened: Image.Image) -> Any:
    """The value that a file calls transparent, one number for each of several channels; None: there is none."""
    return opened.info.get("transparency")


def _scaled(values: np.ndarray, largest: int, transparent: Any, done: list[str]) -> Image.Image:
    """Integers `[height, width]` or `[height, width, channels]` up to `largest` as an 8-bit image."""
    done.append("scaled from 16 bits")
    eight = np.rint(values.astype(np.float64) * (255 / largest)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(eight)
    if transparent is not None:
        is_transparent = values == transparent
        is_transparent = is_transparent if values.ndim == 2 else is_transparent.all(axis=2)
        picture.putalpha(Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8)))
    return picture


def _opaque(picture: Image.Image, reading: ImageReading, done: list[str]) -> Image.Image:
    """The picture with its transparent pixels put on the background."""
    if not picture.has_transparency_data:
        return picture
    layer = picture.convert("RGBA")
    red, green, blue = ImageColor.getrgb(reading.background)[:3]
    mode = "L" if picture.mode in _GREY and red == green == blue else "RGB"
    if layer.getchannel("A").getextrema() == (255, 255):
        return layer.convert(mode)
    done.append(f"transparency put on {reading.background}")
    return Image.alpha_composite(Image.new("RGBA", layer.size, reading.background), layer).convert(mode)


def _pixels(picture: Image.Image, reading: ImageReading, resolution: int, channels: int, done: list[str]) -> np.ndarray:
    if picture.mode == "CMYK":
        done.append("CMYK made RGB")
    if channels == 1 and picture.mode not in _GREY:
        done.append("colour made grey")
        picture = picture.convert("RGB")
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = _to_size(picture, reading, resolution, done)
    values = np.asarray(picture)
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


def _to_size(picture: Image.Image, reading: ImageReading, resolution: int, done: list[str]) -> Image.Image:
    box = reading.box(picture.size)
    if box:
        picture = picture.crop(box)
    if picture.size == (resolution, resolution):
        return picture
    done.append("enlarged" if min(picture.size) < resolution else "reduced")
    mode = InterpolationMode(reading.resize)
    if reading.crop == "none":
        stretched: Image.Image = resize(picture, [resolution, resolution], interpolation=mode)
        return stretched
    if max(picture.size) > _LARGEST_RATIO * min(picture.size):
        longest = _LARGEST_RATIO * min(picture.size)
        picture = center_crop(picture, [min(side, longest) for side in reversed(picture.size)])
    middle: Image.Image = center_crop(resize(picture, [resolution], interpolation=mode), [resolution, resolution])
    return middle
