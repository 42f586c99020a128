"""A user's picture of any kind becomes the 8-bit colours that a viewer shows, or is refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from orchestrator.core.errors import DataError
from workers.data.images import FORMATS, open_image, read_square
from workers.datasets.folder import Folder
from workers.datasets.hub import Hub
from workers.datasets.parquet import Parquet

SIDE = 8
RAMP = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)
RED, HALF = (255, 0, 0), (100, 50, 25)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(bits: int, kind: int, rows: list[bytes], transparent: bytes = b"") -> bytes:
    """A PNG of 8 pixels a row, as Pillow cannot write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, len(rows), bits, kind, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + key + body + chunk(b"IEND", b"")


def read(content: bytes, background: str = "white") -> np.ndarray:
    found = read_square(content, SIDE, background)
    assert (found.shape, found.dtype) == ((SIDE, SIDE, 3), np.uint8)
    return found


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def plain(color: tuple[int, ...]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), color, np.uint8)


def of(mode: str, color: object = RED) -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), color).convert(mode)  # type: ignore[arg-type]


def of_ramp(values: np.ndarray, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(values)
    return image if mode is None else image.convert(mode)


def transparent_palette() -> bytes:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.paste(2, (0, 0, SIDE, SIDE // 2))
    return saved(image, transparency=2)


def white_is_zero(values: np.ndarray) -> bytes:
    return saved(Image.fromarray(values), "TIFF", tiffinfo={262: 0})


TOP_WHITE = np.concatenate([plain((255, 255, 255))[:4], plain(RED)[4:]])

# What a viewer shows, by Pillow's mode and how it is stored.
RIGHT: dict[str, tuple[bytes, np.ndarray]] = {
    "1": (saved(of_ramp(RAMP > 127)), grey((RAMP > 127) * 255)),
    "L": (saved(of_ramp(RAMP)), grey(RAMP)),
    "P": (saved(of("P")), plain(RED)),
    "RGB": (saved(of("RGB", HALF)), plain(HALF)),
    "RGB in BMP": (saved(of("RGB", HALF), "BMP"), plain(HALF)),
    "RGB in TIFF": (saved(of("RGB", HALF), "TIFF"), plain(HALF)),
    "RGB in WEBP": (saved(of("RGB", HALF), "WEBP", lossless=True), plain(HALF)),
    "RGB in PPM": (saved(of("RGB", HALF), "PPM"), plain(HALF)),
    "RGB in GIF": (saved(of("P"), "GIF"), plain(RED)),
    "RGB in JPEG2000": (saved(of("RGB", HALF), "JPEG2000"), plain(HALF)),
    "CMYK in TIFF": (saved(of("CMYK"), "TIFF"), plain(RED)),
    "YCbCr in TIFF": (saved(of("YCbCr", (99, 99, 99)), "TIFF"), plain((99, 99, 99))),
    "RGBA": (saved(Image.new("RGBA", (SIDE, SIDE), (*RED, 255))), plain(RED)),
    "RGBA, black under nothing": (
        saved(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))),
        plain((255, 255, 255)),
    ),
    "RGBA, colours under nothing": (
        saved(Image.new("RGBA", (SIDE, SIDE), (*HALF, 0))),
        plain((255, 255, 255)),
    ),
    "RGBA, half": (saved(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 128))), plain((127,) * 3)),
    "RGBA in WEBP": (
        saved(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)), "WEBP", lossless=True),
        plain((255, 255, 255)),
    ),
    "LA": (saved(Image.new("LA", (SIDE, SIDE), (0, 0))), plain((255, 255, 255))),
    "P with transparency": (transparent_palette(), TOP_WHITE),
    "RGB with a transparent colour": (
        saved(Image.fromarray(TOP_WHITE), transparency=RED),
        plain((255, 255, 255)),
    ),
    "1, its black transparent": (png(1, 0, [b"\xaa"] * 8, b"\0\0"), plain((255, 255, 255))),
    "L of 2 bits": (png(2, 0, [b"\x1b\x1b"] * 8), grey([[0, 85, 170, 255] * 2] * 8)),
    "L of 2 bits, its white transparent": (
        png(2, 0, [b"\x1b\x1b"] * 8, b"\0\3"),
        grey([[0, 85, 170, 255] * 2] * 8),
    ),
    "L of 4 bits, a grey transparent": (
        png(4, 0, [b"\x05\x05\x05\x05"] * 8, b"\0\5"),
        grey([[0, 255] * 4] * 8),
    ),
    "I;16": (saved(of_ramp(RAMP.astype(np.uint16) * 257)), grey(RAMP)),
    "I;16, its black transparent": (
        png(16, 0, [struct.pack(">8H", 0, 100, 65535, 32896, 0, 0, 0, 0)] * 8, b"\0\0"),
        grey([[255, 0, 255, 128, 255, 255, 255, 255]] * 8),
    ),
    "I;16 in TIFF": (saved(of_ramp(RAMP.astype(np.uint16) * 257), "TIFF"), grey(RAMP)),
    "I;16B in TIFF": (
        saved(of_ramp((RAMP.astype(np.uint16) * 257).astype(">u2")), "TIFF"),
        grey(RAMP),
    ),
    "I;16 in TIFF, white is zero": (
        white_is_zero(RAMP.astype(np.uint16) * 257),
        grey(255 - RAMP),
    ),
    "I;16 in JPEG2000": (saved(of_ramp(RAMP.astype(np.uint16) * 257), "JPEG2000"), grey(RAMP)),
    "RGB of 16 bits": (
        png(16, 2, [struct.pack(">24H", *[100 * 257, 50 * 257, 25 * 257] * 8)] * 8),
        plain(HALF),
    ),
    "LA of 16 bits": (png(16, 4, [struct.pack(">16H", *[0, 0] * 8)] * 8), plain((255,) * 3)),
    "RGBA of 16 bits": (
        png(16, 6, [struct.pack(">32H", *[9, 9, 9, 0] * 8)] * 8),
        plain((255,) * 3),
    ),
    "I in PPM": (
        b"P5 8 8 65535\n" + (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes(),
        grey(RAMP),
    ),
    "F in TIFF": (saved(of_ramp(RAMP.astype(np.float32) / 255), "TIFF"), grey(RAMP)),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_read_is_what_a_viewer_shows(kind: str) -> None:
    content, right = RIGHT[kind]
    difference = np.abs(read(content).astype(int) - right.astype(int))
    assert difference.max() <= 1


def test_the_ramp_of_16_bits_keeps_its_mean() -> None:
    assert read(RIGHT["I;16"][0]).mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize(
    ("background", "seen"),
    [("white", 255), ("black", 0), ("grey", 128), ("#204060", (32, 64, 96))],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_background_is_a_setting(mode: str, background: str, seen: object) -> None:
    nothing = saved(Image.new(mode, (SIDE, SIDE)))
    assert (read(nothing, background) == seen).all()


@pytest.mark.parametrize(
    "settings", [(Folder, {"path": "x"}), (Parquet, {"path": "x"}), (Hub, {"repository": "x"})]
)
def test_other_backgrounds_are_refused(settings) -> None:
    cls, others = settings
    with pytest.raises(ValidationError, match="background must be white, grey, black or a colour"):
        cls.Settings(**others, background="paisley")


def refused(content: bytes | Path | None) -> str:
    with pytest.raises(DataError) as raised:
        read_square(content, SIDE, "white")
    assert len(str(raised.value)) < 500
    return str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (saved(of_ramp(RAMP.astype(np.float32)), "TIFF"), "floats from 0 to 255, and only those"),
        (saved(of_ramp(RAMP - np.float32(9)), "TIFF"), "floats from -9 to 246"),
        (saved(of_ramp(np.full((8, 8), np.nan, np.float32)), "TIFF"), "floats from nan to nan"),
        (saved(of_ramp(RAMP.astype(np.int32)), "TIFF"), "kind 'I', whose black and white"),
        (saved(Image.new("LAB", (8, 8)), "TIFF"), "kind 'LAB', whose black and white"),
        (
            png(16, 2, [bytes(48)] * 8, b"\0\0\0\0\0\0"),
            "16-bit colours of which one is transparent",
        ),
        (saved(of("RGB"), "EPS"), "cannot identify image file; AVIF, BMP, GIF, JPEG,"),
        (saved(of("RGB"), "ICO"), "cannot identify image file"),
        (saved(of("RGB"), "TGA"), "cannot identify image file"),
        (saved(of("RGB"), "PDF"), "cannot identify image file"),
        (b"", "cannot identify image file"),
        (None, "no picture"),
        (saved(Image.new("RGB", (1, 9))), "the picture has 1 × 9 pixels; at least 4 × 4"),
        (png(8, 2, [bytes(24)] * 8)[:-30], ""),
    ],
)
def test_what_has_no_right_reading_is_refused(content: bytes, said: str) -> None:
    assert said in refused(content)


def test_a_picture_with_more_pixels_than_are_read(tmp_path: Path) -> None:
    huge = bytearray(RIGHT["L"][0])
    huge[16:24] = struct.pack(">II", 14_000, 14_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    (tmp_path / "huge.png").write_bytes(huge)
    for source in (bytes(huge), tmp_path / "huge.png"):
        assert "196000000 pixels" in refused(source)
        assert "at most 178,956,970 pixels are read" in refused(source)


def test_large_ones_are_read_without_a_warning(recwarn) -> None:
    large = bytearray(RIGHT["L"][0])
    large[16:24] = struct.pack(">II", 10_000, 10_000)
    large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
    with open_image(bytes(large)) as image:
        assert image.size == (10_000, 10_000)
    assert not list(recwarn)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_anywhere_is_the_pictures_and_no_bug(form: str) -> None:
    whole = saved(Image.effect_noise((SIDE, SIDE), 50).convert("RGB"), form)
    random = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        damaged = damaged[: random.integers(1, len(whole) + 1)]
        try:
            assert read_square(bytes(damaged), SIDE, "white").shape == (SIDE, SIDE, 3)
        except DataError as error:
            assert str(error)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_pictures_are_turned_upright(form: str, mode: str, orientation: int) -> None:
    corner = np.zeros((SIDE, SIDE), np.uint8)
    corner[:4, :4] = 255
    image = Image.fromarray(corner)
    image = (
        Image.fromarray(corner.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read(saved(image, form, exif=exif))
    places = [(0, 0), (0, 7), (7, 7), (7, 0), (0, 0), (0, 7), (7, 7), (7, 0)]
    bright = [place for place in {(0, 0), (0, 7), (7, 0), (7, 7)} if found[place][0] > 127]
    assert bright == [places[orientation - 1]]


def frames(form: str) -> bytes:
    first, second = of("RGB"), of("RGB", (0, 0, 255))
    return saved(first, form, save_all=True, append_images=[second])


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_of_several_frames_the_first_is_read(form: str) -> None:
    assert np.abs(read(frames(form)).astype(int) - plain(RED)).max() <= 6


Shape = Callable[[], Image.Image]


@pytest.mark.parametrize(("width", "height"), [(24, 8), (8, 24), (240, 80), (9, 8)])
def test_what_is_not_square_is_cropped_in_the_middle_and_not_squeezed(
    width: int, height: int
) -> None:
    """The largest square of the middle is green; what is cropped away is red."""
    image = Image.new("RGB", (width, height), "red")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image.paste((0, 255, 0), (left, top, left + side, top + side))
    inner = read(saved(image))[1:-1, 1:-1]
    assert (inner[..., 1] > 200).all()


def test_exif_data_that_are_damaged_turn_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = of_ramp(np.arange(256, dtype=np.uint8).reshape(16, 16))
    content = saved(image.convert("RGB"), "JPEG", quality=100, exif=exif)
    assert b"MM\x00*" in content
    straight = saved(image.convert("RGB"), "JPEG", quality=100)
    damaged = content.replace(b"MM\x00*", b"MM\x00\x7f")
    assert np.array_equal(read_square(damaged, 16, "white"), read_square(straight, 16, "white"))


def test_a_tiff_without_all_of_its_rows_is_refused() -> None:
    """Pillow gives what was in memory before for the others."""
    content = bytearray(saved(of_ramp(np.arange(256, dtype=np.uint8).reshape(16, 16)), "TIFF"))
    at = content.index(struct.pack("<HHII", 278, 4, 1, 16))
    content[at + 8] = 1  # the rows of a strip, of which there is one
    with pytest.raises(DataError, match="where a part of the picture is, and nothing of the rest"):
        read_square(bytes(content), 16, "white")


@pytest.mark.parametrize("as_file", [True, False])
def test_an_uncompressed_picture_whose_rows_do_not_fit_is_refused(
    tmp_path: Path, as_file: bool
) -> None:
    """A bitmap of 256 greys that calls itself one of 1 bit: read by name too."""
    file = io.BytesIO()
    Image.new("L", (16, 16), 90).save(file, "BMP")
    content = bytearray(file.getvalue())
    content[28:30] = struct.pack("<H", 1)
    path = tmp_path / "a.bmp"
    path.write_bytes(content)
    with pytest.raises(DataError, match="codec configuration error"):
        read_square(path if as_file else bytes(content), 16, "white")
