"""Pictures of every format and mode: as they are, cut, flipped, with headers that lie, bombs."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from orchestrator.core.errors import ResurgeError
from tests.fuzz.cases import Area, Fault, damaged
from workers.datasets.folder import Folder

SIDE = 16
ROUNDING = 3
"""Levels that two right conversions may differ by."""
PNG = b"\x89PNG\r\n\x1a\n"
BITS = 258
"""The TIFF tag that says how many bits a sample has."""
CHUNKS = (
    b"tRNS", b"PLTE", b"gAMA", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT",
    b"sRGB", b"cHRM", b"pHYs", b"ABCD", b"\xff" * 4,
)  # fmt: skip
LONG = b"x\0\0" + zlib.compress(bytes(10**6))


@dataclass(frozen=True)
class Known:
    """A picture's file, and the pixels that a person sees: float64 (height, width, 3)."""

    name: str
    content: bytes
    seen: np.ndarray
    tolerance: float = ROUNDING


def ramp() -> np.ndarray:
    """Levels from 0 to 255: (side, side, 3) as floats, each channel its own."""
    line = np.linspace(0, 255, SIDE).round()
    across, down = line[None].repeat(SIDE, 0), line[:, None].repeat(SIDE, 1)
    return np.stack([across, down, across[:, ::-1]], -1)


def grey(levels: np.ndarray) -> np.ndarray:
    return levels[..., None].repeat(3, -1)


def on_white(levels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """(…, 3) levels seen through alpha in [0, 1]."""
    return levels * alpha[..., None] + 255 * (1 - alpha[..., None])


def png16(samples: np.ndarray, color: int) -> bytes:
    """A PNG of 16 bits a sample, which Pillow writes in grey only: (h, w[, channels])."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(PNG)
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def known_pictures() -> list[Known]:
    """Every format and mode that people's folders hold."""
    found: list[Known] = []

    def save(
        image: Image.Image, kind: str, seen: np.ndarray, tolerance: float = ROUNDING, **how: object
    ) -> None:
        buffer = io.BytesIO()
        image.save(buffer, kind, **how)
        name = f"{image.mode} {kind} {' '.join(how)}".strip()
        found.append(Known(name, buffer.getvalue(), seen, tolerance))

    color = ramp()
    levels = color[..., 0]
    alpha = color[..., 1] / 255
    rgb = Image.fromarray(color.astype(np.uint8))
    mono = Image.fromarray(levels.astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(Image.fromarray((alpha * 255).astype(np.uint8)))
    for kind in ("PNG", "BMP", "TIFF", "TGA", "PPM", "ICO", "DIB", "PCX", "SGI", "GIF"):
        save(rgb, kind, color, 60 if kind == "GIF" else ROUNDING)
    for kind in ("PNG", "BMP", "TIFF", "TGA", "PPM", "GIF", "PCX", "SGI"):
        save(mono, kind, grey(levels))
    for kind in ("PNG", "TIFF", "TGA", "SGI", "ICO"):
        save(clear, kind, on_white(color, alpha))
    dull = clear.convert("LA")
    for kind in ("PNG", "TGA"):
        save(dull, kind, on_white(grey(np.asarray(dull)[..., 0].astype(float)), alpha))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
        save(rgb, "TIFF", color, compression=compression)
    save(rgb, "WEBP", color, lossless=True)
    save(clear, "WEBP", on_white(color, alpha), lossless=True, exact=True)
    save(rgb, "WEBP", color, 60)
    save(rgb, "JPEG", color, 60, quality=100, subsampling=0)
    save(rgb, "JPEG", color, 60, quality=100, subsampling=0, progressive=True)
    save(mono, "JPEG", grey(levels), 30, quality=100)
    save(rgb.convert("CMYK"), "JPEG", color, 60, quality=100)
    save(rgb, "JPEG2000", color)
    save(rgb, "AVIF", color, 60, quality=100)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(color, -1)
    save(rgb, "JPEG", turned, 60, quality=100, subsampling=0, exif=exif)
    save(rgb, "PNG", turned, exif=exif)
    palette = rgb.quantize(200)
    as_seen = np.asarray(palette.convert("RGB")).astype(float)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        save(palette, kind, as_seen)
    hidden = as_seen.copy()
    hidden[np.asarray(palette) == 7] = 255
    save(palette, "PNG", hidden, transparency=7)
    save(palette, "GIF", hidden, transparency=7)
    first = mono.point(lambda level: 255 if level > 127 else 0, "1")
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        save(first, kind, grey(np.where(levels > 127, 255.0, 0.0)))
    save(rgb, "GIF", color, 60, save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    save(rgb, "TIFF", color, save_all=True, append_images=[rgb.rotate(90)])
    deep = (levels * 257).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        save(Image.fromarray(deep), kind, grey(levels))
    wide = (color * 257).astype(np.uint16)
    found.append(Known("RGB PNG of 16 bits", png16(wide, 2), color))
    with_alpha = np.concatenate([wide, (alpha * 65535).astype(np.uint16)[..., None]], -1)
    found.append(Known("RGBA PNG of 16 bits", png16(with_alpha, 6), on_white(color, alpha)))
    save(Image.fromarray((levels / 255).astype(np.float32)), "TIFF", grey(levels))
    save(Image.fromarray(deep.astype(np.int32)), "TIFF", grey(levels))
    return found


def reference(content: bytes) -> np.ndarray | None:
    """What a decoder makes of it, (h, w, 3), upright and on white; None where no one can say.

    Raises:
        Exception: whatever it trips over.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content))
        image.load()
        bits = getattr(image, "tag_v2", {}).get(BITS, (16,))
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or (image.mode.startswith("I;16") and bits != (16,)):
            return None
        if image.mode.startswith("I;16"):
            return grey(np.asarray(image).astype(float) / 257)
        if image.has_transparency_data:
            pixels = np.asarray(image.convert("RGBA")).astype(float)
            return on_white(pixels[..., :3], pixels[..., 3] / 255)
        return np.asarray(image.convert("RGB")).astype(float)


class Pictures(Area):
    """A data set's picture is refused by name, or has the pixels that a decoder sees."""

    name = "pictures"
    full = 2000
    quick = 400

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known = known_pictures()
        self.place = folder / "set"
        self.place.mkdir()
        rows = json.dumps({"file_name": "a.png", "text": "x"})
        (self.place / "metadata.jsonl").write_text(rows + "\n")

    def case(self, rng: random.Random) -> str:
        picture = rng.choice(self.known)
        ways: list[Callable[[Known, random.Random], bytes]] = [whole, bytes_wrong, header_wrong]
        if picture.content.startswith(PNG):
            ways += [chunks_wrong, chunks_wrong, bomb]
        way = rng.choice(ways)
        content = way(picture, rng)
        self.say(f"{picture.name}, {way.__name__}, {len(content)} bytes: {content[:200].hex()}")
        (self.place / "a.png").write_bytes(content)
        found = self.read()
        if found is None:
            return "refused"
        if content == picture.content:
            compare(found, picture.seen, picture.tolerance, "the picture")
            return "right"
        try:
            seen = reference(content)
        except MemoryError:  # the product needs less than the floats here
            return "damaged and too large to compare"
        except Exception as error:
            raise Fault(f"accepted what no decoder can read: {error!r}") from error
        if seen is not None:
            compare(found, seen, ROUNDING, "a decoder's")
        return "damaged and as a decoder sees it"

    def read(self) -> np.ndarray | None:
        """The picture as the data set gives it, (side, side, 3) floats; None if it is refused."""
        dataset = Folder(Folder.Settings(path=str(self.place)))
        problems = dataset.problems(None, "star")  # type: ignore[arg-type]
        try:
            examples = dataset.examples("star", SIDE)
        except ResurgeError as error:
            if "a.png" not in str(error):
                raise Fault(f"the file is not named: {error}") from error
            return None
        if problems:
            raise Fault(f"planning refuses what is read: {problems}")
        assert examples.images.shape == (1, SIDE, SIDE, 3)
        return examples.images[0].astype(float)


def compare(found: np.ndarray, seen: np.ndarray, tolerance: float, whose: str) -> None:
    """Whether pixels are those seen, cropped and scaled as data sets do."""
    if seen.shape != found.shape:
        image = Image.fromarray(seen.round().clip(0, 255).astype(np.uint8))
        fitted = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
        seen = np.asarray(fitted).astype(float)
        tolerance += ROUNDING
    if (far := float(np.abs(found - seen).max())) > tolerance:
        raise Fault(
            f"other pixels than {whose}: up to {far:.0f} levels; mean {found.mean():.1f} "
            f"and not {seen.mean():.1f}"
        )


def whole(picture: Known, rng: random.Random) -> bytes:
    return picture.content


def bytes_wrong(picture: Known, rng: random.Random) -> bytes:
    return damaged(picture.content, rng)


def header_wrong(picture: Known, rng: random.Random) -> bytes:
    data = bytearray(picture.content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(min(len(data), rng.choice((16, 64, 128))))
        flipped = data[at] ^ 1 << rng.randrange(8)
        data[at] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256), flipped))
    return bytes(data)


def chunks_wrong(picture: Known, rng: random.Random) -> bytes:
    """Sound checksums around a chunk that is wrong, missing, doubled or moved."""
    chunks = chunks_of(picture.content)
    at = rng.randrange(len(chunks))
    kind, body = chunks[at]
    match rng.randrange(6):
        case 0:
            chunks[at] = (kind, damaged(body, rng))
        case 1:
            del chunks[at]
        case 2:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[at])
        case 3:
            rng.shuffle(chunks)
        case 4:
            fill = (b"", b"\0", rng.randbytes(6), rng.randbytes(26), LONG)
            chunks.insert(1, (rng.choice(CHUNKS), rng.choice(fill)))
        case 5:
            width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
            sizes = (0, 1, 3, 15, 17, 32, 1000, 2**31 - 1, 2**32 - 1)
            fields = [width, height, depth, color, *rest]
            which = rng.randrange(7)
            fields[which] = rng.choice(sizes if which < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255))
            chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
    return png(chunks)


def bomb(picture: Known, rng: random.Random) -> bytes:
    """A few kilobytes that say, or hold, very many pixels."""
    side = rng.choice((2_000, 14_000, 20_000, 60_000))
    rows = zlib.compress(
        bytes(side // 8 + 1) * (side if side < 15_000 and rng.random() < 0.3 else 3)
    )
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")])
