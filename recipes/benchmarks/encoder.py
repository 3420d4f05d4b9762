"""The audio encoder: batched windows over packed chunks against transformers' own.

    python recipes/benchmarks/encoder.py [speed memory long] [--json FILE]

`speed`: forward and backward of a ragged batch on both sides, same weights, results compared.
`memory`: the same of longer clips, peak memory. `long`: inference of a single clip, whose memory
should grow as its length does. Every measurement has a process of its own. README.md beside it says
how to read it.
"""

import argparse
import itertools
import json
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context, set_forkserver_preload
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3ASREncoder, Qwen3ASREncoderConfig

from qwen3asr_train.data.features import CHUNK_FRAMES, MEL_BINS, chunk
from qwen3asr_train.models.encoder import batch_windows

SIZES = dict(d_model=512, encoder_layers=8, encoder_attention_heads=8, encoder_ffn_dim=2048,
             downsample_hidden_size=480, initializer_range=0.04)
"""The convolutions of the 1.7B model's encoder under a smaller transformer."""
SMALL = dict(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48,
             downsample_hidden_size=8, initializer_range=0.2)
SECONDS = {"speed": (5.0, 30.0), "memory": (10.0, 120.0)}  # shortest and longest of eight clips
LONG = (150.0, 300.0, 600.0, 1200.0)
NAMES = {"ours": "this library", "theirs": "transformers"}


def make_features(seconds: list[float]) -> list[Tensor]:
    """Noise ``(frames, 128)`` float32 for each clip."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(round(s * 100), MEL_BINS, generator=generator) for s in seconds]


def make_encoder(sizes: dict) -> Qwen3ASREncoder:
    """transformers' encoder with the same random weights each time."""
    torch.manual_seed(0)
    return Qwen3ASREncoder(Qwen3ASREncoderConfig(**sizes, attn_implementation="sdpa")).train()


def our_call(encoder: Qwen3ASREncoder, features: list[Tensor]) -> Callable[[], Tensor]:
    """Packed tokens of the clips' chunks, without their padding."""
    windowed, packed = batch_windows(encoder), [chunk(clip) for clip in features]
    chunks = torch.cat([chunks for chunks, _ in packed])
    lengths = torch.cat([lengths for _, lengths in packed])
    clips = torch.tensor([len(lengths) for _, lengths in packed])
    return lambda: windowed(chunks, chunk_lengths=lengths, clip_chunks=clips).last_hidden_state


def their_call(encoder: Qwen3ASREncoder, features: list[Tensor]) -> Callable[[], Tensor]:
    """The same tokens from a padded batch."""
    frames = torch.tensor([len(clip) for clip in features])
    longest = -(-int(frames.max()) // CHUNK_FRAMES) * CHUNK_FRAMES
    padded = torch.zeros(len(features), MEL_BINS, longest)
    for row, clip in zip(padded, features, strict=True):
        row[:, :len(clip)] = clip.T
    mask = (torch.arange(longest) < frames[:, None]).long()
    return lambda: encoder(padded, mask).last_hidden_state


CALLS = {"ours": our_call, "theirs": their_call}


# ---- measurements, each in a process of its own --------------------------------------------------

def resident() -> float:
    """MiB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak() -> float:
    """MiB, the most that it ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux


def train(sizes: dict, side: str, seconds: list[float], passes: int, save: Path | None = None
          ) -> dict[str, float]:
    """Forward and backward passes; time of the last one, whose results go to ``save``."""
    encoder = make_encoder(sizes)
    call, before = CALLS[side](encoder, make_features(seconds)), resident()
    generator = torch.Generator().manual_seed(1)
    for _ in range(passes):
        encoder.zero_grad()
        started = time.perf_counter(), time.process_time()
        tokens = call()
        tokens.backward(torch.randn(tokens.shape, generator=generator))
        ended = time.perf_counter(), time.process_time()
    clock, cpu = (end - start for end, start in zip(ended, started, strict=True))
    if save:
        # without the keys' biases, on which attention does not depend: their gradients are noise
        torch.save({"tokens": tokens.detach()} | {
            name: parameter.grad for name, parameter in encoder.named_parameters()
            if not name.endswith("k_proj.bias")}, save)
    return {"clock_seconds": clock, "cpu_seconds": cpu, "before_mib": before, "peak_mib": peak()}


@torch.no_grad()
def infer(sizes: dict, seconds: list[float]) -> dict[str, float]:
    """Tokens of one batch; memory with weights and features only, and at most."""
    call, before = our_call(make_encoder(sizes), make_features(seconds)), resident()
    started, tokens = time.perf_counter(), call()
    return {"clock_seconds": time.perf_counter() - started, "tokens": len(tokens),
            "before_mib": before, "peak_mib": peak()}


def limited(results: Connection, limit_gib: float, threads: int, work: Callable[..., dict],
            *arguments) -> None:
    """Send what ``work`` returns; None if it needs more memory than that."""
    torch.set_num_threads(threads)
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        results.send(work(*arguments))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not re.search("memory|alloc", str(error)):
            raise
        results.send(None)


def in_own_process(options: argparse.Namespace, work: Callable[..., dict], *arguments
                   ) -> dict | None:
    """:func:`limited` in a fresh process; its imports come from a server that has done no work."""
    context = get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=limited, args=(sender, options.limit_gib, options.threads,
                                                    work, *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:  # it has printed why, or was killed
        process.join()
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}") from None
    process.join()
    return result


# ---- the parts ----------------------------------------------------------------------------------

def clip_seconds(part: str, options: argparse.Namespace) -> list[float]:
    """Lengths of eight clips (s); a tenth of them under ``--small``."""
    spread = np.geomspace if options.spacing == "geometric" else np.linspace
    return [float(s) for s in spread(*SECONDS[part], 8) / (10 if options.small else 1)]


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Largest of the outputs, which are layer-normed; largest of the gradients as a share of the
    largest value in that parameter's gradient."""
    gaps = {name: float((ours[name] - theirs[name]).abs().max()) for name in theirs}
    return {"output_difference": gaps.pop("tokens"),
            "gradient_difference": max(gap / float(theirs[name].abs().max())
                                       for name, gap in gaps.items())}


def speed(options: argparse.Namespace) -> dict:
    """Both sides in turn: time of a pass after one to warm up, and how far results differ."""
    seconds, rounds = clip_seconds("speed", options), []
    print(f"speed: {len(seconds)} clips of {seconds[0]:g} to {seconds[-1]:g} s, "
          f"{sum(seconds):.0f} s of audio, {options.threads} threads")
    print(f"{'round':<6}{'side':<14}{'clock s':>10}{'CPU s':>8}{'peak MiB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder, side) for side in ("theirs", "ours")}
        for number in range(options.rounds):
            rounds.append({side: in_own_process(options, train, options.sizes, side, seconds, 2,
                                                file) for side, file in files.items()})
            for side, row in rounds[-1].items():
                print(f"{number:<6}{NAMES[side]:<14}{row['clock_seconds']:>10.2f}"
                      f"{row['cpu_seconds']:>8.1f}{row['peak_mib']:>10.0f}", flush=True)
        result = differences(*(torch.load(files[side]) for side in ("ours", "theirs")))
    for name, key in (("speedup", "clock_seconds"), ("cpu_speedup", "cpu_seconds")):
        ratios = [row["theirs"][key] / row["ours"][key] for row in rounds]
        result |= {name: median(ratios), f"{name}_range": [min(ratios), max(ratios)]}
        print(f"{name}: median {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"output_difference={result['output_difference']:.1e} "
          f"gradient_difference={result['gradient_difference']:.1e}")
    return result | {"seconds": seconds, "rounds": rounds}


def memory(options: argparse.Namespace) -> dict:
    """Peak memory of a forward and backward pass over longer clips."""
    seconds, result = clip_seconds("memory", options), {}
    print(f"memory: {len(seconds)} clips of {seconds[0]:g} to {seconds[-1]:g} s, "
          f"{sum(seconds):.0f} s of audio")
    for side in ("ours", "theirs") if options.theirs else ("ours",):
        result[side] = row = in_own_process(options, train, options.sizes, side, seconds, 1)
        print(f"{NAMES[side]:<14}" + (
            f"peak {row['peak_mib'] / 1024:.2f} GiB, {row['before_mib'] / 1024:.2f} before; "
            f"{row['clock_seconds']:.0f} s" if row else f"more than {options.limit_gib:g} GiB"),
            flush=True)
    return result | {"seconds": seconds, "limit_gib": options.limit_gib}


def long(options: argparse.Namespace) -> dict:
    """Memory of one clip's inference beyond weights and features, for growing clips."""
    rows = []
    print(f"long: one clip, inference\n{'s':>6}{'tokens':>8}{'MiB':>8}{'clock s':>9}")
    for seconds in (1.0, 2.0) if options.small else LONG:
        row = in_own_process(options, infer, options.sizes, [seconds])
        rows.append(row | {"seconds": seconds, "used_mib": row["peak_mib"] - row["before_mib"]})
        print(f"{seconds:>6.0f}{row['tokens']:>8}{rows[-1]['used_mib']:>8.0f}"
              f"{row['clock_seconds']:>9.1f}", flush=True)
    slopes = [(after["used_mib"] - before["used_mib"]) / (after["seconds"] - before["seconds"]) * 60
              for before, after in itertools.pairwise(rows)]
    print("MiB for each further minute: " + ", ".join(f"{slope:.1f}" for slope in slopes))
    return {"rows": rows, "mib_per_further_minute": slopes}


PARTS = {"speed": speed, "memory": memory, "long": long}


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--rounds", type=int, default=3, help="of `speed`")
    parser.add_argument("--spacing", choices=("even", "geometric"), default="even",
                        help="of the clips' lengths")
    parser.add_argument("--theirs", action="store_true", help="transformers in `memory` too")
    parser.add_argument("--limit-gib", type=float, default=20.0, help="memory of any process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a tiny encoder and short clips")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}: one of {', '.join(PARTS)}")
    options.sizes = SMALL if options.small else SIZES
    set_forkserver_preload(["__main__"])
    result = {part: PARTS[part](options) for part in options.parts or PARTS}
    if options.json:
        options.json.write_text(json.dumps(result | {"threads": options.threads}, indent=1) + "\n")


if __name__ == "__main__":
    main()
