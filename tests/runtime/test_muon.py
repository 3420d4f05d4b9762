"""The joined optimiser against torch's own two."""

import copy

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from qwen3asr_train.errors import UserError
from qwen3asr_train.runtime.muon import MuonWithAdamW, is_layer_matrix, orthogonalised
from qwen3asr_train.runtime.training import TrainingModule, build_trainer


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return hidden.square().sum()


OPTIONS = {"name": "muon", "muon_lr_scale": 2.0, "lr": 0.01, "betas": [0.9, 0.98],
           "weight_decay": 0.1, "warmup_steps": 0, "schedule": "constant", "final_lr_share": 1.0,
           "decay_share": 0.1}


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return Tower()


def joined(tower):
    module = TrainingModule(tower, OPTIONS, {}, seed=0)
    parameters = dict(module.named_parameters())
    return MuonWithAdamW([{"params": [parameters[name] for name in names]} | own
                          for names, own in module._optimizer_groups()], 0.01, (0.9, 0.98))


def step(optimizer, tower, number):
    tower(torch.arange(number, number + 3)).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_of_layers_and_nothing_else(tower):
    named = dict(TrainingModule(tower, OPTIONS, {}, seed=0).named_parameters())
    assert [name for name, value in named.items() if is_layer_matrix(name, value)] == [
        "model.layers.0.weight", "model.layers.1.weight"]


def test_it_steps_as_torchs_two_optimisers_do(tower, monkeypatch):
    # torch iterates in bfloat16 wherever it runs
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    other = copy.deepcopy(tower)
    ours = joined(tower)
    muon = torch.optim.Muon([layer.weight for layer in other.layers], lr=0.02, weight_decay=0.1,
                            adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([
        {"params": [other.embed.weight], "weight_decay": 0.1},
        {"params": [layer.bias for layer in other.layers], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.98))
    for number in range(4):
        step(ours, tower, number)
        other(torch.arange(number, number + 3)).backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for found, expected in zip(tower.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_singular_values_go_through_the_polynomial_and_vectors_stay():
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(*shape, generator=generator) * scale
                for shape, scale in (((3, 8), 1.0), ((8, 3), 5.0), ((3, 8), 0.1), ((4, 4), 1.0))]
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    for matrix, found in zip(matrices, orthogonalised(matrices, coefficients, 5, 1e-7),
                             strict=True):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        values /= values.norm()
        for _ in range(5):
            values = a * values + b * values ** 3 + c * values ** 5
        torch.testing.assert_close(found.double(), left * values @ right, rtol=0.0, atol=2e-5)


def test_loaded_state_goes_on_to_the_bit(tower):
    first = joined(tower)
    for number in range(2):
        step(first, tower, number)
    other, state = copy.deepcopy(tower), copy.deepcopy(first.state_dict())
    second = joined(other)
    second.load_state_dict(state)
    for group in second.param_groups:
        group["lr"] *= 0.5  # a schedule still reaches both parts
    for group in first.param_groups:
        group["lr"] *= 0.5
    for number in range(2, 5):
        step(first, tower, number)
        step(second, other, number)
    for found, expected in zip(other.parameters(), tower.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_what_cannot_be(tower, tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.name=sgd: one of adamw, muon"):
        TrainingModule(tower, OPTIONS | {"name": "sgd"}, {}, seed=0)
    config = OmegaConf.create({
        "trainer": {"accelerator": "cpu", "precision": "32-true"},
        "strategy": {"name": "zero2"}, "stage": {"optimizer": OPTIONS}})
    with pytest.raises(UserError, match="whole matrices"):
        build_trainer(config, tmp_path)
