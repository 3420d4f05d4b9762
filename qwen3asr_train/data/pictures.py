"""Files of pictures and of films' frames to patches, as Qwen3-VL's vision tower takes them."""

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import ExifTags, Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from qwen3asr_train.errors import DataError

LARGEST_PIXELS = 64_000_000
"""Of a file; a small file can claim any size."""

_LYING = 5  # EXIF orientations from here on swap width and height


@dataclass(frozen=True)
class PictureFormat:
    """How a picture is cut: ``patch`` pixels a side, ``merge`` x ``merge`` patches to a token,
    ``frames`` in a patch (a picture is shown so often), and how many tokens it becomes;
    ``film_tokens``: at most, so many frames of a film together."""

    patch: int = 16
    merge: int = 2
    frames: int = 2
    least_tokens: int = 4
    most_tokens: int = 1024
    film_tokens: int = 256

    @cached_property
    def film(self) -> "PictureFormat":
        """That of a film's frames."""
        return replace(self, most_tokens=self.film_tokens)

    @property
    def side(self) -> int:
        """Pixels a side of one token."""
        return self.patch * self.merge

    def grid(self, width: int, height: int, name: str) -> tuple[int, int]:
        """Rows and columns of tokens of a picture; DataError for one that is too narrow."""
        try:
            rows, columns = smart_resize(height, width, factor=self.side,
                                         min_pixels=self.least_tokens * self.side ** 2,
                                         max_pixels=self.most_tokens * self.side ** 2)
        except ValueError as error:
            raise DataError(f"{name}: {error}") from error
        return rows // self.side, columns // self.side

    @cached_property
    def _processor(self) -> Qwen2VLImageProcessorPil:
        return Qwen2VLImageProcessorPil(
            patch_size=self.patch, merge_size=self.merge, temporal_patch_size=self.frames,
            min_pixels=self.least_tokens * self.side ** 2, image_mean=[0.5] * 3,
            image_std=[0.5] * 3, max_pixels=self.most_tokens * self.side ** 2)

    def patches(self, picture: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
        """``(patches, 3 * frames * patch * patch)`` in -1 … 1, the patches of a token together;
        and its rows and columns of tokens."""
        made = self._processor(picture, return_tensors="pt")
        _, rows, columns = made["image_grid_thw"][0].tolist()
        return made["pixel_values"].float(), (rows // self.merge, columns // self.merge)


    def film_patches(self, shown: Sequence[Image.Image]) -> tuple[torch.Tensor, tuple[int, int]]:
        """:meth:`patches` of a film's frames, all of one size: of the first ``frames`` of them,
        then of the next; the last stands still to the end of its patches."""
        made = [self.film.patches(frame) for frame in shown]
        # a frame by itself is shown throughout its patch: one showing of it is enough
        single = [patches.view(len(patches), 3, self.frames, -1)[:, :, 0] for patches, _ in made]
        single += single[-1:] * (-len(single) % self.frames)
        steps = [torch.stack(single[i:i + self.frames], 2).flatten(1)
                 for i in range(0, len(single), self.frames)]
        return torch.cat(steps), made[0][1]


def size_of(payload: bytes, name: str) -> tuple[int, int]:
    """Width and height as the file's header has them, upright; DataError for what is no picture."""
    with _opened(payload, name) as picture:
        return picture.size[::-1] if _orientation(picture) >= _LYING else picture.size


def decode(payload: bytes, name: str) -> Image.Image:
    """A file's picture, upright, in RGB, on white where it is transparent; DataError for one that
    is damaged or cut short, and for more than 8 bits a channel."""
    with _opened(payload, name) as picture:
        if picture.mode.startswith(("I", "F")):
            raise DataError(f"{name}: a picture of more than 8 bits a channel ({picture.mode})")
        try:
            if _orientation(picture) > 1:
                picture = ImageOps.exif_transpose(picture)
            if not picture.has_transparency_data:
                return picture.convert("RGB")
            white = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{name}: a picture that does not decode ({error})") from error


def _orientation(picture: Image.Image) -> int:
    """As a camera notes it; 1 is upright. Not of a PNG, which would be decoded for it."""
    if picture.format == "PNG":
        return 1
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation) or 1)
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):
        return 1  # notes that cannot be read say nothing


def _opened(payload: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(payload), formats=("JPEG", "PNG", "WEBP"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: no picture that can be read (jpg, png, webp)") from error
    if picture.width * picture.height > LARGEST_PIXELS:
        raise DataError(f"{name}: a picture of {picture.width} x {picture.height} pixels")
    return picture
