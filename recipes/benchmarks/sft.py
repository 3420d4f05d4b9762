"""SFT speed and memory: this library against transformers' Trainer on the same model and clips.

    python recipes/benchmarks/sft.py [--json FILE]

Both sides load one randomly initialised checkpoint with the released vocabulary size and train on
the same clips, the same number of optimiser steps a pass, towards the same labels, in float32, each
in a process of its own. What it shows and what it does not is in README.md beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import lightning
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from transformers import (
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import qwen3asr_train.__main__  # noqa: F401  registers the resolver that the config uses
from qwen3asr_train.command_line import CONFIGS
from qwen3asr_train.data.audio import SAMPLE_RATE, encode
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.features import audio_tokens, log_mel
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.data.shards import ShardWriter
from qwen3asr_train.models import asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from qwen3asr_train.runtime.quiet import quieten
from qwen3asr_train.runtime.training import build_trainer
from qwen3asr_train.stages.fit import RecogniserModule, SpeechData
from qwen3asr_train.stages.setup import build_recogniser, resolve_data

LANGUAGE = "English"
WORDS_PER_SECOND = 2.5
SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=320, encoder_layers=6, encoder_attention_heads=5,
                         encoder_ffn_dim=1280, downsample_hidden_size=96, initializer_range=0.06),
    "text_config": dict(hidden_size=320, intermediate_size=960, num_hidden_layers=6,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=80,
                        vocab_size=151_936, tie_word_embeddings=True, initializer_range=0.06),
}
"""The released vocabulary on a model that two cores can train."""


@dataclass(frozen=True)
class Clip:
    """float32 ``(samples,)`` at 16 kHz and its transcript."""

    waveform: np.ndarray
    text: str

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


def make_clips(count: int, seed: int, shortest: float = 1.0, longest: float = 30.0) -> list[Clip]:
    """Noise in syllable-like bursts, log-uniform in length (s), with made-up words as transcripts.

    The samples are 16-bit values, so that a FLAC file holds them exactly.
    """
    rng = np.random.default_rng(seed)
    syllables = ["ta", "ri", "mo", "len", "ka", "sho", "ver", "bin", "us", "dor", "pel", "an"]
    lexicon = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(1000)]
    clips = []
    for seconds in np.exp(rng.uniform(np.log(shortest), np.log(longest), count)):
        time_axis = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        envelope = 0.05 + 0.3 * np.abs(np.sin(np.pi * rng.uniform(2, 5) * time_axis))
        samples = np.clip(envelope * rng.standard_normal(len(time_axis)) * 8192, -32768, 32767)
        words = rng.choice(lexicon, max(1, round(seconds * WORDS_PER_SECOND)))
        clips.append(Clip(samples.astype(np.int16).astype(np.float32) / 32768, " ".join(words)))
    return clips


def make_model(sizes: dict, clips: list[Clip], entries: int = 2000
               ) -> tuple[asr.Recogniser, Qwen3ASRProcessor]:
    """Random weights, and a processor whose small BPE knows the transcripts' words."""
    texts = ["system", "user", "assistant", f"language {LANGUAGE}"] * 2
    processor = make_processor(train_tokenizer(texts + [clip.text for clip in clips], entries))
    return asr.build(sizes, processor, seed=0), processor


# ---- the same loss ----------------------------------------------------------------------------

def text_labels(input_ids: Tensor, processor: Qwen3ASRProcessor) -> Tensor:
    """The labels of transformers' processor: every token but padding and the audio's three."""
    ignored = torch.tensor([*processor.audio_token_ids, processor.tokenizer.pad_token_id])
    return input_ids.masked_fill(torch.isin(input_ids, ignored), -100)


def their_text(processor: Qwen3ASRProcessor, clip: Clip) -> str:
    """Prompt and answer of a clip as the text that transformers' processor takes."""
    messages = [{"role": "user", "content": [{"type": "audio"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return f"{prompt}language {LANGUAGE}<asr_text>{clip.text}<|im_end|>"


def their_batch(processor: Qwen3ASRProcessor, clips: list[Clip]) -> dict[str, Tensor]:
    """What ``Qwen3ASRProcessor`` makes of clips for training."""
    return dict(processor(text=[their_text(processor, clip) for clip in clips],
                          audio=[clip.waveform for clip in clips], output_labels=True))


def our_batch(processor: Qwen3ASRProcessor, clips: list[Clip]) -> dict[str, Tensor]:
    """What our collation makes of the same clips, with the labels of transformers' processor."""
    prompts, examples = PromptBuilder(processor.tokenizer), []
    for clip in clips:
        mel = log_mel(clip.waveform)
        examples.append(Example(mel, prompts.prompt(audio_tokens(len(mel))),
                                prompts.target(clip.text, LANGUAGE)))
    batch = collate(examples, prompts.pad_id)
    return batch | {"labels": text_labels(batch["input_ids"], processor)}


def targets(labels: Tensor) -> int:
    """How many positions of ``(clips, length)`` labels are predicted; the first one is not."""
    return int((labels[:, 1:] != -100).sum())


@torch.no_grad()
def compare_losses(ours: asr.Recogniser, theirs: Qwen3ASRForConditionalGeneration,
                   processor: Qwen3ASRProcessor, clips: list[Clip], batch_size: int
                   ) -> dict[str, float]:
    """Mean losses per target token of the same clips, compared batch by batch.

    ``loss_difference``: largest of |our batch - their clips one by one|. ``padding_difference``:
    largest of |their padded batch - their clips one by one|: what padding does to their result.
    """
    difference, padding, loss = 0.0, 0.0, 0.0
    for start in range(0, len(clips), batch_size):
        part = clips[start:start + batch_size]
        batch = our_batch(processor, part)
        count, alone, alone_count = targets(batch["labels"]), 0.0, 0
        mine = float(ours.target_loss(batch)[0]) / count
        for clip in part:
            single = their_batch(processor, [clip])
            number = targets(single["labels"])
            alone += float(theirs(**single).loss) * number
            alone_count += number
        if alone_count != count:
            raise RuntimeError(f"{count} target tokens here, {alone_count} in transformers")
        loss = alone / count
        difference = max(difference, abs(mine - loss))
        padded = float(theirs(**their_batch(processor, part)).loss)
        padding = max(padding, abs(padded - loss))
    return {"loss_difference": difference, "padding_difference": padding, "loss": loss}


def shortest(clips: list[Clip]) -> list[Clip]:
    """A list of the shortest clip."""
    return [min(clips, key=lambda clip: clip.seconds)]


# ---- the two training runs --------------------------------------------------------------------

class Stopwatch:
    """Time and peak memory of one pass, from before its first batch is made to its last step."""

    def __init__(self) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rss_before = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.steps, self.peak = 0, 0.0
        self.started = self.ended = (0.0, 0.0)  # s: clock, CPU time of this process

    def start(self) -> None:
        """The loop begins; nothing is loaded yet."""
        self.started = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """A step has ended. Memory is read here: what follows training is not compared."""
        self.steps, self.ended = self.steps + 1, (time.perf_counter(), time.process_time())
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB on Linux

    def result(self, clips: list[Clip], steps: int) -> dict[str, float]:
        """Figures of a pass over ``clips``."""
        if self.steps != steps:
            raise RuntimeError(f"{self.steps} steps instead of {steps}")
        seconds, cpu = (end - start for end, start in zip(self.ended, self.started, strict=True))
        return {"audio_s_per_s": sum(clip.seconds for clip in clips) / seconds,
                "seconds": seconds, "cpu_seconds": cpu, "rss_before_mib": self.rss_before,
                "peak_mib": self.peak}


def warm_up(model: Qwen3ASRForConditionalGeneration, loss: Tensor) -> None:
    """One backward pass outside the measurement: lazy imports, kernels chosen by shape."""
    loss.backward()
    model.zero_grad(set_to_none=True)


class TheirCallback(TrainerCallback):
    """Stopwatch of transformers' Trainer."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def on_train_begin(self, *_, **__) -> None:
        self.stopwatch.start()

    def on_step_end(self, *_, **__) -> None:
        self.stopwatch.step()


def run_theirs(folder: Path, clips: list[Clip], options: argparse.Namespace) -> dict[str, float]:
    """A pass with transformers' Trainer, whose collator calls the processor on raw clips."""
    processor = Qwen3ASRProcessor.from_pretrained(folder / "model")
    model = Qwen3ASRForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    stopwatch, steps = Stopwatch(), -(-len(clips) // options.batch_size)
    warm_up(model, model(**their_batch(processor, shortest(clips))).loss)
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=options.batch_size,
        max_steps=steps, learning_rate=1e-4, max_grad_norm=1.0, seed=options.seed,
        dataloader_num_workers=0, dataloader_pin_memory=False, remove_unused_columns=False,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True)
    Trainer(model=model, args=arguments, train_dataset=clips,
            data_collator=lambda part: their_batch(processor, part),
            callbacks=[TheirCallback(stopwatch)]).train()
    return stopwatch.result(clips, steps)


class OurCallback(lightning.Callback):
    """Stopwatch of the stage's trainer; gives it the labels that transformers' processor makes."""

    def __init__(self, stopwatch: Stopwatch, processor: Qwen3ASRProcessor):
        self.stopwatch, self.processor = stopwatch, processor

    def on_fit_start(self, *_) -> None:
        self.stopwatch.start()  # not on_train_start: Lightning has made a batch by then

    def on_train_batch_start(self, trainer, module, batch: dict, batch_idx: int) -> None:
        labels = text_labels(batch["inputs"]["input_ids"], self.processor)
        batch["inputs"]["labels"] = labels
        batch["meta"]["step_tokens"] = targets(labels)

    def on_train_batch_end(self, *_) -> None:
        self.stopwatch.step()


def our_config(folder: Path, steps: int, batch_seconds: float, seed: int) -> DictConfig:
    """The stage's own config tree, as ``python -m qwen3asr_train stage=sft`` composes it."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", [
            "stage=sft", "data=shards", f"run_dir={folder / 'ours'}", f"seed={seed}",
            f"stage.init_from={folder / 'model'}", f"data.train={folder / 'shards'}",
            f"data.batch_seconds={batch_seconds}", "data.workers=0", "data.max_seconds=31",
            f"trainer.max_steps={steps}", "trainer.validate_every=0",
            "trainer.checkpoint_every=0", "trainer.progress=false", "trainer.accelerator=cpu",
            "trainer.precision=32-true", "stage.optimizer.lr=1e-4"])


def run_ours(folder: Path, clips: list[Clip], options: argparse.Namespace) -> dict[str, float]:
    """A pass with the SFT stage: shards, batch plan, windowed encoder, loss at targets."""
    quieten()
    steps = -(-len(clips) // options.batch_size)
    # a little less than a step's share, so that rounding cannot cost a step
    batch_seconds = sum(clip.seconds for clip in clips) / steps * 0.999
    config = our_config(folder, steps, batch_seconds, options.seed)
    splits = resolve_data(config.data)
    model, processor = build_recogniser(config, splits.all_train)
    stopwatch = Stopwatch()
    warm_up(model, model.target_loss(our_batch(processor, shortest(clips)))[0])
    trainer = build_trainer(config, folder / "ours")
    trainer.callbacks.append(OurCallback(stopwatch, processor))
    module = RecogniserModule(model, processor.tokenizer, config, lr=config.stage.optimizer.lr,
                              ctc_weight=0.0)
    trainer.fit(module, SpeechData(splits, PromptBuilder(processor.tokenizer), config))
    return stopwatch.result(clips, steps)


# ---- processes and the table ------------------------------------------------------------------

def prepare(folder: Path, clips: list[Clip], options: argparse.Namespace) -> dict[str, float]:
    """Checkpoint and shards that both sides read; the losses compared."""
    quieten()
    model, processor = make_model(SIZES, clips)
    asr.save(model, processor, folder / "model")
    with ShardWriter(folder / "shards") as writer:
        for i, clip in enumerate(clips):
            writer.write(f"clip{i:04d}", {"text": clip.text, "language": LANGUAGE,
                                          "duration": clip.seconds},
                         encode(clip.waveform, "flac"), "flac")
    theirs = Qwen3ASRForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "seconds": sum(clip.seconds for clip in clips)} | compare_losses(
        model.eval(), theirs.eval(), processor, clips[:options.compared], options.batch_size)


ROLES = {"prepare": prepare, "ours": run_ours, "theirs": run_theirs}


def in_own_process(role: str, folder: Path, options: argparse.Namespace, seed: int
                   ) -> dict[str, float]:
    """Run a role in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder), "--seed",
               str(seed), "--clips", str(options.clips), "--batch-size", str(options.batch_size),
               "--compared", str(options.compared)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role} failed ({done.returncode}):\n{done.stderr}")
    return json.loads((folder / f"{role}.json").read_text())


def measure(folder: Path, options: argparse.Namespace) -> dict:
    """Everything measured: the comparison of losses, and rounds of both sides in turn."""
    losses = in_own_process("prepare", folder, options, 0)
    print(f"{losses['parameters'] / 1e6:.1f} M parameters, {options.clips} clips, "
          f"{losses['seconds']:.0f} s of audio a pass; loss {losses['loss']:.4f}, differs by "
          f"{losses['loss_difference']:.1e} from transformers' clip by clip (transformers' padded "
          f"batches by {losses['padding_difference']:.1e})", flush=True)
    rounds = []
    print(f"{'round':<6}{'side':<14}{'audio s/s':>10}{'CPU s':>8}{'MiB before':>12}"
          f"{'peak MiB':>10}")
    for number in range(options.rounds):
        rounds.append({role: in_own_process(role, folder, options, number)
                       for role in ("theirs", "ours")})
        for role, name in (("theirs", "transformers"), ("ours", "this library")):
            row = rounds[-1][role]
            print(f"{number:<6}{name:<14}{row['audio_s_per_s']:>10.2f}"
                  f"{row['cpu_seconds']:>8.1f}{row['rss_before_mib']:>12.0f}"
                  f"{row['peak_mib']:>10.0f}", flush=True)
    speedups = [r["ours"]["audio_s_per_s"] / r["theirs"]["audio_s_per_s"] for r in rounds]
    memory = [r["ours"]["peak_mib"] / r["theirs"]["peak_mib"] for r in rounds]
    return {"speedup": median(speedups), "speedup_range": [min(speedups), max(speedups)],
            "memory_ratio": median(memory), "memory_ratio_range": [min(memory), max(memory)],
            **losses, "threads": torch.get_num_threads(), "rounds": rounds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8, help="clips in a step of the Trainer")
    parser.add_argument("--compared", type=int, default=8, help="clips whose losses are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """The benchmark; with ``--role``, the part of it that runs in a process of its own."""
    options = parse()
    if options.role:
        result = ROLES[options.role](options.folder, make_clips(options.clips, seed=0), options)
        (options.folder / f"{options.role}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("speedup", "memory_ratio"):
        low, high = result[f"{name}_range"]
        print(f"{name}: median {result[name]:.2f}, from {low:.2f} to {high:.2f}")
    print(f"speedup={result['speedup']:.2f} memory_ratio={result['memory_ratio']:.2f} "
          f"loss_difference={result['loss_difference']:.1e}")


if __name__ == "__main__":
    main()
