"""Training of one pass of stage=omni: its data, its module, what is frozen."""

import logging
from collections import Counter

import lightning
from omegaconf import DictConfig, OmegaConf

from qwen3asr_train.data.dataset import StepLoader, loader, sum_over_ranks
from qwen3asr_train.data.omni import OmniDataset, SampleReader, measured
from qwen3asr_train.data.packing import TokenPlan
from qwen3asr_train.data.plan import sample_seed
from qwen3asr_train.models import omni
from qwen3asr_train.runtime.training import TrainingModule, at_rates, splits_matrices
from qwen3asr_train.stages.omni_setup import Pass

log = logging.getLogger(__name__)

FINE_TUNING_SHARE = 0.1
"""``stage.optimizer.lr.PART=auto`` of pretrained parts: of ``model.lr_from_scratch``."""

WRONG_TOKENS_FROM_SCRATCH = 0.15
"""``stage.wrong_token_share=auto`` for a language model of random weights, which else learns
captions by heart and goes on in one of them, whatever the picture shows."""

PRETRAINED = {"init_from": tuple(omni.PARTS), "language_model_from": ("language_model",),
              "vision_from": ("vision_encoder",)}
"""Field of the stage -> parts that it brings and that fit the rest. The mergers of ``vision_from``
were trained for another language model: they learn as an adapter does."""


def pass_config(config: DictConfig, one: Pass) -> DictConfig:
    """The run's config with the trainer's and optimiser's fields of a pass."""
    found = config.copy()
    most = config.trainer.max_steps
    steps = one.options.steps if most is None else min(one.options.steps, most)
    trainer = {"max_steps": steps, "validate_every": 0}
    optimizer = {"warmup_steps": one.options.warmup_steps, "name": optimizer_name(config)}
    found.merge_with({"trainer": trainer, "stage": {"optimizer": optimizer}})
    return found


def optimizer_name(config: DictConfig) -> str:
    """``stage.optimizer.name``, or what ``auto`` stands for: Muon, where matrices are whole."""
    if config.stage.optimizer.name != "auto":
        return config.stage.optimizer.name
    return "adamw" if splits_matrices(config) else "muon"


class OmniData(lightning.LightningDataModule):
    """The train loader of a pass; it begins at the trainer's step."""

    def __init__(self, sources: dict[str, list[str]], reader: SampleReader, config: DictConfig,
                 one: Pass):
        super().__init__()
        self._reader, self._config, self._pass = reader, config, one
        weights = one.weights
        self._seed = seed = sample_seed(config.seed, 0, one.folder)
        self.unusable: list[str] = []
        made = []
        for name in weights:
            source, unusable = measured(
                name, sources[name], reader, one.options.row_tokens, seed,
                config.data.shards_per_group, config.data.max_bad_samples - len(self.unusable))
            made.append(source)
            self.unusable += unusable
        self.plan = TokenPlan(made, weights, one.options.step_tokens)
        self.steps: StepLoader | None = None

    def describe(self, ranks: int) -> None:
        """One line about the pass."""
        log.info("%s/%s: %d steps of %d tokens, training %s, from %s", self._pass.phase,
                 self._pass.name, self._config.trainer.max_steps, self.plan.step_tokens,
                 ", ".join(self._pass.options.train),
                 ", ".join(f"{name} {share:.0%}" for name, share in self.plan.weights.items()))

    def train_dataloader(self) -> StepLoader:
        """Micro-batches of this rank from the trainer's step to ``max_steps``."""
        trainer, accumulate = self.trainer, self._config.trainer.accumulate
        cells = self.plan.walk(trainer.global_rank, trainer.world_size, accumulate,
                               trainer.global_step, trainer.max_steps)
        self.steps = StepLoader(
            loader(OmniDataset(self._reader, self._pass.options.row_tokens,
                               wrong_token_share(self._config), self._seed), cells,
                   self._config.data.workers), accumulate, self._config.data.max_bad_samples)
        return self.steps


class OmniModule(TrainingModule):
    """Cross-entropy and CTC of packed rows; a learning rate for each part; shares of sources."""

    def __init__(self, model: omni.OmniModel, config: DictConfig, one: Pass):
        rates = learning_rates(config)
        options = OmegaConf.to_container(config.stage.optimizer) | {"lr": max(rates.values())}
        super().__init__(model, options, OmegaConf.to_container(config.trainer), config.seed)
        self._rates = {part: rate * one.options.lr_scale for part, rate in rates.items()}
        scratch = not any(config.stage[name] for name in (
            "init_from", "init_from_encoder", "language_model_from"))
        self._ctc = float(scratch) if config.stage.ctc_weight == "auto" else \
            config.stage.ctc_weight
        self._places, self._tokens = 0, Counter()
        train_only(model, list(one.options.train))

    def summed_losses(self, batch: dict) -> dict:
        """Cross-entropy summed over target tokens, and CTC where it is on."""
        self._tokens.update(batch["meta"]["source_tokens"])
        self._places += batch["inputs"]["input_ids"].numel()
        loss, ctc = self.model.target_loss(batch["inputs"], with_ctc=self._ctc > 0)
        losses = {"loss": (1.0, loss)}
        return losses if ctc is None else losses | {"ctc_loss": (self._ctc, ctc)}

    def parameter_groups(self) -> list[tuple[list[str], dict]]:
        """Each part's parameters with its learning rate; weight decay on matrices."""
        return at_rates(super().parameter_groups(),
                        lambda name: omni.part_of(name.removeprefix("model.")), self._rates)

    def realised(self, weights: dict[str, float]) -> dict[str, float]:
        """Share of the tokens that came from each source since training began or went on, and of
        the places that were padding."""
        places, *tokens = sum_over_ranks(self._places, *(self._tokens[name] for name in weights))
        used = sum(tokens)
        return {"packing_waste": 1 - used / max(1, places)} | {
            f"share/{name}": count / max(1, used)
            for name, count in zip(weights, tokens, strict=True)}


def learning_rates(config: DictConfig) -> dict[str, float]:
    """Part -> peak learning rate, with what ``auto`` stands for."""
    pretrained = {part for field, parts in PRETRAINED.items() if config.stage[field]
                  for part in parts}
    start = config.stage.init_from
    if start and not omni.is_omni(str(start)):  # a recogniser, which gets a tower
        pretrained -= {"vision_adapter"} if config.stage.vision_from else {
            "vision_adapter", "vision_encoder"}
    given = config.stage.optimizer.lr
    return {part: config.model.lr_from_scratch * (FINE_TUNING_SHARE if part in pretrained else 1.0)
            if given[part] == "auto" else float(given[part]) for part in omni.PARTS}


def wrong_token_share(config: DictConfig) -> float:
    """``stage.wrong_token_share``, or what ``auto`` stands for."""
    stage = config.stage
    if stage.wrong_token_share != "auto":
        return float(stage.wrong_token_share)
    return 0.0 if stage.init_from or stage.language_model_from else WRONG_TOKENS_FROM_SCRATCH


def train_only(model: omni.OmniModel, parts: list[str]) -> None:
    """Freeze every parameter outside these parts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = omni.part_of(name) in parts
