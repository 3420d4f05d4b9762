"""One step of reinforcement learning: shared prompts against every answer on its own.

    python recipes/benchmarks/gspo.py [--json FILE]

A step answers some 10 s utterances eight times each and trains on the answers. The usual way treats
an answer as a sample of its own: transformers' ``generate`` and a training pass over utterances x 8
rows, each with its own audio and prompt, and logits at the answers' positions as TRL keeps them.
Here the audio is encoded and the prompt prefilled once for each utterance, and its answers train in
one row. Both sides run in processes of their own, on the same random checkpoint in
float32; the gradients of the same answers are compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sft import make_clips, make_model
from torch import Tensor
from transformers import Qwen3ASRForConditionalGeneration

from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.features import audio_tokens, log_mel
from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models import asr
from qwen3asr_train.models.policy import Sampling, answer_log_probs, pack, sample_answers
from qwen3asr_train.objectives.gspo import Objective, policy_loss
from qwen3asr_train.runtime.quiet import quieten

SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=512, encoder_layers=10,
                         encoder_attention_heads=8, encoder_ffn_dim=2048,
                         downsample_hidden_size=256, initializer_range=0.04),
    "text_config": dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=14,
                        num_attention_heads=8, num_key_value_heads=4, head_dim=64,
                        vocab_size=32_000, tie_word_embeddings=True, initializer_range=0.04),
}
"""The released 0.6B's proportions: a third of the language model is its vocabulary."""

GRADIENTS = ("model.language_model.layers.0.self_attn.q_proj.weight",
             "model.audio_tower.conv2d2.weight", "model.language_model.embed_tokens.weight")
"""Parameters from all parts whose gradients are compared."""


def make_answers(options: argparse.Namespace, vocabulary: int) -> Tensor:
    """Random ids ``(utterances, group, tokens)`` that both sides train on."""
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.integers(
        1000, vocabulary - 1000, (options.utterances, options.group, options.tokens)))


def advantages(options: argparse.Namespace) -> Tensor:
    """One for each answer."""
    return torch.from_numpy(np.random.default_rng(2).standard_normal(
        options.utterances * options.group).astype(np.float32))


def loss_of(log_probs: Tensor, options: argparse.Namespace) -> Tensor:
    """GSPO's loss ``(answers, tokens)`` on the policy itself, averaged over answers."""
    objective = Objective(clip_low=0.2, clip_high=0.2)
    return policy_loss(objective, log_probs, log_probs.detach(), advantages(options),
                       torch.ones_like(log_probs)).total / len(log_probs)


def run_ours(folder: Path, options: argparse.Namespace) -> dict:
    """A rollout and an update."""
    model, processor = asr.load(str(folder / "model"))
    model.generation_config.eos_token_id = [-1]  # answers of one length on both sides
    prompts = PromptBuilder(processor.tokenizer)
    mels = [log_mel(clip.waveform) for clip in make_clips(
        options.utterances, 0, options.seconds, options.seconds)]
    examples = [Example(mel, prompts.prompt(audio_tokens(len(mel))), []) for mel in mels]
    batch = collate(examples, prompts.pad_id, with_prompts=True)
    answers = make_answers(options, model.config.text_config.vocab_size)
    uniforms = torch.rand(options.utterances, options.group, options.tokens,
                          generator=torch.Generator().manual_seed(0))

    def rollout() -> None:
        sample_answers(model, batch, uniforms, Sampling(options.group, 1.0, options.tokens))

    def update() -> None:
        packed = batch | pack([e.prompt for e in examples], answers.tolist(), prompts.pad_id)
        found, _ = answer_log_probs(model, packed)
        loss_of(found.view(-1, options.tokens), options).backward()

    return timed(model, rollout, update, folder / "ours.pt")


def run_theirs(folder: Path, options: argparse.Namespace) -> dict:
    """The same, every answer with its own audio and prompt."""
    model = Qwen3ASRForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    _, processor = asr.load(str(folder / "model"))
    clips = make_clips(options.utterances, 0, options.seconds, options.seconds)
    waveforms = [clip.waveform for clip in clips for _ in range(options.group)]
    audio = processor.feature_extractor(waveforms, sampling_rate=16_000, padding=True,
                                        return_attention_mask=True, return_tensors="pt")
    features = {"input_features": audio["input_features"],
                "input_features_mask": audio["attention_mask"]}
    prompts = PromptBuilder(processor.tokenizer)
    prompt = torch.tensor([prompts.prompt(audio_tokens(len(log_mel(waveform))))
                           for waveform in waveforms])
    answers = make_answers(options, model.config.text_config.vocab_size).flatten(0, 1)
    ids = torch.cat([prompt, answers], 1)

    def rollout() -> None:
        torch.manual_seed(0)
        model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **features,
                       do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1,
                       max_new_tokens=options.tokens, min_new_tokens=options.tokens)

    def update() -> None:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **features,
                       logits_to_keep=options.tokens + 1).logits[:, :-1]
        found = torch.stack([  # row by row, as TRL's selective_log_softmax keeps memory down
            row.log_softmax(-1).gather(1, answer[:, None])[:, 0]
            for row, answer in zip(logits, answers, strict=True)])
        loss_of(found, options).backward()

    return timed(model, rollout, update, folder / "theirs.pt")


def timed(model, rollout, update, gradients: Path) -> dict:
    """Seconds of both halves, peak memory, and some gradients to compare."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.eval()
    started = time.perf_counter()
    with torch.no_grad():
        rollout()
    rolled = time.perf_counter()
    model.train()
    update()
    ended = time.perf_counter()
    named = dict(model.named_parameters())
    torch.save({name: named[name].grad for name in GRADIENTS}, gradients)
    return {"rollout_seconds": rolled - started, "update_seconds": ended - rolled,
            "seconds": ended - started, "mib_before": before,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def prepare(folder: Path, options: argparse.Namespace) -> dict:
    """The checkpoint that both sides read."""
    model, processor = make_model(SIZES, make_clips(8, seed=0))
    asr.save(model, processor, folder / "model")
    return {"parameters": sum(p.numel() for p in model.parameters())}


ROLES = {"prepare": prepare, "ours": run_ours, "theirs": run_theirs}


def in_own_process(role: str, folder: Path, options: argparse.Namespace) -> dict:
    """A role in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder)]
    for name in ("utterances", "group", "tokens", "seconds"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role} failed ({done.returncode}):\n{done.stderr}")
    return json.loads((folder / f"{role}.json").read_text())


def measure(folder: Path, options: argparse.Namespace) -> dict:
    """Rounds of both sides in turn."""
    parameters = in_own_process("prepare", folder, options)["parameters"]
    print(f"{parameters / 1e6:.1f} M parameters; {options.utterances} utterances of "
          f"{options.seconds:g} s, {options.group} answers of {options.tokens} tokens each; "
          f"{torch.get_num_threads()} threads", flush=True)
    print(f"{'round':<6}{'side':<14}{'rollout s':>10}{'update s':>10}{'MiB before':>12}"
          f"{'peak MiB':>10}")
    rounds = []
    for number in range(options.rounds):
        rounds.append({role: in_own_process(role, folder, options) for role in ("theirs", "ours")})
        for role, name in (("theirs", "usual way"), ("ours", "this library")):
            row = rounds[-1][role]
            print(f"{number:<6}{name:<14}{row['rollout_seconds']:>10.1f}"
                  f"{row['update_seconds']:>10.1f}{row['mib_before']:>12.0f}"
                  f"{row['peak_mib']:>10.0f}", flush=True)
    ours, theirs = (torch.load(folder / f"{role}.pt", weights_only=True)
                    for role in ("ours", "theirs"))
    difference = max(float((ours[n] - theirs[n]).norm() / theirs[n].norm()) for n in GRADIENTS)
    ratios = {name: [r["theirs"][key] / r["ours"][key] for r in rounds] for name, key in (
        ("speedup", "seconds"), ("rollout_speedup", "rollout_seconds"),
        ("update_speedup", "update_seconds"))}
    ratios["memory_ratio"] = [r["ours"]["peak_mib"] / r["theirs"]["peak_mib"] for r in rounds]
    return {**{name: median(values) for name, values in ratios.items()},
            **{f"{name}_range": [min(v), max(v)] for name, v in ratios.items()},
            "gradient_difference": difference, "rounds": rounds}


def main() -> None:
    """The benchmark; with ``--role``, the part of it that runs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="answers to each")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quieten()
    if options.role:
        result = ROLES[options.role](options.folder, options)
        (options.folder / f"{options.role}.json").write_text(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for name in ("speedup", "rollout_speedup", "update_speedup", "memory_ratio"):
        low, high = result[f"{name}_range"]
        print(f"{name}: median {result[name]:.2f}, from {low:.2f} to {high:.2f}")
    print(f"speedup={result['speedup']:.2f} memory_ratio={result['memory_ratio']:.2f} "
          f"gradient_difference={result['gradient_difference']:.1e}")


if __name__ == "__main__":
    main()
