"""A user's picture, whatever its format and depth, as 8-bit colour: the one place that opens it."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from orchestrator.core.errors import DataError
from orchestrator.core.text import shortened

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow hands others (EPS, WMF) to programs that it finds on the machine."""
MIN_SIDE_PX = 4
"""A picture with a shorter side than this is a placeholder, not a picture."""
MAX_PIXELS = 178_956_970
"""Pillow's own limit: more in a small file is an attack, or a scan that should be made smaller."""
LONGEST_FAULT = 300
BACKGROUNDS = ("white", "grey", "black")
BACKGROUND = (
    "what is seen behind transparent pictures: white, grey, black or a colour such as '#ffcc00'"
)
_COLOURS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
_TIFF_BITS, _TIFF_MEANING, _WHITE_IS_ZERO = 258, 262, 0
_ORIENTATION = 0x0112
_PNG_SCALES = {"L;2": 85, "L;4": 17}


def _is_a_background(text: str) -> str:
    if text not in BACKGROUNDS and not re.fullmatch("#[0-9a-fA-F]{6}", text):
        allowed = f"{', '.join(BACKGROUNDS)} or a colour such as '#ffcc00'"
        raise ValueError(f"background must be {allowed} but got {shortened(text, 40)!r}")
    return text


Background = Annotated[str, AfterValidator(_is_a_background)]


def open_image(source: bytes | Path | None) -> Image.Image:
    """The picture, its header read and its pixels not yet; large enough to be one.

    Raises:
        DataError: there is none, or it is none that is read.
    """
    from PIL import Image, UnidentifiedImageError

    if source is None:
        raise DataError("no picture")
    if isinstance(source, Path) and not os.path.isfile(source):
        raise DataError("is a folder" if os.path.isdir(source) else "the file is missing")
    try:
        with _quiet():
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            image = Image.open(file, formats=FORMATS)
        # By its name Pillow maps an uncompressed file, and does not look whether the rows fit.
        image.filename = ""
    except UnidentifiedImageError:
        raise DataError(f"cannot identify image file; {', '.join(FORMATS)} are read") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{_of_pillow(error)}; at most {MAX_PIXELS:,} pixels are read") from error
    except Exception as error:  # Pillow raises whatever it trips over in a damaged file
        raise _unreadable(error) from error
    if min(image.size) < MIN_SIDE_PX:
        image.close()
        raise DataError(
            f"the picture has {image.width} × {image.height} pixels; "
            f"at least {MIN_SIDE_PX} × {MIN_SIDE_PX} are needed"
        )
    if image.format == "TIFF" and _covered_px(image) < image.width * image.height:
        image.close()
        raise DataError("the file says where a part of the picture is, and nothing of the rest")
    return image


def _covered_px(image: Image.Image) -> int:
    """How many pixels the file has something for; the others would be whatever is in memory."""
    tiles: Any = getattr(image, "tile", ())
    return sum((right - left) * (low - top) for _, (left, top, right, low), *_ in tiles)


def read_square(source: bytes | Path | None, size_px: int, background: str) -> np.ndarray:
    """The picture as uint8 (size_px, size_px, 3): upright, in front of the background, scaled to
    cover the square and cropped in the middle; of an animation, its first frame.

    Greys of 16 bits are scaled to 8, floats are from 0 (black) to 1 (white). Colour profiles are
    not applied.

    Raises:
        DataError: there is none, it is none that is read, or its values have no known range.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with open_image(source) as image:
        key = _transparent_value(image)
        try:
            with _quiet():
                image.load()
                orientation = image.getexif().get(_ORIENTATION)
        except Exception as error:  # Pillow raises whatever it trips over in a damaged file
            raise _unreadable(error) from error
        flat = _in_front_of(_eight_bits(image, key), background)
    flat.info.clear()  # of damaged Exif data, which the first look found and passed over
    flat.getexif()[_ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(flat)
    square = ImageOps.fit(upright, (size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(square)


def _transparent_value(image: Image.Image) -> Any:
    """The one value that is transparent in a picture without alpha, in the scale of its pixels,
    which Pillow gives in that of the file; None without one. Before the pixels are loaded.
    """
    key = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    packing = tiles[0].args if tiles else None
    if key is not None and packing == "RGB;16B":
        raise DataError("16-bit colours of which one is transparent are not read; save it as RGBA")
    return key * _PNG_SCALES[packing] if key is not None and packing in _PNG_SCALES else key


def _eight_bits(image: Image.Image, key: Any) -> Image.Image:
    """The picture with 8 bits a channel; grey ones of other depths scaled by their range."""
    import numpy as np
    from PIL import Image

    if image.mode in _COLOURS:
        if key is not None:
            image.info["transparency"] = key
        return image
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        unit = values / (2 ** tags.get(_TIFF_BITS, (16,))[0] - 1)
    elif image.mode == "I" and image.format == "PPM":
        unit = values / 65535
    elif image.mode == "F" and np.isfinite(values).all() and 0 <= values.min() <= values.max() <= 1:
        unit = values.astype(np.float64)
    else:
        raise DataError(_no_range(image.mode, values))
    if tags.get(_TIFF_MEANING) == _WHITE_IS_ZERO:
        unit = 1 - unit  # Pillow turns these round for 8 bits only
    grey = Image.fromarray((unit * 255).round().astype(np.uint8))
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _no_range(mode: str, values: np.ndarray) -> str:
    if mode == "F":
        return (
            f"its pixels are floats from {values.min():g} to {values.max():g}, and only those from "
            "0 (black) to 1 (white) have a known range; save it with 8 or 16 bits a channel"
        )
    return (
        f"its pixels are of the kind {mode!r}, whose black and white are not known; save it "
        "with 8 or 16 bits a channel"
    )


def _in_front_of(image: Image.Image, background: str) -> Image.Image:
    from PIL import Image

    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return image.convert("RGB")
    seen = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    behind = Image.new("RGBA", image.size, "#808080" if background == "grey" else background)
    return Image.alpha_composite(behind, seen).convert("RGB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of what is large or odd, row by row; it raises for what it cannot read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unreadable(error: Exception) -> Exception:
    return error if isinstance(error, MemoryError) else DataError(_of_pillow(error))


def _of_pillow(error: Exception) -> str:
    text = " ".join(str(error).split()) or repr(error)
    return shortened(text, LONGEST_FAULT)
