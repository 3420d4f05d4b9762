"""Other vocal tracts, from the features of a clip: its frequencies moved.

Vocal tract length perturbation (Jaitly and Hinton 2013) multiplies all frequencies with one factor.
Mouths differ in more than their length, so here the factor may differ from formant to formant.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from qwen3asr_train.data.audio import SAMPLE_RATE

NYQUIST = SAMPLE_RATE / 2


def warp_frequencies(features: Tensor, hertz: Sequence[float], factors: Sequence[float]) -> Tensor:
    """``(frames, mel)`` with what was at ``hertz[i]`` now at ``hertz[i] * factors[i]``.

    ``hertz`` ascends, and so do the products. Between them, on logarithmic scales, the factor is in
    between; below the first it is the first's, and at half the sample rate it is 1. The value
    between two mel bins is interpolated.
    """
    centres = _centres(features.shape[1])
    factor = np.exp(np.interp(np.log(centres), np.log([*hertz, NYQUIST]),
                              np.log([*factors, 1.0])))
    source = np.interp(centres, centres * factor, np.arange(len(centres)))
    below = np.minimum(source.astype(np.int64), len(centres) - 2)
    share = torch.from_numpy(source - below).to(features.dtype)
    return torch.lerp(features[:, below], features[:, below + 1], share)


@lru_cache(maxsize=2)
def _centres(bins: int) -> np.ndarray:
    """Hz at the middle of each Slaney mel filter, which the features have."""
    edges = np.linspace(0.0, hertz_to_mel(NYQUIST, mel_scale="slaney"), bins + 2)
    return mel_to_hertz(edges[1:-1], mel_scale="slaney")
