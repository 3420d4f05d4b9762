"""Little films with captions and questions: a shape that moves one way, frame by frame."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_prep import pictures

FRAMES_PER_SECOND = 4
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_FRAMES = (6, 10)  # in a film, fewest and most
_EDGE = 14  # pixels between a shape's middle and the picture's edge, at least
_RADIUS = (8, 12)


@dataclass(frozen=True)
class Motion:
    """What is shown."""

    shape: str
    colour: str
    direction: str

    @property
    def caption(self) -> str:
        """``a red circle moves left``."""
        return f"a {self.colour} {self.shape} moves {self.direction}"

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """(question, answer) pairs about it."""
        return (("which way does it move", self.direction), ("what colour is it", self.colour),
                ("what shape is it", self.shape))


def motion(rng: np.random.Generator) -> Motion:
    """Any shape of any colour, any way."""
    return Motion(*(str(rng.choice(list(kinds))) for kinds in (
        pictures.SHAPES, pictures.COLOURS, DIRECTIONS)))


def draw(shown: Motion, rng: np.random.Generator) -> tuple[list[bytes], list[float]]:
    """Its frames as PNGs of ``pictures.SIDE`` pixels a side, and the time of each in seconds; where
    it begins, how far it goes, its size and the paper are drawn."""
    count = int(rng.integers(_FRAMES[0], _FRAMES[1] + 1))
    place, way = rng.uniform(_EDGE, pictures.SIDE - _EDGE, 2), np.array(DIRECTIONS[shown.direction])
    low, high = _EDGE + rng.uniform(0, 6), pictures.SIDE - _EDGE - rng.uniform(0, 6)
    along = np.linspace(low, high, count)
    paper, colour = pictures.draw_paper(rng), pictures.draw_colour(shown.colour, rng)
    radius, tilt = rng.uniform(*_RADIUS), pictures.draw_tilt(shown.shape, rng)
    frames = []
    for forth, back in zip(along, along[::-1], strict=True):
        x, y = np.where(way == 0, place, forth if way.sum() > 0 else back)
        picture = Image.new("RGB", (pictures.SIDE, pictures.SIDE), paper)
        pictures.paint(ImageDraw.Draw(picture), shown.shape, colour, (x, y), radius, tilt)
        file = io.BytesIO()
        picture.save(file, "PNG")
        frames.append(file.getvalue())
    return frames, [number / FRAMES_PER_SECOND for number in range(count)]
