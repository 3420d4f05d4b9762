"""Drawn tokens against the softmax in float64."""

import pytest
import torch

from qwen3asr_train.objectives.sampling import chunked_draw, draw


@pytest.mark.parametrize("vocabulary", [5, 256, 1000, 151_936])
def test_drawn_tokens_have_the_distribution_of_the_softmax(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(64, vocabulary, generator=generator)
    uniforms = torch.rand(64, generator=generator)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-24])
    tokens, log_probs = draw(logits, uniforms, 0.7)
    below = (logits / 0.7).double().softmax(-1).cumsum(-1)
    expected = (below <= uniforms.double()[:, None]).sum(-1).clamp(max=vocabulary - 1)
    # float32 weights: a place within rounding of a token's end may fall to its neighbour
    far = (below - uniforms.double()[:, None]).abs().amin(-1) > 5e-7
    assert far.sum() > 20 and torch.equal(tokens[far], expected[far])
    exact = (logits / 0.7).double().log_softmax(-1)[torch.arange(64), tokens]
    torch.testing.assert_close(log_probs, exact.float(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_chunks_draw_what_all_rows_at_once_draw(rows):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(*size, generator=generator) for size in ((rows, 8), (300, 8)))
    uniforms = torch.rand(rows, generator=generator)
    tokens = chunked_draw(hidden, weight, uniforms, chunk_size=3)
    assert torch.equal(tokens, draw(hidden @ weight.T, uniforms)[0])
