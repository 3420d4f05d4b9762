"""Packed rows on CPU: the samples of a row one by one against transformers' mask of the row.

    python recipes/benchmarks/packed.py [--length 3000] [--json FILE]

Forward and backward of a whole language model (that of the tiny preset), same weights, same row,
results compared. README.md beside it says how to read it.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from qwen3asr_train.models.packed import of_samples, sample_lengths, split_samples

SIZES = dict(vocab_size=1024, hidden_size=144, intermediate_size=432, num_hidden_layers=4,
             num_attention_heads=4, num_key_value_heads=2, head_dim=36, initializer_range=0.08)
SAMPLE = (40, 140)  # tokens of a sample, fewest and most


def make_model() -> Qwen3Model:
    """transformers' model with the same random weights each time."""
    torch.manual_seed(0)
    return Qwen3Model(Qwen3Config(**SIZES, attn_implementation="sdpa")).train()


def make_places(length: int) -> Tensor:
    """A row of samples, the last one cut: places within the sample ``(1, length)``."""
    generator, places = torch.Generator().manual_seed(0), []
    while len(places) < length:
        places += range(int(torch.randint(*SAMPLE, (), generator=generator)))
    return torch.tensor([places[:length]])


def measure(model: Qwen3Model, embeddings: Tensor, weights: Tensor, places: Tensor, repeats: int
            ) -> tuple[float, Tensor, Tensor]:
    """Median seconds of a call, its states, and the gradient of the first layer's queries."""
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        model.zero_grad()
        start = time.perf_counter()
        hidden = model(inputs_embeds=embeddings, position_ids=places, use_cache=False,
                       **of_samples(model, places)).last_hidden_state
        (hidden * weights).mean().backward()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:]), hidden.detach(), model.layers[0].self_attn.q_proj.weight.grad


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=3000, help="tokens of the row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    places = make_places(options.length)
    embeddings, weights = torch.randn(2, 1, options.length, SIZES["hidden_size"],
                                      generator=torch.Generator().manual_seed(1))
    theirs, ours = make_model(), make_model()
    split_samples(ours)
    inputs = embeddings, weights, places, options.repeats
    slow, expected, expected_gradient = measure(theirs, *inputs)
    fast, found, gradient = measure(ours, *inputs)
    figures = {"samples": len(sample_lengths(places)), "tokens": options.length,
               "masked_seconds": slow, "split_seconds": fast, "ratio": slow / fast,
               "difference": float((found - expected).abs().max()),
               "gradient_difference": float((gradient - expected_gradient).norm()
                                            / expected_gradient.norm()),
               "threads": torch.get_num_threads()}
    for name, value in figures.items():
        print(f"{name:<20} {value:.6g}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
