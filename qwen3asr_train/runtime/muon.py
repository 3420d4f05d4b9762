"""Muon for the matrices of repeated layers, AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024, in torch) orthogonalises the momentum of a matrix; embeddings, heads,
convolutions, norms and biases are AdamW's, as its authors advise.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_LAYER_MATRIX = re.compile(r"\.(layers|blocks)\.\d+\..*weight$")


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix inside one of a stack of layers."""
    return parameter.ndim == 2 and _LAYER_MATRIX.search(name) is not None


def orthogonalised(matrices: Sequence[Tensor], coefficients: tuple[float, float, float],
                   steps: int, eps: float) -> list[Tensor]:
    """Matrices with nearly equal singular values in place of their own, by ``steps`` of a
    Newton-Schulz iteration, x -> ax + bx^3 + cx^5 for each singular value x.

    torch's ``Muon`` iterates in bfloat16, one matrix after the other; a CPU without bfloat16
    instructions takes ten times as long for that as for the same in float32. Here matrices of one
    shape, or of its transpose, are one batch; in bfloat16 on an accelerator.
    """
    a, b, c = coefficients
    batches: dict[tuple, list[int]] = {}
    for place, matrix in enumerate(matrices):
        batches.setdefault((*sorted(matrix.shape), matrix.device), []).append(place)
    found: list[Tensor] = list(matrices)
    for places in batches.values():
        tall = [matrices[place].size(0) > matrices[place].size(1) for place in places]
        x = torch.stack([matrices[place].T if turned else matrices[place]
                         for place, turned in zip(places, tall, strict=True)])
        x = x.float() if x.device.type == "cpu" else x.bfloat16()
        x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value above 1
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for place, turned, value in zip(places, tall, x, strict=True):
            found[place] = value.T if turned else value
    return found


class _Muon(torch.optim.Muon):
    """torch's, with :func:`orthogonalised`."""

    @torch.no_grad()
    def step(self) -> None:
        """One step of the matrices that have a gradient."""
        for group in self.param_groups:
            parameters, gradients, momenta = [], [], []
            self._init_group(group, parameters, gradients, momenta)
            if not parameters:
                continue
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) \
                if group["nesterov"] else momenta
            updates = orthogonalised(updates, group["ns_coefficients"], group["ns_steps"],
                                     group["eps"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                # as large as AdamW's would be (Liu et al. 2025)
                parameter.add_(update, alpha=-0.2 * group["lr"] * max(parameter.shape) ** 0.5)


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps the groups with ``muon=True`` by Muon and the others by AdamW.

    Updates of a matrix are as large as AdamW's would be (Liu et al. 2025), so that both live on
    learning rates of one order. State by parameter: ``momentum_buffer``, or AdamW's.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        self._betas = betas
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "muon": False})
        self._link()

    def _link(self) -> None:
        """Both parts over this optimiser's own groups and state."""
        ours = self.param_groups
        parts = []
        for muon in (True, False):
            groups = [group for group in ours if group["muon"] is muon]
            if not groups:
                continue
            part = (_Muon(groups) if muon else
                    torch.optim.AdamW(groups, betas=self._betas, fused=True))
            part.param_groups, part.state = groups, self.state
            parts.append(part)
        self._parts = parts

    def load_state_dict(self, state_dict: dict) -> None:
        """torch makes new groups and a new state of it."""
        super().load_state_dict(state_dict)
        self._link()

    @torch.no_grad()
    def step(self, closure=None):
        """One step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
