"""Cross-entropy of time classes, with labels that may be smoothed over their neighbours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_REACH = 3.0
"""Standard deviations up to which a smoothed label reaches."""


def slot_cross_entropy(logits: Tensor, labels: Tensor, smoothing_width: float = 0.0) -> Tensor:
    """Summed over slots, a float32 scalar.

    ``logits`` ``(slots, classes)``, ``labels`` ``(slots,)`` of class ids. With ``smoothing_width``
    above 0 the target is a Gaussian around the label of that standard deviation in classes, cut at
    three of them and at the first and last class, and summing to 1: neighbouring classes are
    neighbouring times, and a teacher's times are only about right.
    """
    logits = logits.float()
    if not smoothing_width:
        return F.cross_entropy(logits, labels, reduction="sum")
    reach = math.ceil(_REACH * smoothing_width)
    offsets = torch.arange(-reach, reach + 1, device=logits.device)
    places = labels[:, None] + offsets  # (slots, 2 * reach + 1)
    weights = torch.exp(-0.5 * (offsets / smoothing_width) ** 2).expand(places.shape)
    weights = weights * ((places >= 0) & (places < logits.shape[1]))
    weights = weights / weights.sum(1, keepdim=True)
    found = logits.log_softmax(1).gather(1, places.clamp(0, logits.shape[1] - 1))
    return -(weights * found).sum()
