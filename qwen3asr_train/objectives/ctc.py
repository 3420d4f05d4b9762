"""Connectionist temporal classification over packed clips."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def packed_ctc(logits: Tensor, lengths: Tensor, targets: list[Tensor], blank: int) -> Tensor:
    """CTC loss (Graves et al. 2006) summed over clips, a float32 scalar.

    ``logits`` ``(tokens, classes)`` of all clips one after the other, ``lengths`` ``(clips,)`` how
    many each has, ``targets`` one id tensor a clip. A clip whose target does not fit into its
    length counts nothing.
    """
    log_probs = pad_sequence(torch.split(logits.float().log_softmax(-1), lengths.tolist()))
    sizes = torch.tensor([len(target) for target in targets], device=logits.device)
    return F.ctc_loss(log_probs, torch.cat(targets), lengths, sizes, blank=blank, reduction="sum",
                      zero_infinity=True)
