"""Time-aligned positions (TM-RoPE) of sequences that mix text, audio, pictures and film.

Every token has a temporal, a height and a width id (Qwen3-Omni report, section 2.2). Text and audio
have all three equal, and audio goes one on with each token, that is every 80 ms. A picture has one
temporal id, and its rows and columns; a film's frames have temporal ids by their time at 80 ms, and
its sound lies between them in order of time. What follows begins one after the greatest id before.
The numbers are those of transformers' ``get_rope_index`` of Qwen3-Omni.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

IDS_PER_SECOND = 12.5
"""Temporal ids in a second."""


class Text(NamedTuple):
    """``length`` tokens of text, the markers around other parts among them."""

    length: int


class Audio(NamedTuple):
    """``length`` tokens of audio."""

    length: int


class Vision(NamedTuple):
    """A picture or film of ``rows * columns`` merged tokens a frame (pair of frames), shown at
    ``times`` in seconds from its begin; one time for a picture."""

    rows: int
    columns: int
    times: tuple[float, ...] = (0.0,)

    @property
    def tokens(self) -> int:
        """How many it is."""
        return self.rows * self.columns * len(self.times)


class Film(NamedTuple):
    """A film with its sound of ``audio`` tokens."""

    vision: Vision
    audio: int


Part = Text | Audio | Vision | Film


def position_ids(parts: Sequence[Part], ids_per_second: float = IDS_PER_SECOND) -> Tensor:
    """Ids ``(4, length)``, float32: the place in the sequence, temporal, height and width."""
    pieces: list[Tensor] = [torch.zeros(3, 0)]
    for part in parts:
        # of a film with sound only the rest of the longer one counts, as in transformers
        start = float(pieces[-1].max()) + 1 if pieces[-1].numel() else 0.0
        pieces += [ids + start for ids in _ids(part, ids_per_second) if ids.numel()]
    axes = torch.cat(pieces, 1)
    return torch.cat([torch.arange(axes.shape[1], dtype=torch.float32)[None], axes])


def sound_places(film: Film, ids_per_second: float = IDS_PER_SECOND) -> Tensor:
    """True ``(length,)`` where a film's token is sound: a frame comes before the sound of its
    time."""
    frame = film.vision.rows * film.vision.columns
    seen = torch.tensor(film.vision.times).repeat_interleave(frame) * ids_per_second
    order = torch.cat([seen, torch.arange(film.audio, dtype=torch.float32)])
    is_sound = torch.arange(len(order)) >= len(seen)
    return is_sound[torch.argsort(order, stable=True)]


def _ids(part: Part, per_second: float) -> Iterator[Tensor]:
    """Pieces ``(3, n)`` that begin at 0; the last of them is what the next part follows."""
    if isinstance(part, Text | Audio):
        yield torch.arange(part.length, dtype=torch.float32).expand(3, -1)
    elif isinstance(part, Vision):
        yield _seen(part, per_second)
    else:
        seen = _seen(part.vision, per_second)
        heard = torch.arange(part.audio, dtype=torch.float32).expand(3, -1)
        is_sound = sound_places(part, per_second)
        both = torch.empty(3, len(is_sound))
        both[:, is_sound], both[:, ~is_sound] = heard, seen
        last = int((is_sound != is_sound[-1]).nonzero().max()) + 1 if len(is_sound.unique()) > 1 \
            else 0
        yield from (both[:, a:b] for a, b in pairwise((0, last, both.shape[1])))


def _seen(vision: Vision, per_second: float) -> Tensor:
    grid = torch.meshgrid(torch.tensor(vision.times) * per_second,
                          torch.arange(vision.rows, dtype=torch.float32),
                          torch.arange(vision.columns, dtype=torch.float32), indexing="ij")
    return torch.stack(grid).flatten(1)
