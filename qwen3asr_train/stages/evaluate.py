"""Evaluation: scores a model on shards and writes metrics, results and the report of a run."""

import json
import logging
import platform
import time
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.distributed as dist
import transformers
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase, Qwen3ASRProcessor

import qwen3asr_train
from qwen3asr_train.data.audio import decode
from qwen3asr_train.data.dataset import SpeechDataset, Windows, loader
from qwen3asr_train.data.plan import evaluation_cells
from qwen3asr_train.data.shards import Entry, ShardReader, find_shards, read_entries
from qwen3asr_train.decoding.generate import Generated, Model, generate, load, prompts_for
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.metrics import Utterance, bootstrap_interval, score
from qwen3asr_train.evaluation.report import write_report
from qwen3asr_train.evaluation.report_clips import counts_of
from qwen3asr_train.evaluation.text import split_output
from qwen3asr_train.runtime.metrics import write_atomically, write_metrics
from qwen3asr_train.runtime.progress import show_progress
from qwen3asr_train.stages.setup import as_list

log = logging.getLogger(__name__)

REPORT_CLIPS = 8
"""Clips with a player in the report: half the worst, half perfect ones."""


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Score ``stage.init_from`` on ``data.test``."""
    patterns = config.data.test or config.data.validation
    if patterns is None:
        raise UserError("name the shards to score: data.test=shards/mine/test")
    started = time.perf_counter()
    entries = [entry for shard in find_shards(as_list(patterns)) for entry in read_entries(shard)]
    model, processor = load(str(config.stage.init_from), config.model.attn_implementation)
    loaded = time.perf_counter()
    utterances = score_entries(model, processor, entries, config)
    timings = {"preparing": loaded - started, "testing": time.perf_counter() - loaded}
    return finish_run(config, run_dir, {}, utterances, [], timings)


def score_entries(model: Model, processor: Qwen3ASRProcessor, entries: list[Entry],
                  config: DictConfig, rank: int = 0, ranks: int = 1, window: int | None = None
                  ) -> list[tuple[Utterance, Entry]]:
    """Transcribe every entry; all ranks share the work and all get every result.

    ``window``: the encoder's attention window in seconds; None: that of its config.
    """
    device = scoring_device(config)
    model = model.to(device).eval()
    if not entries:
        raise UserError("the test shards hold no samples")
    cells = evaluation_cells(entries, config.data.evaluation_seconds, rank, ranks)
    dataset = SpeechDataset(prompts_for(model, processor.tokenizer), with_prompts=True,
                            windows=Windows((window,)) if window else None)
    batches = loader(dataset, cells, config.data.workers)
    results, skipped = [], []
    label = f"scoring, windows of {window} s" if window else "scoring"
    for batch in show_progress(batches, label, len(cells), rank):
        skipped += batch["meta"]["skipped"]
        inputs = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"
                            and torch.cuda.is_bf16_supported()):
            generated = generate(model, inputs, config.stage.decoding.max_new_tokens)
        results += read_batch(processor.tokenizer, generated, batch["meta"],
                              config.data.english_normaliser)
    skipped = gather_lists(skipped)
    if len(skipped) > config.data.max_bad_samples:
        raise UserError(f"{len(skipped)} unusable test samples, data.max_bad_samples="
                        f"{config.data.max_bad_samples}; {skipped[0]}")
    return gather_lists(results)


def scoring_device(config: DictConfig) -> str:
    """A GPU if there is one, unless the config says otherwise."""
    gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    return "cuda" if gpu else "cpu"


def read_batch(tokenizer: PreTrainedTokenizerBase, generated: list[Generated], meta: dict,
               english_normaliser: str) -> list[tuple[Utterance, Entry]]:
    """Generated ids and a batch's ``meta`` -> scored utterances and where they lie."""
    found = []
    for i, entry in enumerate(meta["entries"]):
        language, text = split_output(tokenizer.decode(generated[i].tokens))
        found.append((Utterance(
            key=entry.key, reference=meta["references"][i], hypothesis=text,
            language=meta["languages"][i], predicted_language=language, duration=entry.duration,
            source=meta["sources"][i], english_normaliser=english_normaliser), entry))
    return found


def gather_lists(mine: list) -> list:
    """Lists of all ranks joined, on every rank."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def finish_run(config: DictConfig, run_dir: Path, metrics: dict[str, float],
               results: list[tuple[Utterance, Entry]], history: list[dict],
               timings: dict[str, float], **sections) -> dict[str, float]:
    """Write metrics.json, results.jsonl and report.html; returns the metrics.

    ``sections``: further parts of the report, see ``write_report``.
    """
    utterances = [utterance for utterance, _ in results]
    if utterances:
        metrics = metrics | {f"test/{name}": value for name, value in score(utterances).items()}
        low, high = bootstrap_interval(utterances)
        metrics |= {"test/wer_low": low, "test/wer_high": high}
        write_atomically(run_dir / "results.jsonl", "".join(
            json.dumps(vars(u), ensure_ascii=False) + "\n" for u in utterances))
    metrics |= {f"time/{name}_seconds": value for name, value in timings.items()}
    headline = {name: metrics[name] for name in (
        "test/wer", "test/cer", "test/lid_accuracy", "val/wer", "train/loss", "train/seconds",
        "train/audio_seconds_per_second", "train/padding_share") if name in metrics}
    write_report(run_dir / "report.html", title=f"{config.stage.name}: {run_dir.name}",
                 headline=headline, history=history, utterances=utterances,
                 clips=_clips(results), config_yaml=OmegaConf.to_yaml(config, resolve=True),
                 environment=environment(), timings=timings, **sections)
    write_metrics(run_dir / "metrics.json", metrics)
    return metrics


def _clips(results: list[tuple[Utterance, Entry]]) -> dict[str, np.ndarray]:
    """Waveforms of the worst utterances and of some perfect ones."""
    def errors(result: tuple[Utterance, Entry]) -> float:
        counts = counts_of(result[0])
        return counts.errors / max(1, counts.reference_units)

    ranked = sorted(results, key=errors, reverse=True)
    half = REPORT_CLIPS // 2
    chosen = {id(r): r for r in ranked[:half] + ranked[::-1][:half]}.values()
    reader = ShardReader()
    clips = {u.key: decode(reader.read(entry)[1], name=entry.name) for u, entry in chosen}
    reader.close()
    return clips


def environment() -> dict[str, str]:
    """What the run ran on, for the report."""
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() \
        else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "platform": platform.platform(), "python": platform.python_version(),
            "qwen3asr_train": qwen3asr_train.__version__, "torch": torch.__version__,
            "transformers": transformers.__version__, "lightning": lightning.__version__}
