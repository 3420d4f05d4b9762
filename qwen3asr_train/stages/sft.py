"""ASR SFT: trains a Qwen3-ASR model on audio -> ``language English<asr_text>words``.

Loss: cross-entropy on the answer's tokens only, summed over the step and divided by their number.
Validation generates. At the end ``RUN/model`` is a transformers checkpoint folder, and the test set
is scored with exactly that folder.
"""

import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.prompts import PromptBuilder
from qwen3asr_train.models import asr
from qwen3asr_train.runtime.strategies import gather_weights, rank_and_size
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.fit import RecogniserModule, SpeechData, fit, scored_entries
from qwen3asr_train.stages.scoring import score_entries
from qwen3asr_train.stages.setup import add_lora, build_contexts, build_recogniser, resolve_data

CTC_FROM_SCRATCH = 1.0
"""``stage.ctc_weight=auto`` for random weights; 0 for a model that has learned to align."""

FINE_TUNING_LR = 2e-5
"""``stage.optimizer.lr=auto`` with ``init_from``: that of the released fine-tuning script."""

LORA_LR = 1e-4
"""``stage.optimizer.lr=auto`` with ``init_from`` when only adapters train."""


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, save ``RUN/model``, score the test set, write report and metrics; returns these."""
    return train_recogniser(config, run_dir, lambda model, processor: RecogniserModule(
        model, processor.tokenizer, config, lr=learning_rate(config),
        ctc_weight=ctc_weight(config)))


def train_recogniser(
        config: DictConfig, run_dir: Path,
        module_of: Callable[[asr.Recogniser, Qwen3ASRProcessor], RecogniserModule],
        data_of: type[SpeechData] = SpeechData, sections: Callable[[], dict] = dict,
        ) -> dict[str, float]:
    """The course of a stage that trains a recogniser, as its module and its data say.

    ``sections``: further parts of the report, asked for at the end.
    """
    started = time.perf_counter()
    splits = resolve_data(config.data)
    model, processor = build_recogniser(config, splits.all_train)
    adapters = add_lora(model, config.model.lora, config.seed)
    module = module_of(model, processor)
    data = data_of(splits, PromptBuilder(processor.tokenizer), config,
                   build_contexts(config, splits.all_train))
    fitted = fit(config, run_dir, module, data, started)
    trained = time.perf_counter()

    weights = gather_weights(model)
    if fitted.trainer.is_global_zero:
        export(model, processor, adapters, weights, run_dir / "model")
    fitted.trainer.strategy.barrier()
    results = []
    if entries := scored_entries(splits, config):
        finished, processor = asr.load(str(run_dir / "model"))
        results = score_entries(finished, processor, entries, config, *rank_and_size())
    fitted.timings["testing"] = time.perf_counter() - trained
    if not fitted.trainer.is_global_zero:
        return {}
    return finish_run(config, run_dir, fitted.metrics, results, fitted.history, fitted.timings,
                      **sections())


def learning_rate(config: DictConfig) -> float:
    """``stage.optimizer.lr``, or what ``auto`` stands for."""
    if config.stage.optimizer.lr != "auto":
        return config.stage.optimizer.lr
    if config.stage.init_from is None:
        return config.model.lr_from_scratch
    return LORA_LR if config.model.lora.rank else FINE_TUNING_LR


def ctc_weight(config: DictConfig) -> float:
    """``stage.ctc_weight``, or what ``auto`` stands for."""
    if config.stage.ctc_weight != "auto":
        return config.stage.ctc_weight
    return CTC_FROM_SCRATCH if config.stage.init_from is None else 0.0


def export(model: asr.Recogniser, processor: Qwen3ASRProcessor, adapters,
           weights: dict[str, Tensor], folder: Path) -> None:
    """``RUN/model``; LoRA adapters are merged, and saved by themselves in ``RUN/adapter``."""
    if adapters is not None:
        adapters.save_pretrained(folder.with_name("adapter"))
        model, weights = adapters.merge_and_unload(), None
    asr.save(model, processor, folder, weights)
