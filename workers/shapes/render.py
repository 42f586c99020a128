"""Draw a scene: one shape of one colour and fill on a light background."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from workers.shapes.vocabulary import COLORS, FILLS, RGB, SHAPES

CANVAS = 32.0
"""Side of the square in which scenes are described, whatever the size of the drawn image."""
SUPERSAMPLING = 4
OUTLINE_WIDTH = 2.4
STRIPE_PERIOD = 6.0
STRIPE_SHADE = 0.35

Polygon = list[tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Lengths are in units of the 32-unit canvas, y points down."""

    shape: str
    color: str
    fill: str
    x: float
    y: float
    size: float
    rotation_deg: float
    background: tuple[int, int, int]


def random_scene(
    rng: np.random.Generator,
    shape: str | None = None,
    color: str | None = None,
    fill: str | None = None,
) -> Scene:
    """Draw a scene at random, but for what is given; the shape is one of the known ones."""
    size = float(rng.uniform(20, 27))
    reach = (CANVAS - size) / 2
    grey = rng.uniform(175, 245)
    tint = np.clip(grey + rng.uniform(-8, 8, size=3), 0, 255).astype(int)
    return Scene(
        shape=shape or str(rng.choice(SHAPES)),
        color=color or str(rng.choice(COLORS)),
        fill=fill or str(rng.choice(FILLS)),
        x=CANVAS / 2 + float(rng.uniform(-reach, reach)),
        y=CANVAS / 2 + float(rng.uniform(-reach, reach)),
        size=size,
        rotation_deg=float(rng.uniform(-18, 18)),
        background=(int(tint[0]), int(tint[1]), int(tint[2])),
    )


def render(scene: Scene, size_px: int = 32) -> np.ndarray:
    """Return the picture of `scene` as uint8 of shape (size_px, size_px, 3)."""
    side = size_px * SUPERSAMPLING
    scale = side / CANVAS
    turn = math.radians(scene.rotation_deg)
    cos, sin, half = math.cos(turn), math.sin(turn), scene.size / 2
    # From the outline's own square into the picture, in pixels.
    points = [
        (
            (scene.x + half * (cos * x - sin * y)) * scale,
            (scene.y + half * (sin * x + cos * y)) * scale,
        )
        for x, y in OUTLINES[scene.shape]
    ]
    image = Image.new("RGB", (side, side), scene.background)
    image.paste(_paint(scene, side, scale), (0, 0), _mask(points, scene.fill, side, scale))
    return np.asarray(image.reduce(SUPERSAMPLING))


def _mask(points: Polygon, fill: str, side: int, scale: float) -> Image.Image:
    inside = Image.new("L", (side, side), 0)
    ImageDraw.Draw(inside).polygon(points, fill=255)
    if fill != "outlined":
        return inside
    # A stroke straddles the edge: draw it twice as wide and cut off what is outside.
    stroke = Image.new("L", (side, side), 0)
    width = round(2 * OUTLINE_WIDTH * scale)
    ImageDraw.Draw(stroke).line([*points, *points[:2]], fill=255, width=width, joint="curve")
    empty = Image.new("L", (side, side), 0)
    return Image.composite(inside, empty, stroke)


def _paint(scene: Scene, side: int, scale: float) -> Image.Image:
    """Return what shows through the shape's mask: its colour, or stripes of two shades of it."""
    color = np.array(RGB[scene.color], dtype=np.float32)
    if scene.fill != "striped":
        return Image.new("RGB", (side, side), RGB[scene.color])
    turn = math.radians(scene.rotation_deg + 45)
    rows, columns = np.mgrid[0:side, 0:side] / scale
    along = (columns - scene.x) * math.cos(turn) + (rows - scene.y) * math.sin(turn)
    dark = (along / STRIPE_PERIOD + 0.25) % 1 >= 0.5
    pixels = color * np.where(dark, STRIPE_SHADE, 1.0)[:, :, None]
    return Image.fromarray(pixels.astype(np.uint8))


def _arc(center: tuple[float, float], radius: float, start: float, end: float) -> Polygon:
    """Points along an arc, with angles in degrees."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(center[0] + radius * math.cos(a), center[1] + radius * math.sin(a)) for a in angles]


def _star() -> Polygon:
    radii = [1.05 if corner % 2 == 0 else 0.45 for corner in range(10)]
    angles = [math.radians(36 * corner - 90) for corner in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> Polygon:
    turns = np.linspace(0, 2 * math.pi, 60)
    x = 16 * np.sin(turns) ** 3
    y = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
    return [(float(a) / 16.5, -(float(b) + 2.5) / 16) for a, b in zip(x, y, strict=True)]


def _cross() -> Polygon:
    near, far = 0.32, 0.95
    quarter = [(near, -far), (near, -near), (far, -near)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    return [(c * x - s * y, s * x + c * y) for c, s in turns for x, y in quarter]


OUTLINES: dict[str, Polygon] = {
    "circle": _arc((0, 0), 0.95, 0, 360),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0, -0.95), (0.98, 0.8), (-0.98, 0.8)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "crescent": [*_arc((0.1, 0), 0.95, 55, 305), *_arc((0.62, 0), 0.78, 273, 87)],
    "arrow": [
        (0.98, 0), (0.12, -0.88), (0.12, -0.34), (-0.95, -0.34),
        (-0.95, 0.34), (0.12, 0.34), (0.12, 0.88),
    ],
    "bolt": [
        (0.3, -1), (-0.85, 0.2), (-0.1, 0.2), (-0.4, 1),
        (0.85, -0.35), (0.12, -0.35), (0.72, -1),
    ],
    "drop": [(0, -1.0), *_arc((0, 0.3), 0.68, -28, 208)],
}  # fmt: skip
"""Each shape's outline, a polygon in the square [-1, 1] by [-1, 1] with y pointing down."""
