"""AuT pretraining: the audio encoder as the first half of a recogniser, from random weights.

A Transformer decoder attends to the encoder and writes ``language English<asr_text>words``, or the
answer to a question about the audio. Loss: label-smoothed cross-entropy on these tokens, and CTC on
the encoder's own. The encoder's attention window is drawn anew for each step, so that one encoder
serves streaming and offline. ``RUN/model`` is the encoder in transformers' format, with the decoder
beside it; the test set is scored with that folder at several windows, and as a stream.
"""

import time
from pathlib import Path

from omegaconf import DictConfig

from qwen3asr_train.data.prompts import DecoderPrompts
from qwen3asr_train.models import aut
from qwen3asr_train.runtime.strategies import gather_weights
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.fit import RecogniserModule, SpeechData, fit, scored_entries
from qwen3asr_train.stages.setup import build_aut, resolve_data
from qwen3asr_train.stages.understanding import score_questions
from qwen3asr_train.stages.windows import attention_maps, score_windows

CONTINUED_LR_SHARE = 0.1
"""``stage.optimizer.lr=auto`` with ``init_from``: this share of the preset's."""


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, save ``RUN/model``, score at every window, write report and metrics; returns these."""
    started = time.perf_counter()
    splits = resolve_data(config.data)
    model, processor = build_aut(config, splits.all_train)
    module = RecogniserModule(model, processor.tokenizer, config, lr=learning_rate(config),
                              ctc_weight=config.stage.ctc_weight)
    data = SpeechData(splits, DecoderPrompts(processor.tokenizer), config)
    fitted = fit(config, run_dir, module, data, started)
    trained = time.perf_counter()

    weights = gather_weights(model)
    if fitted.trainer.is_global_zero:
        aut.save(model, processor, run_dir / "model", weights)
    fitted.trainer.strategy.barrier()
    results, sections = [], {}
    if entries := scored_entries(splits, config):
        finished, processor = aut.load(str(run_dir / "model"), config.model.attn_implementation)
        by_window = score_windows(finished, processor, entries, config)
        fitted.metrics |= {f"test/wer_{setting.name}": found.wer for setting, found in by_window}
        fitted.metrics |= score_questions(finished, processor, entries, config)
        results = by_window[0][1].results
        sections = {"windows": [found.for_report(setting) for setting, found in by_window],
                    "attention": attention_maps(finished, processor, results, config)}
    fitted.timings["testing"] = time.perf_counter() - trained
    if not fitted.trainer.is_global_zero:
        return {}
    return finish_run(config, run_dir, fitted.metrics, results, fitted.history, fitted.timings,
                      **sections)


def learning_rate(config: DictConfig) -> float:
    """``stage.optimizer.lr``, or what ``auto`` stands for."""
    if config.stage.optimizer.lr != "auto":
        return config.stage.optimizer.lr
    share = 1.0 if config.stage.init_from is None else CONTINUED_LR_SHARE
    return config.model.lr_from_scratch * share
