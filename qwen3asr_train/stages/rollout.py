"""Rollouts: answers of the current policy, their rewards and advantages, as batches to train on."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import Qwen3ASRProcessor

from qwen3asr_train.data.audio import SAMPLE_RATE
from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.dataset import sum_over_ranks
from qwen3asr_train.data.plan import sample_rng, sample_seed
from qwen3asr_train.data.rollouts import Rollout
from qwen3asr_train.data.shards import is_text
from qwen3asr_train.decoding.generate import has_bfloat16
from qwen3asr_train.decoding.guard import RepetitionGuard
from qwen3asr_train.decoding.policy_server import PolicyServer
from qwen3asr_train.errors import UserError
from qwen3asr_train.evaluation.text import split_output
from qwen3asr_train.models import asr, original
from qwen3asr_train.models.policy import Sampling, answer_log_probs, pack, padded, sample_answers
from qwen3asr_train.objectives.gspo import (
    Objective,
    group_advantages,
    normaliser,
    reference_weight,
)
from qwen3asr_train.objectives.rewards import RewardSum
from qwen3asr_train.runtime.strategies import gather_weights, rank_and_size
from qwen3asr_train.stages.rollout_groups import Answered, Group, Underway
from qwen3asr_train.stages.scoring import gather_lists


class Roller:
    """Makes the rollouts of one rank. ``underway``: answers of an earlier process to go on with.
    ``recomputed``: whether the training pass tells the answers' log-probabilities, the sampler's
    being too far off."""

    def __init__(self, model: asr.Recogniser, processor: Qwen3ASRProcessor, config: DictConfig,
                 rewards: RewardSum, synced: bool = False):
        options = config.stage
        self.model, self.processor, self.rewards = model, processor, rewards
        self.tokenizer = processor.tokenizer
        self.sampling = Sampling(**OmegaConf.to_container(options.sampling))
        self.objective = Objective(**OmegaConf.to_container(options.objective))
        self.guard = RepetitionGuard(**OmegaConf.to_container(options.guard))
        self.server = PolicyServer(**options.server) if options.server.url else None
        self.stop_at_bad_rewards = options.bad_rewards == "stop"
        self.english_normaliser = config.data.english_normaliser
        self.seed, self.synced = config.seed, synced
        self.frozen_audio = not any(
            p.requires_grad for part in (model.model.audio_tower, model.model.multi_modal_projector)
            for p in part.parameters())
        self.underway, self.recomputed = Underway(), False
        self.problems: list[str] = []

    def roll_out(self, rollout: Rollout, number: int) -> dict[str, float]:
        """Put an :class:`Answered` into each batch's ``meta["answered"]``, and what its loss is
        divided by; returns figures for the log, none where nothing was answered anew. ``number``:
        which rollout, for the randomness."""
        started, tally = time.perf_counter(), Counter()
        self.model.eval()
        if self.server:
            self._update_server()
        restored = self._restored(rollout)
        met: list[Group] = []
        left: list[Group] = []
        # the last first, for what its spares have left: a run that goes on within a rollout still
        # has the spares of later steps, not those of earlier ones
        for i, (batch, spares) in reversed(list(enumerate(rollout.parts))):
            if i in restored:
                groups = found = restored[i]
            else:
                groups, found, left = self._varied(batch, spares, left, number, tally)
            met += [group for group in found if group.whole]
            inputs = self._training_batch(batch, groups)
            if self.recomputed and i not in restored:
                self._recompute(groups, inputs)
            batch["meta"]["answered"] = Answered(groups, inputs)
        self.model.train()
        self.underway = Underway()
        batches = [batch for batch, _ in rollout.parts]
        self._share_counts(batches)
        if len(restored) == len(rollout.parts):
            return {}
        return self._figures(met, tally, time.perf_counter() - started)

    def _varied(self, batch: dict, spares: list[dict], left: list[Group], number: int,
                tally: Counter) -> tuple[list[Group], list[Group], list[Group]]:
        """Groups to train on: those with variance, and spares for the others, first those that
        later steps have ``left`` (with a cross-entropy, only those without rewards need any); all
        of the batch, which are what figures are about: a policy whose answers are all alike shows
        there; and what is left now."""
        found = self._sampled(batch, number)
        tally["flat"] += sum(group.flat for group in found if group.whole)
        tally["dropped"] += sum(not group.whole for group in found)
        tally["met"] += len(found)
        kept = [group for group in found if self._teaches(group)]
        lacking = len(found) - len(kept)
        for spare in spares:
            if not sum_over_ranks(max(0, lacking - len(left)))[0]:  # no rank lacks any
                break
            left = left + [g for g in self._sampled(spare, number) if self._teaches(g)]
        tally["replaced"] += len(left[:lacking])
        return kept + left[:lacking], found, left[lacking:]

    def _teaches(self, group: Group) -> bool:
        """Whether it has rewards, and variance or a reference to learn from."""
        return group.whole and (self.objective.cross_entropy > 0 or not group.flat)

    def _groups(self, batch: dict) -> list[Group]:
        meta = batch["meta"]
        return [Group(meta["step"], *row, answers=[]) for row in zip(
            meta["entries"], meta["records"], meta["contexts"], meta["examples"],
            meta["waveforms"], strict=False)]  # a blank has no entry

    def _sampled(self, batch: dict, number: int) -> list[Group]:
        """Every utterance of a batch with answers and rewards."""
        groups = self._groups(batch)
        limits = [self._limit(group) for group in groups] or [1]
        # with weights split over ranks, all run the model equally often
        most = max(gather_lists(limits) if self.synced else limits)
        sampling = replace(self.sampling, max_new_tokens=most)
        names = [group.drawn_as for group in groups]
        audio = None
        if not self.server or self.frozen_audio:
            inputs = {name: value.to(self.model.device) for name, value in batch["inputs"].items()}
            with torch.no_grad():
                audio = self.model.encode_audio(inputs)
        if self.server:
            if text := next((g for g in groups if is_text(g.record)), None):
                raise UserError(f"{text.entry.name}: text in place of audio cannot be sent to "
                                "stage.server")
            answers = self.server.sample(
                [(g.waveform, g.context.text) for g in groups], sampling.group,
                sampling.temperature, sampling.max_new_tokens,
                [sample_seed(self.seed, number, name) % 2**31 for name in names])
        else:
            uniforms = np.stack([sample_rng(self.seed, number, name).random(
                (sampling.group, self.sampling.max_new_tokens), np.float32)
                for name in names or [""]])  # a blank is answered too: all ranks run the model
            answers = sample_answers(self.model, inputs, torch.from_numpy(uniforms), sampling,
                                     audio, self.synced)
        for group, rows, limit in zip(groups, answers, limits, strict=False):
            group.answers = [(tokens[:limit], logs[:limit]) for tokens, logs in rows]
        self._keep_audio(groups, audio)
        self._reward(groups)
        return groups

    def _limit(self, group: Group) -> int:
        """The longest answer to an utterance, as it is heard."""
        if is_text(group.record):
            return self.sampling.max_new_tokens
        return min(self.sampling.max_new_tokens,
                   self.guard.limit(len(group.waveform) / SAMPLE_RATE))

    def _update_server(self) -> None:
        """Write the weights to the server's folder and have it read them."""
        weights = gather_weights(self.model)
        if rank_and_size()[0] == 0:
            original.save(self.model, self.processor, Path(self.server.folder),
                          torch.bfloat16 if has_bfloat16(self.model.device.type)
                          else torch.float32, weights)
            self.server.reload()
        sum_over_ranks(0)  # the others wait

    def _keep_audio(self, groups: list[Group], audio: Tensor | None) -> None:
        """Of a frozen encoder, what it made of each utterance; a blank's is last."""
        if self.frozen_audio and groups:
            lengths = [g.example.prompt.count(self.model.config.audio_token_id) for g in groups]
            # text alone has no tokens; a batch of nothing else holds a blank's
            heard = audio[:sum(lengths)].split(lengths)
            for group, tokens in zip(groups, heard, strict=True):
                group.audio = tokens

    def _restored(self, rollout: Rollout) -> dict[int, list[Group]]:
        """Place of a batch -> its groups, where a step was answered before the run was resumed."""
        found = self.underway.restore(
            [batch["meta"]["step"] for batch, _ in rollout.parts],
            [self._groups(batch) for batch, _ in rollout.parts],
            [group for _, spares in rollout.parts for batch in spares
             for group in self._groups(batch)])
        for i, groups in found.items():
            if self.frozen_audio:
                examples = [g.example for g in groups] or \
                    rollout.parts[i][0]["meta"]["examples"][:1]
                inputs = collate(examples, self.tokenizer.pad_token_id)
                with torch.no_grad():
                    self._keep_audio(groups, self.model.encode_audio(
                        {name: value.to(self.model.device) for name, value in inputs.items()}))
            self._reward(groups)
        return found

    def _reward(self, groups: list[Group]) -> None:
        """Rewards and advantages of answered groups. UserError for a bad one if so configured."""
        if not groups:
            return
        for group in groups:
            group.texts = [self.tokenizer.decode(tokens) for tokens, _ in group.answers]
        sizes = [len(group.answers) for group in groups]

        def column(values: list) -> list:
            return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]

        columns = {name: column([g.record.get(name) for g in groups])
                   for name in ("text", "language", "task", "entities", "duration")}
        columns |= {"listed": column([g.context.names for g in groups]),
                    "context": column([g.context.text for g in groups]),
                    "english_normaliser": column([self.english_normaliser] * len(groups))}
        parts, rewards, problems = self.rewards(
            column([self.tokenizer.decode(g.example.prompt) for g in groups]),
            [text for g in groups for text in g.texts],
            [tokens for g in groups for tokens, _ in g.answers], columns)
        if problems and self.stop_at_bad_rewards:
            raise UserError(f"the reward {problems[0]} (stage.bad_rewards=drop leaves such "
                            "utterances out)")
        self.problems += problems
        start = 0
        for group, size in zip(groups, sizes, strict=True):
            place = slice(start, start + size)
            start += size
            group.parts = {name: values[place] for name, values in parts.items()}
            group.rewards = rewards[place]
            group.advantages = group_advantages(
                torch.tensor([group.rewards], dtype=torch.float64), self.objective.scale
            )[0].tolist()

    def _training_batch(self, batch: dict, groups: list[Group]) -> dict[str, Tensor]:
        """What the policy loss needs of some groups; of none, an answer that counts for nothing.

        With a cross-entropy, the reference is one more answer behind a group's own;
        ``reference_weights`` ``(tokens,)`` are 0 at all others.
        """
        end = self.model.generation_config.eos_token_id[-1]
        examples = [group.example for group in groups] or batch["meta"]["examples"][:1]
        answers = [group.answers for group in groups] or [[([end], [0.0])]]
        inputs = collate([Example(e.features, e.prompt, []) for e in examples],
                         self.tokenizer.pad_token_id)
        if self.frozen_audio:  # of a blank too: all ranks run the same parts of the model
            inputs = {"audio": torch.cat([group.audio for group in groups]) if groups
                      else self._blank_audio(examples)}
        packed = [[tokens for tokens, _ in rows] for rows in answers]
        weights = [[0.0] * sum(map(len, rows)) for rows in packed]
        if self.objective.cross_entropy:
            for group, rows, of_row in zip(groups, packed, weights, strict=False):
                target = group.example.target
                of_row += [reference_weight(self.objective, len(target), list(map(len, rows)),
                                            self.sampling.max_new_tokens)] * len(target)
                rows.append(target)
        inputs |= pack([e.prompt for e in examples], packed, self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(tokens) for rows in answers for tokens, _ in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        sampled = [logs for rows in answers for _, logs in rows]
        old = [logs for group in groups for logs in group.old] or sampled

        def column(values: list[float]) -> Tensor:  # whatever type the weights have
            return torch.tensor(values, dtype=torch.float32)

        inputs |= {"mask": mask, "advantages": column(
            [value for group in groups for value in group.advantages] or [0.0]),
            "sampled_log_probs": padded(column([log for logs in sampled for log in logs]), mask),
            "old_log_probs": padded(column([log for logs in old for log in logs]), mask),
            "reference_weights": column([w for of_row in weights for w in of_row])}
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _blank_audio(self, examples: Sequence[Example]) -> Tensor:
        """In place of the frozen encoder's tokens, for an answer that counts for nothing."""
        tokens = sum(e.prompt.count(self.model.config.audio_token_id) for e in examples)
        return torch.zeros(tokens, self.model.config.text_config.hidden_size)

    @torch.no_grad()
    def _recompute(self, groups: list[Group], inputs: dict[str, Tensor]) -> None:
        """Have the training pass tell what it gives the answers, before the policy moves: the
        ratio of the first step is 1 then, however the sampler rounds."""
        mask, found = inputs["mask"], self.log_probs(self.model, inputs)[0]
        inputs["old_log_probs"] = padded(found[inputs["reference_weights"] == 0], mask)
        rows = iter(inputs["old_log_probs"].tolist())
        for group in groups:
            group.old = [next(rows)[:len(tokens)] for tokens, _ in group.answers]

    def log_probs(self, model: asr.Recogniser, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies ``(tokens,)`` of a training batch, those of references
        at a temperature of 1."""
        temperature = torch.where(inputs["reference_weights"] == 0, self.sampling.temperature, 1.0)
        return answer_log_probs(model, inputs, temperature, inputs.get("audio"))

    def _share_counts(self, batches: Sequence[dict]) -> None:
        """What the losses are divided by: over the micro-batches of a step on all ranks."""
        for batch in batches:
            batch["meta"]["target_tokens"] = normaliser(
                self.objective, [len(tokens) for group in batch["meta"]["answered"].groups
                                 for tokens, _ in group.answers])
            batch["meta"]["entries"] = [g.entry for g in batch["meta"]["answered"].groups]
        steps = sorted({batch["meta"]["step"] for batch in batches})
        counts = sum_over_ranks(*(sum(b["meta"]["target_tokens"] for b in batches
                                      if b["meta"]["step"] == step) for step in steps))
        for batch in batches:
            batch["meta"]["step_tokens"] = counts[steps.index(batch["meta"]["step"])]

    def _figures(self, groups: list[Group], tally: Counter, seconds: float) -> dict[str, float]:
        """Means over the answers of all ranks; shares that would give reward hacking away."""
        ends = set(self.model.generation_config.eos_token_id)
        names = ["reward", "length", "length_ratio", "empty", "unfinished", "deviation",
                 *(f"reward/{name}" for name in self.rewards.functions)]
        sums = dict.fromkeys([*names, "answers"], 0.0) | {"utterances": float(len(groups))}
        for group in groups:
            said = max(1, len(group.record["text"]))
            for (tokens, _), text, reward in zip(group.answers, group.texts, group.rewards,
                                                 strict=True):
                words = split_output(text)[1]
                for name, value in {
                        "answers": 1, "reward": reward, "length": len(tokens),
                        "length_ratio": len(words) / said, "empty": not words,
                        "unfinished": tokens[-1] not in ends}.items():
                    sums[name] += value
            for name, values in group.parts.items():
                sums[f"reward/{name}"] += sum(values)
            sums["deviation"] += float(np.std(group.rewards))
        totals = dict(zip(sums, sum_over_ranks(*sums.values()), strict=True))
        row = {f"rollout/{name}": totals[name] / max(1.0, totals["answers"]) for name in names}
        row["rollout/deviation"] = totals["deviation"] / max(1.0, totals["utterances"])
        met = sum_over_ranks(*(float(tally[k]) for k in ("met", "flat", "replaced", "dropped")))
        row |= {f"rollout/{name}_share": value / max(1.0, met[0])
                for name, value in zip(("flat", "replaced", "dropped"), met[1:], strict=True)}
        return row | {"rollout/seconds": seconds}
