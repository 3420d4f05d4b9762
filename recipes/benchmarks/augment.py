"""What augmentation costs, and how much audio loader processes deliver with it.

    python recipes/benchmarks/augment.py [--small] [--json FILE]

Each step alone, and what all of them cost, in CPU milliseconds per second of audio on one core;
then a DataLoader over synthetic shards with 0, 1 and 2 workers. README.md beside it says how to
read it.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from qwen3asr_train.data.audio import SAMPLE_RATE, decode, encode
from qwen3asr_train.data.augment import IDENTITY, Augmentation
from qwen3asr_train.data.augment_codec import CODECS
from qwen3asr_train.data.dataset import SpeechDataset, loader
from qwen3asr_train.data.features import log_mel
from qwen3asr_train.data.plan import BatchPlan, sample_rng
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.models.tokenizer import train_tokenizer

STEPS = ("speed", "tempo", "pitch", "reverb", "noise", "noise_file", "babble", "gain", "clipping")
SPECAUGMENT = {"frequency_masks": 2, "time_masks": 10}
ON_FEATURES = {"warp": {"warp_share": 1.0}, "SpecAugment": SPECAUGMENT}

RECIPE = {"speed_share": 0.3, "tempo_share": 0.1, "pitch_share": 0.1, "reverb_share": 0.3,
          "noise_share": 0.2, "noise_file_share": 0.4, "babble_share": 0.1, "gain_share": 0.5,
          "clipping_share": 0.1, "codec_share": 0.3, "warp_share": 0.3} | SPECAUGMENT
"""Shares as a training run may have them."""


def make_waveforms(count: int, shortest: float, longest: float, seed: int = 0) -> list[np.ndarray]:
    """Coloured noise in syllables, log-uniform in length (s); float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    waveforms = []
    for seconds in np.exp(rng.uniform(np.log(shortest), np.log(longest), count)):
        samples = int(seconds * SAMPLE_RATE)
        spectrum = np.fft.rfft(rng.standard_normal(samples))
        hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
        noise = np.fft.irfft(spectrum / (1 + (hertz / 800)**2), samples)
        envelope = 0.01 + np.abs(np.sin(np.arange(samples) * (10.0 / SAMPLE_RATE)))
        waveforms.append((0.05 / noise.std() * envelope * noise).astype(np.float32))
    return waveforms


def write_data(folder: Path, waveforms: list[np.ndarray]) -> tuple[Path, str]:
    """A folder of noise recordings (FLAC of 20 s) and a shard of the waveforms (FLAC)."""
    noises = folder / "noises"
    noises.mkdir()
    for number, waveform in enumerate(make_waveforms(8, 20.0, 20.0, seed=1)):
        (noises / f"{number}.flac").write_bytes(encode(waveform, "flac"))
    with ShardWriter(folder / "shards", max_samples=len(waveforms)) as writer:
        for number, waveform in enumerate(waveforms):
            record = {"text": "turn on the light", "language": "English",
                      "duration": len(waveform) / SAMPLE_RATE}
            writer.write(f"clip{number:05d}", record, encode(waveform, "flac"), "flac")
    return noises, str(writer.paths[0])


def single_steps(noises: Path) -> dict[str, Augmentation]:
    """Every step, and every codec, on its own for each clip."""
    files = {"noise_files": str(noises), "babble_files": str(noises)}
    single = {step: Augmentation(**{f"{step}_share": 1.0}, **files) for step in STEPS}
    return single | {f"codec {name}": Augmentation(codec_share=1.0, codecs=(name,))
                     for name in CODECS}


def recipe(noises: Path) -> Augmentation:
    """All steps, by the shares of a training run."""
    return Augmentation(**RECIPE, noise_files=str(noises), babble_files=str(noises))


def expected_cost(costs: dict[str, float], options: Augmentation) -> float:
    """CPU ms per second of audio that ``options`` cost on average, from those of the steps."""
    coding = sum(costs[f"codec {name}"] for name in options.codecs) / len(options.codecs)
    return options.codec_share * coding + costs["SpecAugment"] + sum(
        getattr(options, f"{step}_share") * costs[step] for step in (*STEPS, "warp"))


def cpu_ms_per_second(work: Callable[[int, np.ndarray], object], waveforms: list[np.ndarray],
                      rounds: int) -> float:
    """CPU milliseconds of ``work`` per second of audio: median of ``rounds`` after one to warm up.
    """
    audio = sum(map(len, waveforms)) / SAMPLE_RATE
    times = []
    for _ in range(rounds + 1):
        started = time.process_time()
        for number, waveform in enumerate(waveforms):
            work(number, waveform)
        times.append(time.process_time() - started)
    return 1000 * median(times[1:]) / audio


def costs(waveforms: list[np.ndarray], noises: Path, rounds: int) -> dict[str, float]:
    """CPU ms per second of audio of reading, of features, of every step; and what follows for all
    of them one after another and for the recipe."""
    coded = {number: encode(waveform, "flac") for number, waveform in enumerate(waveforms)}
    mels = [log_mel(waveform) for waveform in waveforms]
    found = {"decode FLAC": lambda number, _: decode(coded[number]),
             "log-mel": lambda _, waveform: log_mel(waveform)}
    for name, options in {name: Augmentation(**step) for name, step in ON_FEATURES.items()}.items():
        found[name] = lambda number, _, options=options: options.features(
            mels[number], sample_rng(0, 0, str(number)))
    for name, options in single_steps(noises).items():
        found[name] = lambda number, waveform, options=options: options.waveform(
            waveform, sample_rng(0, 0, str(number)))
    spent = {name: cpu_ms_per_second(work, waveforms, rounds) for name, work in found.items()}
    options = recipe(noises)
    always = replace(options, **{f"{step}_share": 1.0 for step in (*STEPS, "codec", "warp")})
    return spent | {"all": expected_cost(spent, always), "recipe": expected_cost(spent, options)}


def rates(shard: str, noises: Path, workers: tuple[int, ...], steps: int, batch_seconds: float
          ) -> list[dict]:
    """Audio seconds per second of a DataLoader whose batches nobody waits for."""
    plan = BatchPlan.from_paths({"train": [shard]}, batch_seconds=batch_seconds, seed=0)
    prompts = PromptBuilder(train_tokenizer(["turn on the light"] * 3, 300))
    rows = []
    for name, options in (("none", IDENTITY), ("recipe", recipe(noises))):
        dataset = SpeechDataset(prompts, augmentation=options)
        rows += [{"augmentation": name, "workers": count, **delivered(dataset, plan, count, steps)}
                 for count in workers]
    return rows


def delivered(dataset: SpeechDataset, plan: BatchPlan, workers: int, steps: int
              ) -> dict[str, float]:
    """Audio seconds of ``steps`` batches per clock second, without the time until the first one,
    and per CPU second of this process and its workers, from start to end."""
    cpu = cpu_seconds()
    batches = iter(loader(dataset, plan.walk(0, 1, 1, 0, steps + 1), workers))
    first = batch_seconds(next(batches))  # workers have started
    started = time.perf_counter()
    audio = sum(map(batch_seconds, batches))
    clock = time.perf_counter() - started
    del batches  # ends the workers, whose time is known then
    return {"audio_s_per_s": audio / clock,
            "audio_s_per_cpu_s": (first + audio) / (cpu_seconds() - cpu)}


def batch_seconds(batch: dict) -> float:
    """Seconds of audio in a batch, as they were before augmentation."""
    return sum(entry.duration for entry in batch["meta"]["entries"])


def cpu_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(
        resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def report_costs(costs: dict[str, float]) -> None:
    """The first table."""
    print(f"{'':<16}{'CPU ms per second of audio':>28}")
    for name, cost in costs.items():
        print(f"{name:<16}{cost:>28.2f}")


def report_rates(rows: list[dict], costs: dict[str, float]) -> None:
    """The second table and the last line."""
    print(f"\n{'augmentation':<16}{'workers':>8}{'audio s/s':>12}{'audio s/CPU s':>16}")
    for row in rows:
        print(f"{row['augmentation']:<16}{row['workers']:>8}{row['audio_s_per_s']:>12.0f}"
              f"{row['audio_s_per_cpu_s']:>16.0f}")
    print(f"recipe_ms={costs['recipe']:.2f} all_ms={costs['all']:.2f} " + " ".join(
        f"{row['augmentation']}_{row['workers']}={row['audio_s_per_s']:.0f}" for row in rows))


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--shortest", type=float, default=2.0, help="s")
    parser.add_argument("--longest", type=float, default=20.0, help="s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=20, help="of --batch-seconds each")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--small", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    if options.small:
        options.clips, options.longest, options.rounds = 6, 5.0, 1
        options.batches, options.batch_seconds = 4, 6.0
    torch.set_num_threads(1)
    waveforms = make_waveforms(options.clips, options.shortest, options.longest)
    with tempfile.TemporaryDirectory() as folder:
        noises, shard = write_data(Path(folder), waveforms)
        spent = costs(waveforms, noises, options.rounds)
        report_costs(spent)
        rows = rates(shard, noises, tuple(options.workers), options.batches,
                     options.batch_seconds)
    report_rates(rows, spent)
    if options.json:
        options.json.write_text(json.dumps({"costs": spent, "rates": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
