"""Log-mel features: this library against transformers' ``Qwen3ASRFeatureExtractor``.

    python recipes/benchmarks/features.py [--json FILE]

The numbers are compared clip by clip; the time, with the extractor called per clip and called on
padded batches, as transformers' processor calls it. README.md beside it says how to read it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import Qwen3ASRFeatureExtractor

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.features import log_mel

# what Qwen3ASRProcessor passes to its extractor
OPTIONS = {"sampling_rate": SAMPLE_RATE, "padding": True, "return_attention_mask": True}


def make_waveforms(count: int, shortest: float, longest: float, seed: int = 0) -> list[np.ndarray]:
    """Noise of changing loudness, log-uniform in length (s), in no order; float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    waveforms = []
    for seconds in np.exp(rng.uniform(np.log(shortest), np.log(longest), count)):
        samples = int(seconds * SAMPLE_RATE)
        envelope = 0.02 + 0.2 * np.abs(np.sin(np.arange(samples) * (10.0 / SAMPLE_RATE)))
        waveforms.append((envelope * rng.standard_normal(samples)).astype(np.float32))
    return waveforms


def their_features(extractor: Qwen3ASRFeatureExtractor, waveforms: list[np.ndarray]
                   ) -> list[torch.Tensor]:
    """Features ``(frames, 128)`` of each clip from one call of the extractor, without padding."""
    found = extractor(waveforms, **OPTIONS)
    return [features[:, mask.bool()].T for features, mask in
            zip(found["input_features"], found["attention_mask"], strict=True)]


def largest_difference(extractor: Qwen3ASRFeatureExtractor, waveforms: list[np.ndarray],
                       batch_size: int) -> float:
    """Largest |ours - theirs| over all values, theirs in calls of ``batch_size`` clips.

    A clip that is not a whole number of frames has one frame more in a padded batch than alone, by
    the extractor's mask; that frame is not compared.
    """
    difference = 0.0
    for start in range(0, len(waveforms), batch_size):
        part = waveforms[start:start + batch_size]
        for waveform, expected in zip(part, their_features(extractor, part), strict=True):
            found = log_mel(waveform)
            if len(expected) - len(found) not in ((0,) if len(part) == 1 else (0, 1)):
                raise RuntimeError(f"{len(found)} frames here, {len(expected)} there")
            difference = max(difference, float((found - expected[:len(found)]).abs().max()))
    return difference


def seconds_of(work: Callable[[], None]) -> float:
    """Clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(waveforms: list[np.ndarray], batch_size: int, rounds: int) -> dict:
    """Differences, and the time of every way in turn, ``rounds`` times after one to warm up."""
    extractor = Qwen3ASRFeatureExtractor()

    def theirs(size: int) -> None:
        for start in range(0, len(waveforms), size):
            extractor(waveforms[start:start + size], **OPTIONS)

    ways = {"ours": lambda: [log_mel(waveform) for waveform in waveforms],
            "their_clips": lambda: theirs(1), "their_batches": lambda: theirs(batch_size)}
    times = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    ratios = {"speedup": [row["their_clips"] / row["ours"] for row in times],
              "batched_speedup": [row["their_batches"] / row["ours"] for row in times]}
    audio = sum(map(len, waveforms)) / SAMPLE_RATE
    return {"max_difference": largest_difference(extractor, waveforms, 1),
            "padding_difference": largest_difference(extractor, waveforms, batch_size),
            "audio_seconds": audio, "threads": torch.get_num_threads(), "batch_size": batch_size,
            "audio_s_per_s": {name: audio / median(row[name] for row in times) for name in ways},
            **{name: median(values) for name, values in ratios.items()},
            **{f"{name}_range": [min(values), max(values)] for name, values in ratios.items()}}


def report(result: dict) -> None:
    """The table and the last line."""
    names = {"ours": "this library, per clip", "their_clips": "transformers, per clip",
             "their_batches": f"transformers, padded batches of {result['batch_size']}"}
    print(f"{result['audio_seconds']:.0f} s of audio, {result['threads']} threads")
    print(f"{'':<38}{'audio s/s':>10}{'ours is faster by':>26}")
    for name, ratio in (("ours", None), ("their_clips", "speedup"),
                        ("their_batches", "batched_speedup")):
        low, high = result[f"{ratio}_range"] if ratio else (1.0, 1.0)
        faster = f"{result[ratio]:.2f} ({low:.2f} to {high:.2f})" if ratio else ""
        print(f"{names[name]:<38}{result['audio_s_per_s'][name]:>10.0f}{faster:>26}")
    print(f"transformers' batches differ from its clips on their own by up to "
          f"{result['padding_difference']:.1e}")
    print(f"speedup={result['speedup']:.2f} batched_speedup={result['batched_speedup']:.2f} "
          f"max_difference={result['max_difference']:.1e}")


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--shortest", type=float, default=1.0, help="s")
    parser.add_argument("--longest", type=float, default=30.0, help="s")
    parser.add_argument("--batch-size", type=int, default=8, help="clips in a padded batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    waveforms = make_waveforms(options.clips, options.shortest, options.longest)
    result = measure(waveforms, options.batch_size, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    report(result)


if __name__ == "__main__":
    main()
