"""GSPO and its relatives: clipped policy-gradient losses of groups of sampled answers.

Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071) weighs a whole answer by
the ratio ``s = exp(mean_t [log pi(y_t) - log pi_old(y_t)])`` and clips that; GRPO (Shao et al.
2024) weighs and clips token by token; GSPO-token has GSPO's value with advantages per token. The
formulas of the first two and of the KL term are those of TRL's ``GRPOTrainer``
(``importance_sampling_level``, ``loss_type``), against which they are tested.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3asr_train.errors import UserError

LEVELS = ("sequence", "token", "sequence_token")
AVERAGES = ("sequence", "token", "length")
SCALES = ("group", "none")


@dataclass(frozen=True)
class Objective:
    """Which loss; the defaults are GSPO's of the paper.

    ``level``: what is weighed and clipped: the ``sequence`` (GSPO), each ``token`` (GRPO), or
    ``sequence_token`` (GSPO-token). ``clip_low``, ``clip_high``: the ratio's least and greatest
    are ``1 - clip_low`` and ``1 + clip_high``. ``average``: the mean of the sequences' means
    (``sequence``; GSPO, GRPO), the mean of all ``token`` (DAPO), or the sum of the tokens over
    ``max_tokens`` times the sequences (``length``; Dr. GRPO). ``scale``: advantages over the
    standard deviation of the ``group``, or as they are (``none``; Dr. GRPO). ``kl``: weight of the
    divergence from the reference model. ``cross_entropy``: weight of the references' cross-entropy
    beside it, as in minimum word error rate training (Prabhavalkar et al. 2018, arXiv 1712.01818).
    """

    level: str = "sequence"
    clip_low: float = 3e-4
    clip_high: float = 4e-4
    average: str = "sequence"
    scale: str = "group"
    kl: float = 0.0
    cross_entropy: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("level", self.level, LEVELS), ("scale", self.scale, SCALES),
                                   ("average", self.average, AVERAGES)):
            if value not in known:
                raise UserError(f"stage.objective.{name}={value!r}: {' or '.join(known)}")
        reach, weight = "how far the ratio may be from 1", "a weight, 0 for none"
        for name, value, meaning in (
                ("clip_low", self.clip_low, reach), ("clip_high", self.clip_high, reach),
                ("kl", self.kl, weight), ("cross_entropy", self.cross_entropy, weight)):
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UserError(f"stage.objective.{name}={value}: {meaning}")


class PolicyLoss(NamedTuple):
    """``total``: the loss summed, to be divided by the step's :func:`normaliser`. For logging, per
    sequence ``(sequences,)`` and detached: ``ratio`` (length-normalised), ``clipped`` (share of
    what is weighed that the clipping cut off), ``kl`` (mean over tokens, 0 without a reference)."""

    total: Tensor
    ratio: Tensor
    clipped: Tensor
    kl: Tensor


def policy_loss(objective: Objective, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor,
                mask: Tensor, reference: Tensor | None = None, max_tokens: int = 1) -> PolicyLoss:
    """The loss of some sampled answers.

    ``log_probs``, ``old_log_probs``, ``reference`` ``(sequences, longest)``: of each token under
    the model, under the policy that sampled it, and under the reference model. ``mask`` of the same
    shape: 1 at tokens. ``advantages`` ``(sequences,)``.
    """
    mask = mask.to(log_probs.dtype)
    lengths = mask.sum(-1).clamp(min=1)
    log_ratio = (log_probs - old_log_probs) * mask
    mean_log_ratio = log_ratio.sum(-1) / lengths
    if objective.level == "token":
        weight = log_ratio.exp()
    elif objective.level == "sequence":
        weight = mean_log_ratio.exp()[:, None]
    else:  # the sequence's value, the token's gradient
        weight = mean_log_ratio.detach().exp()[:, None] * (log_probs - log_probs.detach()).exp()
    advantage = advantages[:, None]
    clipped = weight.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    plain = weight * advantage
    loss = -torch.min(plain, clipped * advantage)
    cut = ((plain > clipped * advantage).to(mask.dtype) * mask).sum(-1) / lengths
    divergence = torch.zeros_like(log_ratio)
    if reference is not None:
        gap = (reference - log_probs) * mask
        divergence = gap.exp() - gap - 1  # Schulman's unbiased, non-negative estimate
        loss = loss + objective.kl * divergence
    per_sequence = (loss * mask).sum(-1) / _divisor(objective, lengths, max_tokens)
    return PolicyLoss(per_sequence.sum(), mean_log_ratio.detach().exp(), cut,
                      (divergence.detach() * mask).sum(-1) / lengths)


def _divisor(objective: Objective, lengths: Tensor | int, max_tokens: int) -> Tensor | int:
    """What the summed loss of a sequence of this length is divided by before all are summed."""
    return {"sequence": lengths, "token": 1, "length": max_tokens}[objective.average]


def normaliser(objective: Objective, lengths: list[int]) -> int:
    """What the summed loss of sequences of these ``lengths`` is divided by."""
    return sum(lengths) if objective.average == "token" else len(lengths)


def reference_weight(objective: Objective, reference: int, answers: list[int],
                     max_tokens: int = 1) -> float:
    """Of each token of a reference, in the summed cross-entropy, from its length and the lengths of
    its ``answers``: the mean over the reference's tokens weighs as much as in :func:`policy_loss`
    all tokens of all these answers do."""
    return sum(length / _divisor(objective, length, max_tokens) for length in answers) / reference


def group_advantages(rewards: Tensor, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """Rewards ``(groups, samples)`` less their group's mean, over its standard deviation.

    As TRL has it: the deviation with Bessel's correction, and ``eps`` beside it.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    return centred / (rewards.std(1, keepdim=True) + eps)
