"""A recogniser as a policy: answers are sampled, and their log-probabilities differentiated.

The G answers to one utterance share its audio and its prompt: encoded once, prefilled once, and in
training laid out in one row, where each answer sees the prompt and itself and its positions go on
from the prompt's. Gradients are those of G separate rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache

from qwen3asr_train.models.asr import Recogniser
from qwen3asr_train.objectives.sampling import draw

PROMPT, PADDING = 0, -1
"""Segments of a packed row; its answers are 1, 2, …"""

COMPACT_AT = 0.75
"""Finished answers leave the cache when so much of it is left, since that copies the rest."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. ``group``: how many for each utterance."""

    group: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256


def pack(prompts: Sequence[list[int]], answers: Sequence[list[list[int]]], pad_id: int
         ) -> dict[str, Tensor]:
    """One row for each utterance: its prompt and, one after the other, its answers.

    Returns ``input_ids``, ``position_ids``, ``segments`` ``(utterances, length)``, padded on the
    right; ``targets`` ``(tokens,)``: all answers' tokens in order; ``places`` ``(tokens,)``: flat
    index of the position that predicts each. An answer's last token predicts nothing and is left
    out of the row.
    """
    rows: list[tuple[list[int], list[int], list[int]]] = []
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    for row, (prompt, samples) in enumerate(zip(prompts, answers, strict=True)):
        ids, positions, segments = list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt)
        for number, answer in enumerate(samples, start=1):
            start, inner = len(ids), len(answer) - 1
            places += [(row, len(prompt) - 1)] + [(row, start + i) for i in range(inner)]
            targets += answer
            ids += answer[:-1]
            positions += range(len(prompt), len(prompt) + inner)
            segments += [number] * inner
        rows.append((ids, positions, segments))
    longest = max(len(ids) for ids, _, _ in rows)

    def filled(column: int, value: int) -> Tensor:
        return torch.tensor([row[column] + [value] * (longest - len(row[column])) for row in rows])

    return {"input_ids": filled(0, pad_id), "position_ids": filled(1, 0),
            "segments": filled(2, PADDING), "targets": torch.tensor(targets, dtype=torch.long),
            "places": torch.tensor([row * longest + place for row, place in places],
                                   dtype=torch.long)}


def packed_mask(segments: Tensor) -> Tensor:
    """``(utterances, length)`` -> bool ``(utterances, 1, length, length)``: who sees whom."""
    length = segments.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    ours = segments[:, None, :] == segments[:, :, None]
    return (earlier & (ours | (segments == PROMPT)[:, None, :]))[:, None]


def answer_log_probs(model: Recogniser, batch: dict[str, Tensor], temperature: float | Tensor = 1.0,
                     audio: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers of :func:`pack`, and the entropies there: ``(tokens,)``.
    ``temperature`` of all, or of each.

    ``batch`` also holds the encoder's inputs, once for each utterance, unless ``audio`` gives its
    projected tokens.
    """
    audio = model.encode_audio(batch) if audio is None else audio
    # a mask as transformers' own mask functions would make it: True where attention is
    hidden = model.model.language_model(
        inputs_embeds=model.embed(batch["input_ids"], audio, batch["segments"] == PROMPT),
        position_ids=batch["position_ids"],
        attention_mask={"full_attention": packed_mask(batch["segments"])}, use_cache=False
    ).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, batch["places"])
    return model.lm_head(chosen, batch["targets"], temperature)


def padded(values: Tensor, mask: Tensor) -> Tensor:
    """Answers' tokens one after the other ``(tokens,)`` -> ``mask``'s shape, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(
        mask, values)


@torch.no_grad()
def sample_answers(model: Recogniser, batch: dict[str, Tensor], uniforms: Tensor,
                   sampling: Sampling, audio: Tensor | None = None, synced: bool = False
                   ) -> list[list[tuple[list[int], list[float]]]]:
    """``sampling.group`` answers to each utterance: ids, the end included, and log-probabilities.

    ``batch`` holds ``prompt_ids`` and ``prompt_mask``, padded on the left. ``uniforms``
    ``(utterances, group, max_new_tokens)`` in [0, 1): the randomness, so that what is drawn for an
    utterance depends neither on its neighbours nor on the number of ranks. ``synced``: step on
    until every rank has finished, as ZeRO-3 needs. An answer that does not end is cut at
    ``max_new_tokens``.
    """
    ends = set(model.generation_config.eos_token_id)
    audio = model.encode_audio(batch) if audio is None else audio
    language_model, mask = model.model.language_model, batch["prompt_mask"]
    cache = DynamicCache(config=language_model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = language_model(inputs_embeds=model.embed(batch["prompt_ids"], audio),
                            attention_mask=mask, position_ids=positions, past_key_values=cache,
                            use_cache=True).last_hidden_state[:, -1]
    group = sampling.group
    logits = model.lm_head(hidden).repeat_interleave(group, 0)
    cache.batch_repeat_interleave(group)
    mask, position = mask.repeat_interleave(group, 0), positions[:, -1].repeat_interleave(group)
    uniforms = uniforms.flatten(0, 1).to(logits.device)
    rows = torch.arange(len(mask), device=mask.device)  # those in the cache
    going = torch.ones_like(rows, dtype=torch.bool)
    end_ids = torch.tensor(sorted(ends), device=mask.device)
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in range(len(mask))]
    for step in range(sampling.max_new_tokens):
        tokens, log_probs = draw(logits, uniforms[rows, step], sampling.temperature)
        for row, token, log_prob in zip(rows.tolist(), tokens.tolist(), log_probs.tolist(),
                                        strict=True):
            if not answers[row][0] or answers[row][0][-1] not in ends:
                answers[row][0].append(token)
                answers[row][1].append(log_prob)
        going &= ~torch.isin(tokens, end_ids)
        if not _any_left(going, synced) or step + 1 == sampling.max_new_tokens:
            break
        kept = going.nonzero()[:, 0]
        if 0 < len(kept) <= COMPACT_AT * len(rows):
            cache.batch_select_indices(kept)
            tokens, mask, position = tokens[kept], mask[kept], position[kept]
            rows, going = rows[kept], going[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        logits = model.lm_head(language_model(
            inputs_embeds=language_model.embed_tokens(tokens[:, None]), attention_mask=mask,
            position_ids=position[:, None], past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1])
    return [answers[i:i + group] for i in range(0, len(answers), group)]


def _any_left(going: Tensor, synced: bool) -> bool:
    """Whether any row goes on; with ``synced`` on any rank."""
    left = going.any().to(torch.int32)
    if synced and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(left, op=dist.ReduceOp.MAX)
    return bool(left)
