"""Cross-entropy against a large vocabulary without keeping its logits.

The forward pass goes through the target positions in chunks and computes each chunk's gradient at
once, so that no more than ``chunk_size * vocabulary`` logits exist at any time. The idea is Liger
Kernel's ``LigerFusedLinearCrossEntropyFunction`` (linkedin/Liger-Kernel).
"""

import torch
from torch import Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int,
                smoothing: float) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # summed in float32 over chunks: bf16 would lose the small terms
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(
            weight.dtype, torch.float32)) if need_weight else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(targets), chunk_size):
            part = hidden[start:start + chunk_size]
            target = targets[start:start + chunk_size, None]
            logits = (part @ weight.T).to(total.dtype)
            log_norm = logits.logsumexp(-1, keepdim=True)
            total += (log_norm - (1 - smoothing) * logits.gather(1, target)).sum()
            if smoothing:
                total -= smoothing * logits.mean(1).sum()
            if not (need_hidden or need_weight):
                continue
            grad = logits.sub_(log_norm).exp_()
            if smoothing:
                grad -= smoothing / grad.shape[1]
            grad.scatter_add_(1, target, torch.full_like(target, smoothing - 1, dtype=grad.dtype))
            grad = grad.to(part.dtype)
            if need_hidden:
                torch.mm(grad, weight, out=grad_hidden[start:start + chunk_size])
            if need_weight:
                if grad_weight.dtype == part.dtype:
                    grad_weight.addmm_(grad.T, part)
                else:
                    grad_weight += (grad.T @ part).to(grad_weight.dtype)
        ctx.save_for_backward(grad_hidden,
                              grad_weight.to(weight.dtype) if need_weight else None)
        return total

    @staticmethod
    def backward(ctx, grad_total: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return (None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
                None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
                None, None, None)


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor,
                          chunk_size: int = 256, label_smoothing: float = 0.0) -> Tensor:
    """Sum over positions of ``-log softmax(hidden @ weight.T)[target]``, a float32 scalar.

    With ``label_smoothing`` that share of the target is spread evenly over all classes (Szegedy et
    al. 2016), as in ``torch.nn.functional.cross_entropy``.

    ``hidden`` ``(positions, d)``, ``weight`` ``(vocabulary, d)``, ``targets`` ``(positions,)`` of
    class ids. Differentiable once, in ``hidden`` and ``weight``.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk_size, label_smoothing)
