"""Connectionist temporal classification over packed clips."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def transcripts(input_ids: Tensor, labels: Tensor, marker: int, end: int) -> list[Tensor | None]:
    """The ids of what is said in each clip: targets between ``marker`` and ``end``.

    ``input_ids``, ``labels`` ``(clips, length)``, labels -100 where there is no target. None for a
    clip whose target has no marker: it is no transcript, or only the end of one.
    """
    is_marker = labels == marker
    is_text = (is_marker.cumsum(1) - is_marker.long() > 0) & (labels != -100) & (labels != end)
    return [row[mask] if found else None for row, mask, found in zip(
        input_ids, is_text, is_marker.any(1).tolist(), strict=True)]


def unpacked(input_ids: Tensor, labels: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Ids and labels ``(samples, longest)`` of the samples that share rows ``(rows, length)``, of
    ``lengths`` row by row; padded with ids and labels of -100."""
    ids, labels = (pad_sequence(torch.split(rows.flatten(), lengths), batch_first=True,
                                padding_value=-100) for rows in (input_ids, labels))
    return ids, labels


def packed_ctc(logits: Tensor, lengths: Tensor, targets: list[Tensor | None], blank: int) -> Tensor:
    """CTC loss (Graves et al. 2006) summed over clips, a float32 scalar.

    ``logits`` ``(tokens, classes)`` of all clips one after the other, ``lengths`` ``(clips,)`` how
    many each has, ``targets`` one id tensor a clip, or None. A clip without a target, or with one
    that does not fit into its length, counts nothing.
    """
    # what stands behind a clip's end is not looked at; the backward pass of pad_sequence would copy
    # the whole gradient once for each clip
    steps = torch.arange(int(lengths.max()), device=logits.device)[:, None]
    places = lengths.cumsum(0) - lengths + torch.minimum(steps, lengths.clamp(min=1) - 1)
    places = places.clamp(max=len(logits) - 1)
    log_probs = logits.float().log_softmax(-1).index_select(0, places.flatten()).unflatten(
        0, places.shape)
    empty = torch.empty(0, dtype=torch.long, device=logits.device)
    filled = [empty if target is None else target for target in targets]
    sizes = torch.tensor([len(target) for target in filled], device=logits.device)
    losses = F.ctc_loss(log_probs, torch.cat(filled), lengths, sizes, blank=blank,
                        reduction="none", zero_infinity=True)
    counts = torch.tensor([target is not None for target in targets], device=logits.device)
    return losses[counts].sum()
