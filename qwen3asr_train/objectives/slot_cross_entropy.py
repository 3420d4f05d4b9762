"""Cross-entropy of time classes, with labels that may be smoothed over their neighbours."""

import math

import torch
from torch import Tensor

_REACH = 3.0
"""Standard deviations up to which a smoothed label reaches."""


def slot_cross_entropy(logits: Tensor, labels: Tensor, smoothing_width: float = 0.0,
                       outlier_likelihood: float = 0.0) -> Tensor:
    """Summed over slots, a float32 scalar.

    ``logits`` ``(slots, classes)``, ``labels`` ``(slots,)`` of class ids. With ``smoothing_width``
    above 0 the target is a Gaussian around the label of that standard deviation in classes, cut at
    three of them and at the first and last class, and summing to 1: neighbouring classes are
    neighbouring times, and a teacher's times are only about right.

    ``outlier_likelihood`` is that of any class when the teacher is wrong altogether: with it a
    slot's loss is ``-log((p + o) / (1 + o))`` in place of ``-log p``, whose gradient goes away
    where ``p`` is far below ``o``, so that a label far from where the model hears the word no
    longer pulls (a mixture with a broad error, as in robust regression: Lange, Little and Taylor
    1989).
    """
    log_probs = logits.float().log_softmax(1)
    if not smoothing_width:
        places, weights = labels[:, None], torch.ones_like(labels, dtype=torch.float)[:, None]
    else:
        reach = math.ceil(_REACH * smoothing_width)
        offsets = torch.arange(-reach, reach + 1, device=logits.device)
        places = labels[:, None] + offsets  # (slots, 2 * reach + 1)
        weights = torch.exp(-0.5 * (offsets / smoothing_width) ** 2).expand(places.shape)
        weights = weights * ((places >= 0) & (places < logits.shape[1]))
        weights = weights / weights.sum(1, keepdim=True)
    found = log_probs.gather(1, places.clamp(0, logits.shape[1] - 1))
    if outlier_likelihood:
        floor = found.new_tensor(outlier_likelihood)
        found = torch.logaddexp(found, floor.log()) - floor.log1p()
    return -(weights * found).sum()
