"""Rendered pictures with captions and questions: shapes, colours, places, counts, printed words.

Every scene follows from its description, so captions and answers are exact. Fonts are matplotlib's,
which every installation has.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 64
"""Pixels a side."""

COLOURS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220),
           "yellow": (235, 205, 30), "purple": (140, 50, 170), "black": (25, 25, 25)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
NUMBERS = ("one", "two", "three", "four")
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf",
         "STIXGeneral.ttf")

_CORNERS = {"square": 4, "triangle": 3, "star": 10, "cross": 4}
_CELL = SIDE / 3
_PAPER = (232, 255)  # range of a light background


@dataclass(frozen=True)
class Thing:
    """A shape of a colour in one of the nine cells, counted row by row."""

    shape: str
    colour: str
    cell: int

    @property
    def place(self) -> str:
        """``top left`` … ``bottom right``."""
        return f"{ROWS[self.cell // 3]} {COLUMNS[self.cell % 3]}"


@dataclass(frozen=True)
class Scene:
    """What is drawn: ``things``, or a ``word``. ``caption``: what it says of itself; ``questions``:
    (question, answer) pairs about it."""

    caption: str
    questions: tuple[tuple[str, str], ...] = ()
    things: tuple[Thing, ...] = ()
    word: str | None = None


def single(rng: np.random.Generator) -> Scene:
    """One thing somewhere."""
    thing = Thing(_one(SHAPES, rng), _one(tuple(COLOURS), rng), int(rng.integers(9)))
    return Scene(f"a {thing.colour} {thing.shape} at the {thing.place}",
                 (("what colour is it", thing.colour), ("what shape is it", thing.shape),
                  ("where is it", thing.place)), (thing,))


def several(rng: np.random.Generator) -> Scene:
    """Two to four of a kind."""
    shape, colour, count = _one(SHAPES, rng), _one(tuple(COLOURS), rng), int(rng.integers(2, 5))
    cells = rng.permutation(9)[:count]
    plural = f"{shape}es" if shape == "cross" else f"{shape}s"
    return Scene(f"{NUMBERS[count - 1]} {colour} {plural}",
                 (("what colour is it", colour), ("what shape is it", shape),
                  ("how many are there", NUMBERS[count - 1])),
                 tuple(Thing(shape, colour, int(cell)) for cell in cells))


def pair(rng: np.random.Generator) -> Scene:
    """Two things, one to the left of or above the other."""
    shapes = [str(s) for s in rng.choice(SHAPES, 2, replace=False)]
    colours = [_one(tuple(COLOURS), rng) for _ in range(2)]
    row, column = (int(n) for n in rng.integers(3, size=2))
    cells, relation = ((3 * row, 3 * row + 2), "left of") if rng.random() < 0.5 else \
        ((column, 6 + column), "above")
    first, second = (Thing(shape, colour, cell) for shape, colour, cell in zip(
        shapes, colours, cells, strict=True))
    return Scene(f"a {first.colour} {first.shape} {relation} a {second.colour} {second.shape}",
                 tuple((f"what colour is the {t.shape}", t.colour) for t in (first, second)),
                 (first, second))


SCENES: tuple[Callable[[np.random.Generator], Scene], ...] = (single, several, pair)


def printed(word: str) -> Scene:
    """A word on paper."""
    return Scene(word, (), (), word)


def draw(scene: Scene, rng: np.random.Generator) -> bytes:
    """The scene as a PNG of ``SIDE x SIDE`` pixels; size, tilt, paper and font are drawn."""
    paper = draw_paper(rng)
    picture = Image.new("RGB", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        _shape(pen, thing, rng)
    if scene.word:
        _word(pen, scene.word, rng)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def draw_paper(rng: np.random.Generator) -> tuple[int, ...]:
    """A light background."""
    return tuple(int(v) for v in rng.integers(*_PAPER, 3))


def draw_colour(name: str, rng: np.random.Generator) -> tuple[int, ...]:
    """A shade of a colour."""
    return tuple(int(np.clip(v + rng.integers(-12, 13), 0, 255)) for v in COLOURS[name])


def draw_tilt(shape: str, rng: np.random.Generator) -> float:
    """Where the first corner lies, in radians: a little beside upright; 0 for a circle."""
    if shape == "circle":
        return 0.0
    return rng.uniform(-0.12, 0.12) + (math.pi / 4 if _CORNERS[shape] == 4 else 0) - math.pi / 2


def _shape(pen: ImageDraw.ImageDraw, thing: Thing, rng: np.random.Generator) -> None:
    radius = rng.uniform(0.34, 0.46) * _CELL
    x = (thing.cell % 3 + 0.5) * _CELL + rng.uniform(-1.5, 1.5)
    y = (thing.cell // 3 + 0.5) * _CELL + rng.uniform(-1.5, 1.5)
    colour = draw_colour(thing.colour, rng)
    paint(pen, thing.shape, colour, (x, y), radius, draw_tilt(thing.shape, rng))


def paint(pen: ImageDraw.ImageDraw, shape: str, colour: tuple[int, ...],
          middle: tuple[float, float], radius: float, tilt: float) -> None:
    """One of :data:`SHAPES` at a place."""
    x, y = middle
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    corners = _CORNERS[shape]
    radii = [radius * (0.42 if shape == "star" and i % 2 else 1.1) for i in range(corners)]
    points = [(x + r * math.cos(tilt + 2 * math.pi * i / corners),
               y + r * math.sin(tilt + 2 * math.pi * i / corners)) for i, r in enumerate(radii)]
    if shape == "cross":
        for a, b in ((0, 2), (1, 3)):
            pen.line((*points[a], *points[b]), fill=colour, width=4)
        return
    pen.polygon(points, fill=colour)


def _word(pen: ImageDraw.ImageDraw, word: str, rng: np.random.Generator) -> None:
    """As large as it fits, within a drawn limit."""
    name, size = _one(FONTS, rng), int(rng.integers(15, 21))
    while (font := _font(name, size)).getlength(word) > SIDE - 4 and size > 9:
        size -= 1
    left, top, right, bottom = font.getbbox(word)
    x = rng.uniform(0, max(1.0, SIDE - (right - left) - 4)) + 2 - left
    y = rng.uniform(2, SIDE - (bottom - top) - 2) - top
    pen.text((x, y), word, font=font, fill=COLOURS[_one(("red", "green", "blue", "black"), rng)])


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _one(items: tuple[str, ...], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]
