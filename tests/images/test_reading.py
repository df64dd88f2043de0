import struct
import zlib

import numpy as np
import pytest
from pictures import grey_tiff, picture, png, png_chunk, tiff
from PIL import Image

from maskpro.errors import MaskproError
from maskpro.images.reading import ImageReading, UnreadableImageError, picture_formats, read_image


def read(path, *, channels=3, resolution=8, **reading):
    return read_image(path, ImageReading(**reading), resolution=resolution, channels=channels)


RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
# The exact 8-bit values of the ramp: 65535 / 255 is 257.
EIGHT = np.rint(RAMP / 257).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".jp2"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix):
    path = tmp_path / f"ramp{suffix}"
    Image.fromarray(RAMP).save(path)
    grey, done = read(path, channels=1)
    assert np.array_equal(grey[0], EIGHT)
    assert grey.mean() == pytest.approx(127.5, abs=0.5)
    assert done == ["scaled from 16 bits"]
    colour, _ = read(path)
    assert np.array_equal(colour, np.stack([EIGHT] * 3))


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_pngs_are_scaled_exactly(tmp_path, channels):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    (tmp_path / "a.png").write_bytes(png(values))
    found, done = read(tmp_path / "a.png")
    assert np.array_equal(found, np.rint(values[..., :3] / 257).transpose(2, 0, 1))
    assert done == ["scaled from 16 bits"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_tiffs_are_scaled_exactly(tmp_path, channels, is_compressed, order):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, channels)).astype(np.uint16)
    values[..., 3:] = 65535
    (tmp_path / "a.tif").write_bytes(tiff(values, order=order, is_compressed=is_compressed))
    found, done = read(tmp_path / "a.tif")
    assert np.array_equal(found, np.rint(values[..., :3] / 257).transpose(2, 0, 1))
    assert done == ["scaled from 16 bits"]


def test_16_bit_grey_with_transparency_is_cut_by_less_than_a_level(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 2)).astype(np.uint16)
    values[..., 1] = 65535
    (tmp_path / "a.png").write_bytes(png(values))
    found, done = read(tmp_path / "a.png", channels=1)
    assert np.abs(found[0] - values[..., 0] / 257).max() < 1
    assert "cut from 16-bit colour" in done


def test_16_bit_colour_in_planes_is_cut_by_less_than_a_level_or_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(values, has_planes=True, is_compressed=True))
    found, done = read(tmp_path / "a.tif")
    assert np.abs(found - values.transpose(2, 0, 1) / 257).max() < 1
    assert done == ["cut from 16-bit colour"]
    # Pillow reads these as if they had 8 bits.
    (tmp_path / "b.tif").write_bytes(tiff(values, has_planes=True, is_compressed=False))
    with pytest.raises(
        UnreadableImageError, match="16-bit colours in separate planes, which Pillow reads wrongly; save it"
    ):
        read(tmp_path / "b.tif")


def test_16_bit_colour_turned_by_exif_is_upright(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(values, orientation=3))
    found, done = read(tmp_path / "a.tif")
    assert np.array_equal(found, np.rint(values[::-1, ::-1] / 257).transpose(2, 0, 1))
    assert done == ["turned as EXIF says", "scaled from 16 bits"]


def test_a_transparent_colour_of_a_16_bit_png_is_put_on_the_background(tmp_path):
    values = np.full((8, 8, 3), 1000, dtype=np.uint16)
    values[0] = (500, 1000, 65535)
    (tmp_path / "a.png").write_bytes(png(values, chunks=png_chunk(b"tRNS", struct.pack(">HHH", 500, 1000, 65535))))
    found, done = read(tmp_path / "a.png", background="#0a0b0c")
    assert found[:, 0].tolist() == [[10] * 8, [11] * 8, [12] * 8]
    assert (found[:, 1:] == 4).all()
    assert done == ["scaled from 16 bits", "transparency put on #0a0b0c"]


@pytest.mark.parametrize(
    ("background", "kept", "colour"),
    [
        ("white", "white", (255, 255, 255)),
        ("#fff", "white", (255, 255, 255)),
        ("Black", "black", (0, 0, 0)),
        ("#102030", "#102030", (16, 32, 48)),
        ("rgb(10, 20, 30)", "#0a141e", (10, 20, 30)),
        ("red", "#ff0000", (255, 0, 0)),
    ],
)
def test_transparency_is_put_on_the_background(tmp_path, background, kept, colour):
    Image.new("RGBA", (8, 8), (0, 200, 0, 0)).save(tmp_path / "a.png")
    Image.new("LA", (8, 8), (77, 0)).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        found, done = read(tmp_path / name, background=background)
        assert (found == np.array(colour)[:, None, None]).all()
        assert done == [f"transparency put on {kept}"]
    assert ImageReading(background=background).describe()["background"] == kept


@pytest.mark.parametrize("background", ["", "whitish", "#12", "#ff000080", "rgba(1, 2, 3, 0)", "255,255,255", "w" * 200])
def test_what_is_no_opaque_colour_is_refused_as_a_background(background):
    with pytest.raises(MaskproError, match=r"background is '.*'; allowed: white, black, another opaque colour by its name"):
        ImageReading(background=background)


def test_a_transparent_value_of_a_16_bit_png_is_put_on_white(tmp_path):
    values = np.full((8, 8, 1), 1000, dtype=np.uint16)
    values[0] = 500
    (tmp_path / "a.png").write_bytes(png(values, chunks=png_chunk(b"tRNS", struct.pack(">H", 500))))
    found, done = read(tmp_path / "a.png", channels=1)
    assert (found[0, 0] == 255).all()
    assert (found[0, 1:] == 4).all()
    assert done == ["scaled from 16 bits", "transparency put on white"]


def test_12_bits_of_a_tiff_are_scaled_by_their_own_range(tmp_path):
    # Two rows of two 12-bit values: 0, 4095 and 2048, 1024.
    strip = bytes([0x00, 0x0F, 0xFF, 0x80, 0x04, 0x00])
    tags = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, 6)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    offset = 8 + 8
    data = b"II*\0" + struct.pack("<I", offset) + strip + b"\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(data)
    found, _ = read(tmp_path / "a.tif", channels=1, resolution=2)
    assert found[0].tolist() == [[0, 255], [128, 64]]


def test_floating_point_values_from_0_to_1_are_scaled_and_others_refused(tmp_path):
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "a.tif")
    found, done = read(tmp_path / "a.tif", channels=1)
    assert np.array_equal(found[0], np.rint(values * 255))
    assert done == ["scaled from floating-point values 0 to 1"]
    for wrong in (values * 255, values - 0.5, values * np.nan):
        Image.fromarray(wrong).save(tmp_path / "b.tif")
        with pytest.raises(UnreadableImageError, match=r"floating-point values from .* to .*; allowed: 0 to 1"):
            read(tmp_path / "b.tif")


def test_32_bit_integers_of_an_unknown_range_are_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match="32-bit or signed integers, whose range isn't known"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_a_tiff_whose_lowest_value_is_white_is_turned_around(tmp_path, kind):
    values = (RAMP / 65535).astype(kind) if kind == "float32" else RAMP if kind == "uint16" else EIGHT
    number = 3 if kind == "float32" else 1
    expected = np.rint(RAMP / 257) if kind != "uint8" else EIGHT
    for photometric, wanted in ((1, expected), (0, 255 - expected)):
        (tmp_path / "a.tif").write_bytes(grey_tiff(values, kind=number, photometric=photometric))
        assert np.abs(read(tmp_path / "a.tif", channels=1)[0][0] - wanted).max() == 0


@pytest.mark.parametrize("kind", ["int8", "int16", "int32"])
def test_signed_integers_of_a_tiff_are_refused(tmp_path, kind):
    (tmp_path / "a.tif").write_bytes(grey_tiff(np.arange(-32, 32).reshape(8, 8).astype(kind), kind=2))
    with pytest.raises(UnreadableImageError, match="signed integers, whose range isn't known"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_ends_in_zeros_is_truncated(tmp_path, progressive):
    """As a download leaves it that broke off in a file of full length; Pillow makes up the rest of a baseline JPEG."""
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9 of a thumbnail"
    picture(size=64).save(tmp_path / "a.jpg", progressive=progressive, quality=95, exif=exif)
    whole = (tmp_path / "a.jpg").read_bytes()
    assert read(tmp_path / "a.jpg")[1] == ["reduced"]
    (tmp_path / "a.jpg").write_bytes(whole + b"\0" * 9)
    assert read(tmp_path / "a.jpg")[1] == ["reduced"], "bytes after the end harm nothing"
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    with pytest.raises(UnreadableImageError, match="truncated: a JPEG without its end"):
        read(tmp_path / "a.jpg")


def test_a_damaged_png_is_refused_wherever_the_damage_is(tmp_path):
    """Pillow makes other pixels of most damage to the compressed ones, and says nothing."""
    picture(1).save(tmp_path / "a.png")
    whole, expected = (tmp_path / "a.png").read_bytes(), np.asarray(picture(1)).transpose(2, 0, 1)
    first, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 4
    for place in range(first, end):
        (tmp_path / "b.png").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UnreadableImageError, match="damaged: a PNG whose checksum is not that of its pixels"):
            read(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(whole[: end + 4])
    assert np.array_equal(read(tmp_path / "c.png")[0], expected), "all pixels are there, only the end is not"
    text = b"\0\0\0\1tEXtx\0\0\0\0"  # with another checksum
    (tmp_path / "d.png").write_bytes(whole[:end] + text + whole[end:])
    assert np.array_equal(read(tmp_path / "d.png")[0], expected), "the pixels are whole, only a text behind them is not"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """The upper left quarter of the upright image is white; each orientation stores it elsewhere."""
    row, column = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[8 * row : 8 * row + 8, 16 * column : 16 * column + 16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).convert("RGB").save(tmp_path / f"a{suffix}", exif=exif, quality=100, lossless=True)
    found, done = read(tmp_path / f"a{suffix}", resolution=16, crop="none")
    expected = np.zeros((16, 16), dtype=bool)
    expected[:8, :8] = True
    assert np.array_equal(found[0] > 128, expected)
    assert done == [*([] if orientation == 1 else ["turned as EXIF says"]), "reduced"]


def test_a_photograph_taken_upright_is_turned_clockwise(tmp_path):
    half = Image.new("RGB", (8, 8))
    half.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    half.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    found, _ = read(tmp_path / "turned.jpg")
    assert (found[:, :, 4:] > 250).all()
    assert (found[:, :, :4] < 5).all()


def red(alpha):
    values = np.zeros((8, 8, 4), dtype=np.uint8)
    values[..., 0], values[..., 3] = 255, alpha
    return Image.fromarray(values)


def test_transparency_is_put_on_white(tmp_path):
    red(0).save(tmp_path / "rgba.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0] + [0] * 765)
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    Image.new("LA", (8, 8), (60, 0)).save(tmp_path / "la.png")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "key.png", transparency=(255, 0, 0))
    Image.new("L", (8, 8), 60).save(tmp_path / "grey_key.png", transparency=60)
    red(0).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    red(0).save(tmp_path / "rgba.tif")
    for path in tmp_path.iterdir():
        for channels in (1, 3):
            found, done = read(path, channels=channels)
            assert (found == 255).all(), path
            assert "transparency put on white" in done
    red(128).save(tmp_path / "half.png")
    assert read(tmp_path / "half.png")[0][:, 0, 0].tolist() == [255, 127, 127]
    red(255).save(tmp_path / "opaque.png")
    assert read(tmp_path / "opaque.png")[1] == []


def test_other_modes_become_rgb_or_grey(tmp_path):
    checks = np.indices((8, 8)).sum(axis=0) % 2 == 1
    Image.fromarray(checks).save(tmp_path / "one_bit.png")
    assert np.array_equal(read(tmp_path / "one_bit.png", channels=1)[0][0], checks * 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    found, done = read(tmp_path / "cmyk.tif")
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    assert done == ["CMYK made RGB"]
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "green.png")
    grey, done = read(tmp_path / "green.png", channels=1)
    assert (grey == 150).all(), "ITU-R 601: 0.587 of green"
    assert done == ["colour made grey"]
    picture().quantize(16).save(tmp_path / "palette.png")
    assert np.array_equal(
        read(tmp_path / "palette.png")[0], np.asarray(picture().quantize(16).convert("RGB")).transpose(2, 0, 1)
    )


def test_of_several_frames_the_first_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png", "a.tif", "a.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], quality=100, lossless=True)
        found, done = read(tmp_path / name)
        assert np.abs(found[:, 0, 0].astype(int) - [255, 0, 0]).max() <= 2, name
        assert done == ["first of several frames"], name


def test_the_content_decides_whatever_the_ending(tmp_path):
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(read(tmp_path / "a.jpg")[0], np.asarray(picture(1)).transpose(2, 0, 1))


def test_documents_video_and_science_data_are_no_pictures(tmp_path):
    endings = picture_formats()
    assert {".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".avif", ".jp2", ".mpo"} <= set(
        endings
    )
    assert not {".pdf", ".eps", ".ps", ".mpg", ".wmf", ".emf", ".h5", ".fits", ".grib", ".fli"} & set(endings)
    picture().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="not an image that Pillow reads"):
        read(tmp_path / "a.png")


def test_broken_files_say_why_in_a_few_words(tmp_path):
    def reason(name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImageError) as caught:
            read(tmp_path / name)
        return str(caught.value)

    picture().save(tmp_path / "whole.png")
    picture(size=64).save(tmp_path / "whole.jpg")
    png_bytes, jpeg = (tmp_path / "whole.png").read_bytes(), (tmp_path / "whole.jpg").read_bytes()
    assert "truncated" in reason("a.png", png_bytes[:60])
    assert "truncated" in reason("a.jpg", jpeg[: len(jpeg) // 2])
    for content in (b"", b"not a picture", b"\x00\x05\x16\x07"):
        assert reason("b.png", content) == "not an image that Pillow reads"
    text = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 2_000_000))
    huge = png(np.zeros((8, 8, 3), dtype=np.uint8), bits=8, chunks=text)
    assert "too large" in reason("c.png", huge)
    Image.new("L", (14_000, 14_000)).save(tmp_path / "bomb.png")
    assert "178,956,970 pixels" in reason("bomb.png", (tmp_path / "bomb.png").read_bytes())


def test_broken_exif_does_not_make_an_image_unreadable(tmp_path):
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0broken", quality=95)
    assert read(tmp_path / "a.jpg")[1] == []


def gradient(width, height):
    """Each pixel holds its column in red and its row in green."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, rows], axis=2).astype(np.uint8))


@pytest.mark.parametrize(
    ("crop", "size", "resolution", "left_top", "right_bottom"),
    [
        ("celeba", (178, 218), 128, (25, 57), (152, 184)),
        ("25,57,153,185", (178, 218), 128, (25, 57), (152, 184)),
        ("140", (178, 218), 140, (19, 39), (158, 178)),
        ("centre", (40, 20), 20, (10, 0), (29, 19)),
        ("center", (20, 40), 20, (0, 10), (19, 29)),
    ],
)
def test_crops_take_their_part_of_the_image(tmp_path, crop, size, resolution, left_top, right_bottom):
    gradient(*size).save(tmp_path / "a.png")
    found, _ = read(tmp_path / "a.png", resolution=resolution, crop=crop)
    assert tuple(found[:2, 0, 0]) == left_top
    assert tuple(found[:2, -1, -1]) == right_bottom


def test_crop_none_keeps_all_of_the_image(tmp_path):
    gradient(40, 20).save(tmp_path / "a.png")
    found, done = read(tmp_path / "a.png", resolution=20, crop="none", resize="box")
    assert np.array_equal(found[0, 0], np.rint(np.arange(20) * 2 + 0.5 + 1e-6))
    assert found[1, :, 0].tolist() == list(range(20))
    assert done == ["reduced"]


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box", "hamming", "nearest"])
def test_filters_are_pillows_own(tmp_path, name):
    image = picture(3, size=24)
    image.save(tmp_path / "a.png")
    expected = image.resize((8, 8), Image.Resampling[name.upper()])
    found, done = read(tmp_path / "a.png", resize=name)
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))
    assert done == ["reduced"]
    assert read(tmp_path / "a.png", resize=name, resolution=48)[1] == ["enlarged"]


def test_a_very_long_image_takes_little_memory(tmp_path):
    Image.new("RGB", (200_000, 2), (9, 8, 7)).save(tmp_path / "a.png")
    found, _ = read(tmp_path / "a.png", resolution=256)
    assert found.shape == (3, 256, 256)
    assert found[:, 0, 0].tolist() == [9, 8, 7]


def test_filters_and_crops_that_there_are_not_are_refused(tmp_path):
    with pytest.raises(MaskproError, match="resize is 'cubic'; allowed: bilinear, bicubic, lanczos, box, hamming, nearest"):
        ImageReading(resize="cubic")
    for crop in ("face", "1,2,3", "10,10,5,20", "0", "-4", "1.5", ""):
        with pytest.raises(MaskproError, match=f"crop is '{crop}'; allowed: centre, none, celeba, a number of pixels"):
            ImageReading(crop=crop)
    gradient(100, 100).save(tmp_path / "a.png")
    for crop in ("celeba", "140"):
        with pytest.raises(UnreadableImageError, match=f"it is 100x100, and crop {crop} does not fit into it"):
            read(tmp_path / "a.png", crop=crop)
