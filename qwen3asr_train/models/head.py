"""The language-model head that computes the loss of its targets and keeps no logits."""

from torch import Tensor, nn

from qwen3asr_train.objectives.cross_entropy import chunked_cross_entropy
from qwen3asr_train.objectives.log_probs import chunked_log_probs
from qwen3asr_train.objectives.sampling import chunked_draw


class TargetHead(nn.Linear):
    """A linear head; given targets it returns their summed loss, or their log-probabilities, and
    given random numbers it returns drawn tokens.

    These are computed inside the head's ``forward`` so that ZeRO-3 gathers its weight as for any
    other module.
    """

    chunk_size = 256  # target positions whose logits exist at one time
    label_smoothing = 0.0  # while training

    def forward(self, hidden: Tensor, targets: Tensor | None = None,
                temperature: float | Tensor | None = None, uniforms: Tensor | None = None
                ) -> Tensor | tuple[Tensor, Tensor]:
        """``(…, d)`` -> logits ``(…, vocabulary)``, or with ``targets`` ``(n,)`` a scalar sum; with
        ``temperature`` too, log-probabilities and entropies ``(n,)``; with ``uniforms`` ``(n,)`` in
        [0, 1) the tokens ``(n,)`` that these choose."""
        if uniforms is not None:
            return chunked_draw(hidden, self.weight, uniforms, self.chunk_size)
        if targets is None:
            return super().forward(hidden)
        if temperature is not None:
            return chunked_log_probs(hidden, self.weight, targets, self.chunk_size, temperature)
        return chunked_cross_entropy(hidden, self.weight, targets, self.chunk_size,
                                     self.label_smoothing if self.training else 0.0)
