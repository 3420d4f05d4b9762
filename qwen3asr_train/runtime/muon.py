"""Muon for the matrices of repeated layers, AdamW for all else, as one optimiser.

Muon (Jordan et al. 2024, in torch) orthogonalises the momentum of a matrix; embeddings, heads,
convolutions, norms and biases are AdamW's, as its authors advise.
"""

import re

import torch
from torch import Tensor

_LAYER_MATRIX = re.compile(r"\.(layers|blocks)\.\d+\..*weight$")


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix inside one of a stack of layers."""
    return parameter.ndim == 2 and _LAYER_MATRIX.search(name) is not None


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
            part = (torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw") if muon else
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
