"""Reinforcement learning with GSPO: a recogniser is rewarded for what it transcribes well.

Once in ``stage.updates_per_rollout`` steps the current model answers the utterances of all these
steps, ``stage.sampling.group`` times each; every answer is rewarded, and compared with the others
to the same utterance. The steps then raise the probability of the better ones. ``RUN/model`` is a
transformers checkpoint folder, scored on the test set as after SFT.
"""

import json
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data import augment
from qwen3asr_train.data.dataset import SpeechDataset, StepLoader, loader
from qwen3asr_train.data.rollouts import RolloutLoader, rollout_cells
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.models.policy import padded
from qwen3asr_train.objectives.gspo import policy_loss
from qwen3asr_train.objectives.rewards import RewardSum
from qwen3asr_train.runtime.metrics import read_history, rewind
from qwen3asr_train.stages.fit import RecogniserModule, SpeechData
from qwen3asr_train.stages.rollout import Roller
from qwen3asr_train.stages.rollout_groups import Rolled, Underway
from qwen3asr_train.stages.scoring import gather_lists
from qwen3asr_train.stages.sft import train_recogniser

ANSWERS = "rollouts.jsonl"
"""Some of the answers to each rollout, in the run folder."""

FIGURES = ("ratio", "ratio_deviation", "clip_share", "kl", "log_prob_gap", "entropy")
"""Of a step, beside its loss: means over the answers."""

OLD_LOG_PROBS = ("auto", "sampled", "recomputed")

SHOWN_GROUPS = 4
"""Utterances of each rollout whose answers are kept there."""


def run(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Train, save ``RUN/model``, score the test set, write report and metrics; returns these."""
    if config.stage.init_from is None:
        raise UserError("stage=rl goes on from a recogniser: init_from=RUN/model")
    refuse_mistakes(config)
    rewards = RewardSum.of(OmegaConf.to_container(config.stage.rewards),
                           config.stage.own_rewards)
    return train_recogniser(
        config, run_dir,
        lambda model, processor: PolicyModule(model, processor, config, rewards, run_dir),
        PolicyData, lambda: {"answers": read_history(run_dir / ANSWERS)})


def refuse_mistakes(config: DictConfig) -> None:
    """UserError for what cannot be trained so, and for what a server would not hear or read as the
    training process does."""
    stage = config.stage
    if config.model.attn_implementation != "sdpa":
        raise UserError("stage=rl packs the answers to an utterance behind its prompt, with a mask "
                        "of its own: model.attn_implementation=sdpa")
    if stage.bad_rewards not in ("stop", "drop"):
        raise UserError(f"stage.bad_rewards: stop or drop, not {stage.bad_rewards}")
    for name, least in (("sampling.group", 2), ("sampling.max_new_tokens", 1),
                        ("updates_per_rollout", 1), ("spares", 0)):
        if (value := OmegaConf.select(stage, name)) is None or value < least:
            raise UserError(f"stage.{name}={value}: at least {least}" + (
                ", since answers to an utterance are compared with each other"
                if name == "sampling.group" else ""))
    if stage.sampling.temperature is None or stage.sampling.temperature <= 0:
        raise UserError(f"stage.sampling.temperature={stage.sampling.temperature}: above 0, or all "
                        "answers are alike")
    if stage.old_log_probs not in OLD_LOG_PROBS:
        raise UserError(f"stage.old_log_probs={stage.old_log_probs}: {' or '.join(OLD_LOG_PROBS)}")
    if config.model.lora.rank and config.model.lora.dropout:
        raise UserError("stage=rl weighs each answer under the policy that gave it, which dropout "
                        "makes another: model.lora.dropout=0")
    if not stage.server.url:
        return
    if config.model.lora.rank:
        raise UserError("stage.server with model.lora: the server reads whole matrices; leave out "
                        "one of them")
    drawn = [name for name in ("warp_share", "frequency_masks", "time_masks")
             if config.data.augmentation[name]]
    if drawn:
        raise UserError(f"stage.server hears waveforms, and data.augmentation.{drawn[0]} changes "
                        "features: set it to 0")


class PolicyData(SpeechData):
    """The utterances of each rollout, with spares."""

    def train_dataloader(self) -> RolloutLoader:
        """Micro-batches of this rank from the trainer's step to ``max_steps``, by rollout."""
        config, trainer, stage = self._config, self.trainer, self._config.stage
        dataset = SpeechDataset(
            self._prompts, seed=config.seed, contexts=self._contexts, joiner=self._joiner(),
            augmentation=augment.build(OmegaConf.to_container(config.data.augmentation)),
            with_prompts=True, with_examples=True)
        start, stop, accumulate = trainer.global_step, trainer.max_steps, config.trainer.accumulate
        nothing_lacks = stage.objective.cross_entropy > 0 and stage.bad_rewards == "stop"
        spares = 0 if nothing_lacks else stage.spares
        cells = rollout_cells(self.plan, trainer.global_rank, trainer.world_size, accumulate,
                              start, stop, spares)
        self.steps = StepLoader(loader(dataset, cells, config.data.workers),
                                accumulate * (1 + spares), config.data.max_bad_samples)
        return RolloutLoader(self.steps, accumulate, spares, stage.updates_per_rollout,
                             start, stop)


class PolicyModule(RecogniserModule):
    """The policy, its rollouts and its loss."""

    def __init__(self, model: asr.Recogniser, processor: Qwen3ASRProcessor, config: DictConfig,
                 rewards: RewardSum, run_dir: Path):
        super().__init__(model, processor.tokenizer, config, lr=config.stage.optimizer.lr,
                         ctc_weight=0.0)
        self._options, self._answers = config.stage, run_dir / ANSWERS
        self.roller = Roller(model, processor, config, rewards)
        # in a list: no part of this module, and so of its checkpoints
        self._reference = [asr.load(str(config.stage.init_from),
                                    config.model.attn_implementation)[0].eval()] \
            if self.roller.objective.kl else []
        self._accumulate = config.trainer.accumulate
        self._steps: list[int] = []  # of the rollout, and its groups on this rank
        self._rolled: list[Rolled] = []

    def on_train_start(self) -> None:
        """Begin the kept answers, like the history, at this step."""
        super().on_train_start()
        if self.trainer.is_global_zero:
            rewind(self._answers, self.global_step)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        """At the first micro-batch of a rollout: roll out all of them."""
        super().on_train_batch_start(batch, batch_idx)
        rollout = batch["meta"].pop("rollout", None)
        if rollout is None:
            return
        self.roller.synced = getattr(self.trainer.strategy, "zero_stage_3", False)
        self.roller.recomputed = self._recomputes()
        number = self.global_step // self._options.updates_per_rollout
        with self.trainer.precision_plugin.forward_context():
            figures = self.roller.roll_out(rollout, number)
        first = rollout.parts[0][0]["meta"]
        first.pop("rollout", None)
        batch["meta"] |= first  # DeepSpeed's strategy hands out a copy
        self._steps = [part["meta"]["step"] for part, _ in rollout.parts]
        self._rolled = [Rolled(part["meta"]["step"], place % self._accumulate, group)
                        for place, (part, _) in enumerate(rollout.parts)
                        for group in part["meta"]["answered"].groups]
        self._tell_problems()
        if figures:  # not again, where an earlier process answered
            self._keep_answers()
            self.log_row(figures, self.global_step + 1)  # of the first step that trains on it

    def _recomputes(self) -> bool:
        """Whether the training pass tells the answers' log-probabilities."""
        chosen = self._options.old_log_probs
        if chosen != "auto":
            return chosen == "recomputed"
        exact = self.trainer.precision == "32-true" and self.device.type == "cpu"
        return self.roller.server is not None or not exact

    def summed_losses(self, batch: dict) -> dict:
        """The policy loss of a micro-batch's answers, the cross-entropy of its references where
        that is on, and what tells how far the policy has moved, averaged over answers."""
        answered, objective = batch["meta"]["answered"], self.roller.objective
        inputs = answered.inputs
        mask, weights = inputs["mask"], inputs["reference_weights"]
        sampled = weights == 0
        found, entropy = self.roller.log_probs(self.model, inputs)
        supervised = -(found * weights).sum()
        found, entropy = found[sampled], entropy[sampled]
        loss = policy_loss(objective, padded(found, mask), inputs["old_log_probs"],
                           inputs["advantages"], mask, self._reference_log_probs(inputs),
                           self.roller.sampling.max_new_tokens)
        answers = sum(len(group.answers) for group in answered.groups)
        if not answers:  # a blank: the graph is walked, and adds nothing
            nothing = torch.zeros((), device=loss.total.device)  # the ranks sum the same figures
            return self._weighed(0.0 * loss.total, supervised) | dict.fromkeys(
                FIGURES, (0.0, nothing))
        scale = batch["meta"]["target_tokens"] / answers  # the log divides by target tokens
        lengths = mask.sum(1)
        gap = ((padded(found.detach(), mask) - inputs["sampled_log_probs"]).abs() * mask).sum(1)
        figures = (loss.ratio, (loss.ratio - 1).abs(), loss.clipped, loss.kl, gap / lengths,
                   padded(entropy, mask).sum(1) / lengths)
        return self._weighed(loss.total, supervised) | {
            name: (0.0, scale * values.sum())
            for name, values in zip(FIGURES, figures, strict=True)}

    def _weighed(self, policy: torch.Tensor, supervised: torch.Tensor) -> dict:
        """What the gradient is of; the cross-entropy of references only where it has a weight."""
        weight = self.roller.objective.cross_entropy
        return {"loss": (1.0, policy)} | (
            {"cross_entropy": (weight, supervised)} if weight else {})

    def _reference_log_probs(self, inputs: dict) -> torch.Tensor | None:
        """Under the model that training began with; None without a KL term."""
        if not self._reference:
            return None
        reference = self._reference[0].to(self.device)
        with torch.no_grad():
            found, _ = self.roller.log_probs(reference, inputs)
        return padded(found[inputs["reference_weights"] == 0], inputs["mask"])

    def _tell_problems(self) -> None:
        """Tell of bad rewards, on whichever rank."""
        for problem in gather_lists(self.roller.problems)[:1]:
            self.print(f"step {self.global_step}: the reward {problem}; left out")
        self.roller.problems = []

    def _keep_answers(self) -> None:
        """Add some of a rollout's answers to ``rollouts.jsonl``."""
        if not self.trainer.is_global_zero:
            return
        with open(self._answers, "a", encoding="utf-8") as file:
            for _, _, group in self._rolled[:SHOWN_GROUPS]:
                file.write(json.dumps({
                    "step": self.global_step + 1, "key": group.entry.key,
                    "language": group.record.get("language"), "reference": group.record["text"],
                    "context": group.context.text, "answers": group.texts,
                    "rewards": group.rewards, "parts": group.parts}, ensure_ascii=False) + "\n")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """With the optimiser's state, the answers that later steps of the rollout train on."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout_underway"] = Underway.state(
            [step for step in self._steps if step >= self.global_step], self._rolled)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Answers of a rollout that is under way."""
        super().on_load_checkpoint(checkpoint)
        self.roller.underway = Underway(checkpoint.get("rollout_underway"))
