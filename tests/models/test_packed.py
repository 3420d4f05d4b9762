"""Attention inside samples against transformers' mask of a packed row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3Model

from qwen3asr_train.models.packed import of_samples, sample_lengths, split_samples


@pytest.fixture(scope="module")
def models():
    """A language model of transformers, and the same one with samples split."""
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=6,
                         initializer_range=0.3, attn_implementation="sdpa")
    theirs = Qwen3Model(config).double().eval()
    ours = Qwen3Model(Qwen3Config(**config.to_dict(), attn_implementation="sdpa")).double().eval()
    ours.load_state_dict(theirs.state_dict())
    split_samples(ours)
    assert theirs.config._attn_implementation == "sdpa" != ours.config._attn_implementation
    return theirs, ours


def places_of(rows):
    """Rows of sample lengths -> places ``(rows, length)``, padding from 0 as collators have it."""
    longest = max(map(sum, rows))
    return torch.tensor([[place for length in (*row, longest - sum(row)) for place in range(length)]
                         for row in rows])


def states(model, places, **arguments):
    ids = torch.arange(places.numel()).view(places.shape) * 7 % 30
    model.zero_grad()
    return model(input_ids=ids, position_ids=places, use_cache=False, **arguments)[0]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3)
       .filter(lambda rows: max(map(max, rows)) > 1))  # a token that sees itself alone has no query
def test_states_and_gradients_are_those_under_a_mask(models, rows):
    theirs, ours = models
    places = places_of(rows)
    real = torch.arange(places.shape[1]) < torch.tensor([sum(row) for row in rows])[:, None]
    results = []
    for model, arguments in ((theirs, {}), (ours, of_samples(ours, places))):
        hidden = states(model, places, **arguments)[real]
        # not its square: the last norm leaves that as it is
        (hidden * torch.arange(hidden.numel()).view(hidden.shape).sin()).sum().backward()
        results.append((hidden.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])
    assert min(gradient.abs().max() for gradient in results[0][1][1:]) > 1e-3


def test_each_sample_once_and_padding_as_one(models):
    _, ours = models
    places = places_of([[3, 2], [4], [2, 2, 2]])
    found = of_samples(ours, places)
    assert found["sample_lengths"] == sample_lengths(places) == [3, 2, 1, 4, 2, 2, 2, 2]


def test_left_alone(models):
    theirs, ours = models
    rows = places_of([[3, 2]])
    assert of_samples(ours, None) == of_samples(ours, places_of([[4], [4]])) == {}
    assert of_samples(theirs, rows) == of_samples(ours, rows.to("meta")) == {}
    # plain and padded rows go on as transformers has them
    ids, mask = torch.arange(8).view(2, 4), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    for arguments in ({}, {"attention_mask": mask}):
        torch.testing.assert_close(ours(input_ids=ids, **arguments)[0],
                                   theirs(input_ids=ids, **arguments)[0])
