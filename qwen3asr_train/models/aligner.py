"""The forced aligner: transformers' token classification model with batched encoder windows.

Encoder, projector and language model of a recogniser under a head that names the time class of each
``<timestamp>`` slot. Attention is causal as in the language model; labels are not shifted.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    Qwen3ASRConfig,
    Qwen3ASRForTokenClassification,
    Qwen3ASRProcessor,
)

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.models.encoder import WindowedEncoder, batch_windows
from qwen3asr_train.models.folder import load_processor, load_whole, opening, read_config, save_as
from qwen3asr_train.models.packed import of_samples, split_samples

ARCHITECTURE = "Qwen3ASRForTokenClassification"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- for part in message.content -%}
{%- if part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'text' -%}{{ part.text }}<timestamp><timestamp>
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""
"""What ``prepare_forced_aligner_inputs`` of transformers' processor renders: no chat around it."""


class Aligner(Qwen3ASRForTokenClassification):
    """Made by :func:`adapt`; its state dict, config and checkpoint folder are transformers' own."""

    def encode_audio(self, batch: dict[str, Tensor]) -> Tensor:
        """Projected audio tokens of all clips, packed ``(tokens, d)``."""
        encoded = self.model.audio_tower(
            batch["input_features"], chunk_lengths=batch["chunk_lengths"],
            clip_chunks=batch["clip_chunks"],
            window_chunks=batch.get("window_chunks")).last_hidden_state
        return self.model.multi_modal_projector(encoded)

    def slot_logits(self, batch: dict[str, Tensor], slots: Tensor) -> Tensor:
        """Time classes of the positions where ``slots`` ``(rows, length)`` is True, row by row:
        ``(slots, num_labels)``.

        ``batch`` as :func:`qwen3asr_train.data.aligned.collate_slots` makes it. Padding on the
        right under causal attention needs no mask: no slot sees it.
        """
        ids = batch["input_ids"]
        embeddings = self.model.language_model.embed_tokens(ids)
        places = (ids == self.config.audio_token_id).unsqueeze(-1)
        audio = self.encode_audio(batch).to(embeddings.dtype)
        positions = batch.get("position_ids")
        hidden = self.model.language_model(
            inputs_embeds=embeddings.masked_scatter(places, audio), position_ids=positions,
            use_cache=False, **of_samples(self.model.language_model, positions)).last_hidden_state
        return self.score(self.dropout(hidden[slots]))


def adapt(model: Qwen3ASRForTokenClassification) -> Aligner:
    """Turn a transformers model into an :class:`Aligner` in place; weights and names stay."""
    model.__class__ = Aligner
    batch_windows(model.model.audio_tower)
    split_samples(model.model.language_model)
    return model


def build(preset: dict, processor: Qwen3ASRProcessor, seed: int, head: dict,
          attn_implementation: str = "sdpa", encoder: WindowedEncoder | None = None) -> Aligner:
    """An aligner with random weights, except for ``encoder`` where one is given.

    ``preset`` as in :func:`qwen3asr_train.models.asr.build`; ``head``: ``num_labels``, ``bias``,
    ``dropout`` and ``init``, the fields of ``stage.head``.
    """
    base = asr.build(preset, processor, seed, attn_implementation, encoder)
    return from_recogniser(base, seed, head)


def from_recogniser(base: asr.Recogniser, seed: int, head: dict) -> Aligner:
    """Encoder, projector and language model of ``base`` under a new head."""
    options = base.config.to_dict()
    for name in ("architectures", "id2label", "label2id", "transformers_version", "model_type"):
        options.pop(name, None)
    options |= {"num_labels": head["num_labels"], "token_classification_bias": head["bias"],
                "classifier_dropout": head["dropout"],
                "attn_implementation": base.config._attn_implementation}
    config = Qwen3ASRConfig(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ASRForTokenClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    if head["init"] == "sinusoid":
        place_on_circles(model.score.weight, config.text_config.initializer_range)
    elif head["init"] != "random":
        raise UserError(f"stage.head.init={head['init']}: sinusoid or random")
    return adapt(model)


@torch.no_grad()
def place_on_circles(weight: Tensor, scale: float) -> None:
    """Fill a head's ``(classes, d)`` with cosines and sines of the class, wavelengths from 4
    classes to 4 times all of them: neighbouring times begin with neighbouring weights, as the
    places of Vaswani et al. (2017), so that their order need not be learned row by row. Entries
    have the standard deviation ``scale``."""
    classes, width = weight.shape
    lengths = torch.logspace(math.log10(4.0), math.log10(4.0 * classes), width // 2)
    angles = 2 * math.pi * torch.arange(classes)[:, None] / lengths
    circles = torch.cat([angles.cos(), angles.sin()], 1) * (scale * math.sqrt(2))
    weight[:, :circles.shape[1]] = circles.to(weight)


def is_aligner(folder: str) -> bool:
    """Whether a checkpoint folder or hub name says that it is one; what cannot be read is none."""
    if not Path(folder).is_dir() and (folder.count("/") != 1 or folder.startswith((".", "/"))):
        return False  # no name that the hub would know
    try:
        return ARCHITECTURE in (read_config(folder).architectures or ())
    except (OSError, ValueError):
        return False


def with_slots(processor: Qwen3ASRProcessor) -> Qwen3ASRProcessor:
    """The processor with the aligner's prompt, in place."""
    processor.chat_template = CHAT_TEMPLATE
    return processor


def load(folder: str, attn_implementation: str = "sdpa") -> tuple[Aligner, Qwen3ASRProcessor]:
    """Model (float32) and processor from a checkpoint folder or a hub name."""
    with opening(folder):
        kinds = read_config(folder).architectures or ["model of no known kind"]
        if ARCHITECTURE not in kinds:
            raise UserError(f"init_from={folder}: no forced aligner but a {kinds[0]}; "
                            "stage=aligner trains one from it")
        processor = load_processor(folder)
        model = load_whole(Qwen3ASRForTokenClassification, folder,
                           attn_implementation=attn_implementation)
    return adapt(model), processor


def save(model: Aligner, processor: Qwen3ASRProcessor, folder: Path,
         state_dict: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder that ``Qwen3ASRForTokenClassification.from_pretrained`` opens."""
    save_as(Qwen3ASRForTokenClassification, model, folder, state_dict)
    processor.save_pretrained(folder)
