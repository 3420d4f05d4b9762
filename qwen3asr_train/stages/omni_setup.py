"""What stage=omni begins with: sources of shards, model, processor, and what trains in a pass."""

from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.omni import SampleReader
from qwen3asr_train.data.pictures import PictureFormat
from qwen3asr_train.data.shards import find_shards, read_summary
from qwen3asr_train.data.tasks import Task, TaskBuilder
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr, omni, pretrained
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer
from qwen3asr_train.options import as_arguments
from qwen3asr_train.stages.setup import (
    as_list,
    build_processor,
    describe_model,
    encoder_to_begin_with,
    sample_records,
)

FIELDS = {"steps", "train", "weights", "row_tokens", "step_tokens", "warmup_steps", "lr_scale",
          "only_from_scratch"}
"""Of a pass; see configs/omni_phase/prepare.yaml."""


@dataclass(frozen=True)
class Pass:
    """One training of some parts on some sources; ``folder``: of its checkpoints in the run."""

    phase: str
    name: str
    options: DictConfig

    @property
    def folder(self) -> str:
        return f"phases/{self.phase}/{self.name}"

    @property
    def weights(self) -> dict[str, float]:
        """Of the sources that it trains on."""
        return {name: weight for name, weight in self.options.weights.items() if weight}


def passes_of(config: DictConfig) -> dict[str, list[Pass]]:
    """Phase -> its passes, those with steps; one that stands for a pretrained language model is
    left out where there is one."""
    pretrained_text = config.stage.init_from or config.stage.language_model_from
    found: dict[str, list[Pass]] = {}
    for phase, options in config.stage.phases.items():
        given = options.passes if options and options.passes else {}
        found[phase] = [Pass(phase, name, one) for name, one in given.items()
                        if one and one.get("steps", 1) and not (
                            one.get("only_from_scratch") and pretrained_text)]
        for one in found[phase]:
            if (fields := set(one.options)) != FIELDS:
                raise UserError(f"stage.phases.{phase}.passes.{one.name}: fields "
                                f"{sorted(fields ^ FIELDS)} are missing or unknown")
            if unknown := set(one.options.train) - set(omni.PARTS):
                raise UserError(f"stage.phases.{phase}.passes.{one.name}.train: {sorted(unknown)}: "
                                f"choose from {list(omni.PARTS)}")
    return {phase: passes for phase, passes in found.items() if passes}


def refuse_missing_sources(phases: dict[str, list[Pass]], sources: dict[str, list[str]]) -> None:
    """UserError for a pass, be it the last, that names a source which is not there, or none."""
    for one in (one for passes in phases.values() for one in passes):
        where = f"stage.phases.{one.phase}.passes.{one.name}.weights"
        if missing := sorted(set(one.weights) - set(sources)):
            raise UserError(f"{where}: no source {missing[0]} in data.sources ({sorted(sources)})")
        if not one.weights:
            raise UserError(f"{where}: none above 0")


def resolve_sources(data: DictConfig) -> dict[str, dict[str, list[str]]]:
    """Split -> source -> shards; the embedded corpus, made if need be, when none is named."""
    if data.sources is not None:
        for name, source in data.sources.items():
            if not isinstance(source, DictConfig) or not set(source) <= {"train", "test"}:
                raise UserError(f"data.sources.{name}={source}: say {{train: SHARDS}}, or "
                                "{train: SHARDS, test: SHARDS}")
        folders = {split: {name: source[split] for name, source in data.sources.items()
                           if source.get(split) is not None} for split in ("train", "test")}
    elif "corpus" in data:
        from data_prep.embedded_omni import OmniCorpus, ensure_corpus

        folders = ensure_corpus(OmniCorpus(**as_arguments(data.corpus)), data.cache_dir)
    else:
        raise UserError("data.sources is not set: name shards by source (data.sources.NAME.train="
                        "FOLDER), or use data=embedded_omni")
    found = {split: {name: find_shards(as_list(patterns)) for name, patterns in sources.items()}
             for split, sources in folders.items()}
    for path in all_of(found):
        read_summary(path)  # a missing index is better known now than at hour 3
    return found


def all_of(sources: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """Every shard of every split."""
    return (path for split in sources.values() for paths in split.values() for path in paths)


def build_tasks(config: DictConfig) -> dict[str, Task]:
    """``stage.tasks``."""
    try:
        return {name: Task(**as_arguments(task)) for name, task in config.stage.tasks.items()}
    except TypeError as error:
        raise UserError(f"stage.tasks: {error}") from error


def build_model(config: DictConfig, sources: dict[str, list[str]], tasks: dict[str, Task]
                ) -> tuple[omni.OmniModel, Qwen3ASRProcessor]:
    """The model to train: an omni folder, a recogniser that gets a vision tower, or random weights,
    with the encoder of stage=aut, the language model of a Qwen3 and the tower of a Qwen3-VL where
    these are named."""
    options, stage = config.model, config.stage
    preset = OmegaConf.to_container(options, resolve=True)
    start = stage.init_from and str(stage.init_from)
    refuse_two_of_a_part(stage)
    if start and omni.is_omni(start):
        model, processor = omni.load(start, options.attn_implementation)
    else:
        if start:
            base, processor = asr.load(start, options.attn_implementation)
        else:
            language_model = None
            if stage.language_model_from:
                language_model, processor = pretrained.load_language_model(
                    str(stage.language_model_from), options.attn_implementation)
            else:
                processor = _processor(options.tokenizer, sources, tasks)
            base = asr.build(preset, processor, config.seed, options.attn_implementation,
                             encoder_to_begin_with(config), language_model)
        vision = preset["vision_config"] if not stage.vision_from else pretrained.load_vision_tower(
            str(stage.vision_from), base.config.text_config.hidden_size,
            options.attn_implementation)
        model = omni.build(base, processor, vision, config.seed,
                           stage.mrope_section and list(stage.mrope_section))
    model.lm_head.chunk_size = stage.loss_chunk
    if options.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    describe_model(model, 0, processor)
    return model, processor


def refuse_two_of_a_part(stage: DictConfig) -> None:
    """UserError for a part that ``init_from`` brings, and another field as well."""
    start = stage.init_from and str(stage.init_from)
    if start and stage.language_model_from:
        raise UserError(f"init_from={start} brings its own language model: leave out "
                        f"language_model_from={stage.language_model_from}")
    if start and stage.vision_from and omni.is_omni(start):
        raise UserError(f"init_from={start} brings its own vision tower: leave out "
                        f"vision_from={stage.vision_from}")


def _processor(tokenizer: int | str, sources: dict[str, list[str]], tasks: dict[str, Task]
               ) -> Qwen3ASRProcessor:
    """A tokenizer trained on texts, questions and prompts, or one from a folder or hub."""
    if not isinstance(tokenizer, int):
        return build_processor(tokenizer, [])
    records = sample_records([path for paths in sources.values() for path in paths], 200_000)
    texts = ["system", "user", "assistant", *(p for task in tasks.values() for p in task.prompts),
             *(f"language {r['language']}" for r in records if r.get("language"))] * 2
    return make_processor(train_tokenizer(
        [*texts, *(r["text"] for r in records), *(r["question"] for r in records
                                                  if isinstance(r.get("question"), str))],
        tokenizer))


def build_reader(config: DictConfig, model: omni.OmniModel, processor: Qwen3ASRProcessor,
                 tasks: dict[str, Task]) -> SampleReader:
    """What reads samples as this model takes them."""
    vision = model.model.visual.config
    return SampleReader(TaskBuilder(processor.tokenizer, tasks), PictureFormat(
        patch=vision.patch_size, merge=vision.spatial_merge_size,
        frames=vision.temporal_patch_size, **as_arguments(config.stage.picture)))
