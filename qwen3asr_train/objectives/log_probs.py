"""Log-probabilities of given tokens under a large vocabulary, without keeping its logits.

Unlike in :mod:`.cross_entropy` the gradient of each is not known in the forward pass, so a chunk's
logits are computed again in the backward pass.
"""

import torch
from torch import Tensor


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int,
                temperatures: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        log_probs, entropy, norms = (hidden.new_empty(len(targets), dtype=dtype) for _ in range(3))
        for start in range(0, len(targets), chunk_size):
            place = slice(start, start + chunk_size)
            logits = (hidden[place] @ weight.T).to(dtype) / temperatures[place, None]
            norms[place] = logits.logsumexp(-1)
            log_probs[place] = logits.gather(1, targets[place, None])[:, 0] - norms[place]
            log_all = logits - norms[place, None]
            entropy[place] = -(log_all.exp() * log_all).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, norms, temperatures)
        ctx.chunk_size = chunk_size
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx, grad_log_probs: Tensor, _):
        hidden, weight, targets, norms, temperatures = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=norms.dtype) if need_weight else None
        for start in range(0, len(targets), ctx.chunk_size):
            place = slice(start, start + ctx.chunk_size)
            part = hidden[place]
            logits = (part @ weight.T).to(norms.dtype) / temperatures[place, None]
            grad = -logits.sub_(norms[place, None]).exp_()
            grad.scatter_add_(1, targets[place, None], torch.ones_like(grad[:, :1]))
            grad *= (grad_log_probs[place] / temperatures[place])[:, None]
            grad = grad.to(part.dtype)
            if need_hidden:
                torch.mm(grad, weight, out=grad_hidden[place])
            if need_weight:
                grad_weight += (grad.T @ part).to(grad_weight.dtype)
        return (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None,
                None, None)


def chunked_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int = 256,
                      temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """``log softmax(hidden @ weight.T / temperature)[target]`` and the distributions' entropies.

    ``hidden`` ``(positions, d)``, ``weight`` ``(vocabulary, d)``, ``targets`` ``(positions,)``;
    ``temperature`` of all, or of each ``(positions,)``. Both results are float32 ``(positions,)``;
    the first is differentiable once, in ``hidden`` and ``weight``, and the entropy (in nats) is for
    logging.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    temperatures = torch.as_tensor(
        temperature, dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    return _ChunkedLogProbs.apply(hidden, weight, targets, chunk_size,
                                  temperatures.expand(len(targets)))
