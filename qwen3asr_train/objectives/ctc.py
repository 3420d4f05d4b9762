"""Connectionist temporal classification over packed clips."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_ROWS = 1024
"""Rows of logits that exist in float32 at one time."""


def transcripts(labels: Tensor, marker: int, end: int) -> list[Tensor | None]:
    """The ids of what is said in each clip: targets between ``marker`` and ``end``.

    ``labels`` ``(clips, length)``, -100 where there is no target. None for a clip whose target has
    no marker: it is no transcript, or only the end of one.
    """
    is_marker = labels == marker
    is_text = (is_marker.cumsum(1) - is_marker.long() > 0) & (labels != -100) & (labels != end)
    return [row[mask] if found else None for row, mask, found in zip(
        labels, is_text, is_marker.any(1).tolist(), strict=True)]


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

    Of all classes only a clip's own (its target's and the blank) are padded to the longest clip and
    given to torch's CTC, with one more for the rest; logits and their gradient are the only tensors
    of all classes.
    """
    device = logits.device
    empty = torch.empty(0, dtype=torch.long, device=device)
    filled = [empty if target is None else target for target in targets]
    sizes = torch.tensor([len(target) for target in filled], device=device)
    counts = torch.tensor([target is not None for target in targets], device=device)
    ids = F.pad(pad_sequence(filled, batch_first=True, padding_value=blank), (1, 0), value=blank)
    return _PackedCTC.apply(logits, lengths, ids, sizes, counts)


class _PackedCTC(torch.autograd.Function):
    """Value and gradient of :func:`packed_ctc`; ``ids`` ``(clips, 1 + longest target)`` are the
    blank and the targets, padded with blanks."""

    @staticmethod
    def forward(ctx, logits: Tensor, lengths: Tensor, ids: Tensor, sizes: Tensor, counts: Tensor
                ) -> Tensor:
        clips, columns = ids.shape
        clip = torch.repeat_interleave(torch.arange(clips, device=ids.device), lengths,
                                       output_size=int(lengths.sum()))
        step = torch.arange(len(clip), device=ids.device) - (lengths.cumsum(0) - lengths)[clip]
        # an id that comes again is the class that it was first
        local = (ids[:, :, None] == ids[:, None]).int().argmax(-1)
        repeated = local != torch.arange(columns, device=ids.device)
        normaliser = torch.cat([part.float().logsumexp(-1) for part in logits.split(_ROWS)])
        own = logits.gather(1, ids[clip]).float() - normaliser[:, None]
        # not -inf, of which torch's gradient is not a number
        own = own.masked_fill(repeated[clip], torch.finfo(own.dtype).min / 2)
        rest = (1 - own.exp().sum(1, keepdim=True)).clamp(min=torch.finfo(own.dtype).tiny).log()
        log_probs = own.new_zeros(max(1, int(lengths.max())), clips, columns + 1)
        log_probs[step, clip] = torch.cat([own, rest], 1)
        with torch.enable_grad():
            leaf = log_probs.requires_grad_()
            losses = F.ctc_loss(leaf.log_softmax(-1), local[:, 1:], lengths, sizes, blank=0,
                                reduction="none", zero_infinity=True)
            value = losses[counts].sum()
            gradient, = torch.autograd.grad(value, leaf)
        # with respect to a logit, the gradient is its probability less how often it is visited
        visited = log_probs.detach().softmax(-1) - gradient
        blanks = ((local[:, 2:] == local[:, 1:-1]) & (local[:, 2:] > 0)).sum(1)
        is_scored = (counts & (sizes + blanks <= lengths))[clip]
        ctx.save_for_backward(logits, normaliser, ids[clip],
                              visited[step, clip, :columns] * is_scored[:, None], is_scored)
        return value.detach()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, normaliser, ids, visited, is_scored = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        scale = (upstream * is_scored)[:, None]
        for rows, own, part, whole in zip(*(tensor.split(_ROWS) for tensor in (
                gradient, logits, scale, normaliser)), strict=True):
            rows.copy_((own.float() - whole[:, None]).exp_().mul_(part))
        gradient.scatter_add_(1, ids, (-upstream * visited).to(gradient.dtype))
        return gradient, None, None, None, None
