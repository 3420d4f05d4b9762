"""Omni-style pretraining: audio, pictures and text into one language model (Qwen3-Omni report).

Three phases, each made of passes that train some parts on some sources: ``align`` (language model
frozen; audio and vision separately, each its adapter, then its encoder), ``general`` (everything),
``long`` (longer rows and audio). Loss: cross-entropy on answers and text, of samples packed into
rows. Test sources are scored before and after each phase. ``RUN/model`` goes on as an omni model;
``stage=sft init_from=RUN/model`` takes encoder, projector and language model.
"""

import json
import logging
import time
from pathlib import Path

from omegaconf import DictConfig

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.runtime.checkpoint import AtomicCheckpointIO, checkpoints, refuse_used_folder
from qwen3asr_train.runtime.metrics import write_atomically, write_rows
from qwen3asr_train.runtime.strategies import gather_weights, rank_and_size
from qwen3asr_train.stages.finish import finish_run
from qwen3asr_train.stages.fit import fit
from qwen3asr_train.stages.omni_scoring import Scores, draw, score_sources, show
from qwen3asr_train.stages.omni_setup import (
    Pass,
    build_model,
    build_reader,
    build_tasks,
    passes_of,
    refuse_missing_sources,
    resolve_sources,
)
from qwen3asr_train.stages.omni_training import OmniData, OmniModule, pass_config

log = logging.getLogger(__name__)


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train every phase, save ``RUN/model``, write report and metrics; returns these."""
    if config.strategy.name == "zero3":
        raise UserError("stage=omni: strategy=single, ddp, zero1 or zero2; zero3 splits the "
                        "weights, which each pass takes whole from the one before")
    if config.resume not in (None, "auto"):
        raise UserError("stage=omni goes on with resume=auto and the run_dir of the run")
    started = time.perf_counter()
    if config.model.attn_implementation.startswith("flash"):
        raise UserError("stage=omni packs several samples into each of several rows, which "
                        "flash-attention does not tell apart: model.attn_implementation=sdpa")
    if config.model.freeze:
        raise UserError("stage=omni trains the parts that its phases name: no model.freeze")
    if not config.resume:
        for folder in run_dir.glob("phases/*/*"):
            refuse_used_folder(folder, None)
        forget(run_dir / "phases")
    phases, tasks, sources = passes_of(config), build_tasks(config), resolve_sources(config.data)
    refuse_missing_sources(phases, sources["train"])
    model, processor = build_model(config, sources["train"], tasks)
    reader = build_reader(config, model, processor, tasks)

    def scored(name: str) -> Scores:
        file = run_dir / "phases" / f"{name}.json"
        if config.resume and file.is_file() and name != list(phases)[-1]:
            return Scores(json.loads(file.read_text()))
        found = score_sources(model, processor.tokenizer, reader, sources["test"], config)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(found.figures))
        return found

    timings = {"preparing": time.perf_counter() - started}
    metrics: dict[str, float] = {}
    history: list[dict] = []
    taken = 0
    scores = {"start": scored("start")} if config.stage.test else {}
    for phase, passes in phases.items():
        begun = time.perf_counter()
        for one in passes:
            figures, rows = train_pass(config, run_dir, model, reader, sources["train"], one)
            metrics |= {f"{phase}/{one.name}/{name}": value for name, value in figures.items()}
            history += [row | {"step": row["step"] + taken} for row in rows]
            taken += int(figures["train/steps"])
        timings[phase] = time.perf_counter() - begun
        if config.stage.test:
            before = list(scores)[-1]
            scores[phase] = scored(phase)
            for when, name in (("before", before), ("after", phase)):
                metrics |= {f"{phase}/{when}/{figure}": value
                            for figure, value in scores[name].figures.items()}

    if rank_and_size()[0]:
        return {}
    model.requires_grad_(True)
    asr.save(model, processor, run_dir / "model", gather_weights(model))
    write_rows(run_dir / "metrics.jsonl", history)
    last = list(scores.values())[-1] if scores else Scores({})
    if scores:
        metrics |= {f"test/{name}": value for name, value in last.figures.items()}
        figures = {name: found.figures for name, found in scores.items()}
        show(figures)
        draw(figures, run_dir / "phases.svg")
        write_rows(run_dir / "answers.jsonl", last.answers)
    return finish_run(config, run_dir, metrics, last.transcripts, history, timings)


def forget(folder: Path) -> None:
    """What an earlier run in this folder had finished is not this one's."""
    for path in [*folder.glob("*/*/pass.json"), *folder.glob("*.json")]:
        if path.name != "start.json":  # written anew, perhaps by now
            path.unlink(missing_ok=True)


def train_pass(config: DictConfig, run_dir: Path, model, reader, sources: dict[str, list[str]],
               one: Pass) -> tuple[dict[str, float], list[dict]]:
    """One pass, from its start or where it stopped; its figures and history. A finished pass of a
    resumed run only gives back its weights."""
    folder, options = run_dir / one.folder, pass_config(config, one)
    done = folder / "pass.json"
    if config.resume and done.is_file():
        newest = AtomicCheckpointIO().load_checkpoint(checkpoints(folder / "checkpoints")[-1])
        model.load_state_dict({name.removeprefix("model."): value
                               for name, value in newest["state_dict"].items()})
        log.info("%s/%s: done before", one.phase, one.name)
        return (found := json.loads(done.read_text()))["figures"], found["history"]
    data = OmniData(sources, reader, options, one)
    module = OmniModule(model, options, one)
    folder.mkdir(parents=True, exist_ok=True)
    fitted = fit(options, folder, module, data, time.perf_counter())
    figures = fitted.metrics | module.realised(data.plan.weights) | {
        "train/unusable_samples": float(len(data.unusable))}
    log.info("%s/%s: padding %.2f %% of tokens; %s", one.phase, one.name,
             100 * figures["packing_waste"], ", ".join(
                 f"{name} {figures[f'share/{name}']:.4f} (weight {weight:.4f})"
                 for name, weight in data.plan.weights.items()))
    if fitted.trainer.is_global_zero:
        write_atomically(done, json.dumps({"figures": figures, "history": fitted.history}))
    fitted.trainer.strategy.barrier()
    return figures, fitted.history
