"""CTC over packed clips against torch's on padded ones.

    python recipes/benchmarks/ctc.py [--clips 32] [--rounds 5] [--json FILE]

Loss and gradient of random logits of clips of 1 to 30 s, log-uniform in length, 12.5 tokens and 2.5
words a second, for several vocabularies. The usual way pads the logits to the longest clip, takes
``log_softmax`` and ``torch.nn.functional.ctc_loss``. Each measurement is a process of its own,
which also says how much memory it added to the logits.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qwen3asr_train.objectives.ctc import packed_ctc

VOCABULARIES = (1024, 4096, 32_000)


def make(clips: int, vocabulary: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits ``(tokens, vocabulary)``, lengths and targets of the clips."""
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.uniform(np.log(1), np.log(30), clips))
    lengths = torch.from_numpy(np.ceil(12.5 * seconds).astype(np.int64))
    targets = [torch.from_numpy(rng.integers(1, vocabulary, max(1, int(2.5 * s)))) for s in seconds]
    logits = torch.randn(int(lengths.sum()), vocabulary, generator=torch.manual_seed(0))
    return logits.requires_grad_(), lengths, targets


def padded(logits: Tensor, lengths: Tensor, targets: list[Tensor]) -> Tensor:
    """The usual way."""
    log_probs = pad_sequence(logits.split(lengths.tolist())).log_softmax(-1)
    return F.ctc_loss(log_probs, torch.cat(targets), lengths,
                      torch.tensor([len(target) for target in targets]), reduction="sum")


def packed(logits: Tensor, lengths: Tensor, targets: list[Tensor]) -> Tensor:
    """This library's."""
    return packed_ctc(logits, lengths, targets, blank=0)


def measure(side: str, clips: int, vocabulary: int, rounds: int) -> dict:
    """Seconds of loss and gradient (the median), MiB added, and both for comparison."""
    logits, lengths, targets = make(clips, vocabulary)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(rounds):
        logits.grad = None
        started = time.perf_counter()
        loss = {"padded": padded, "packed": packed}[side](logits, lengths, targets)
        loss.backward()
        seconds.append(time.perf_counter() - started)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10  # KiB on Linux
    return {"seconds": median(seconds), "fastest": min(seconds), "slowest": max(seconds),
            "added_mib": added, "logits_mib": logits.numel() * 4 / 2**20, "loss": loss.item(),
            "gradient_norm": logits.grad.norm().item()}


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--side", choices=("padded", "packed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.clips, options.vocabularies[0],
                                 options.rounds)))
        return
    rows = []
    for vocabulary in options.vocabularies:
        row = {"vocabulary": vocabulary}
        for side in ("padded", "packed"):
            out = subprocess.run(
                [sys.executable, __file__, "--side", side, "--clips", str(options.clips),
                 "--rounds", str(options.rounds), "--vocabularies", str(vocabulary)],
                check=True, stdout=subprocess.PIPE, text=True).stdout
            row[side] = json.loads(out)
        usual, ours = row["padded"], row["packed"]
        print(f"{vocabulary:>7} classes, logits of {ours['logits_mib']:.0f} MiB: "
              f"padded {usual['seconds']:.3f} s, +{usual['added_mib']:.0f} MiB; "
              f"packed {ours['seconds']:.3f} s, +{ours['added_mib']:.0f} MiB; "
              f"{usual['seconds'] / ours['seconds']:.2f} times as fast; "
              f"losses differ by {abs(usual['loss'] / ours['loss'] - 1):.1e}, "
              f"gradient norms by {abs(usual['gradient_norm'] / ours['gradient_norm'] - 1):.1e}",
              flush=True)
        rows.append(row)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
