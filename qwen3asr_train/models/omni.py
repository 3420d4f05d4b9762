"""The omni model: a recogniser whose language model also sees pictures.

transformers' modules in one place: the recogniser's encoder and projector, Qwen3-VL's vision tower
with its merger, and a dense Qwen3 in Qwen3-VL's form, which takes time-aligned positions of three
axes (TM-RoPE; Qwen3-Omni report, section 2.2) and adds the tower's deepstack features to its first
layers. Its parameters are named as Qwen3's. For text and audio, whose three axes are equal, it is
the recogniser; its folder is a Qwen3-ASR folder with more weights in it.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    Qwen3ASRConfig,
    Qwen3ASRProcessor,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr
from qwen3asr_train.models.encoder import batch_windows
from qwen3asr_train.models.folder import load_whole
from qwen3asr_train.models.head import TargetHead
from qwen3asr_train.models.packed import of_samples, split_samples
from qwen3asr_train.models.tokenizer import add_vision_tokens
from qwen3asr_train.objectives.ctc import packed_ctc

log = logging.getLogger(__name__)

RELEASED_SECTIONS = (24, 20, 20)
"""Rotary angles of the temporal, height and width ids for heads of 128."""

VISION_IDS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
              "vision_start_token_id": "<|vision_start|>",
              "vision_end_token_id": "<|vision_end|>"}
"""Config field -> its token."""

PARTS = {
    "audio_adapter": "model.multi_modal_projector.",
    "audio_encoder": "model.audio_tower.",
    "vision_adapter": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "vision_encoder": "model.visual.",
    "language_model": ("model.language_model.", "lm_head."),
}
"""Part -> how the names of its parameters begin; the first that fits holds a parameter."""


class OmniModel(asr.Recogniser):
    """``Recogniser`` with ``model.visual`` and a language model of three position axes.

    A batch has ``input_ids``, ``labels`` ``(rows, length)``; ``position_ids`` ``(4, rows, length)``
    (place within the sample, temporal, height, width; a row may hold several samples, each of which
    begins at place 0 and sees itself alone); the encoder's ``input_features``, ``chunk_lengths``,
    ``clip_chunks``; the tower's ``pixel_values`` ``(patches, channels * frames * side * side)`` and
    ``grid_thw`` ``(pictures and films, 3)``. Audio, pictures and films lie in the order of their
    tokens; a clip or picture beyond the last token is a dummy that keeps every module running on
    every rank.
    """

    def __init__(self, config: Qwen3ASRConfig):
        super().__init__(config)
        attention = {"attn_implementation": config._attn_implementation}
        self.model.visual = Qwen3VLVisionModel._from_config(
            Qwen3VLVisionConfig(**config.vision_config), **attention)
        self.model.language_model = Qwen3VLTextModel._from_config(three_axes(config), **attention)
        self.post_init()

    def encode_vision(self, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Merged tokens ``(tokens, d)`` of all pictures, and the same for each deepstack layer."""
        seen = self.model.visual(batch["pixel_values"], grid_thw=batch["grid_thw"])
        return seen.pooler_output, seen.deepstack_features

    def read(self, batch: dict[str, Tensor], ids: str = "input_ids",
             positions: str = "position_ids", **kwargs) -> tuple[Tensor, Tensor]:
        """Final hidden states ``(rows, length, d)``, and the projected audio; ValueError when the
        tokens of a modality are more than its data."""
        audio, (vision, deep) = self.encode_audio(batch), self.encode_vision(batch)
        tokens, config = batch[ids], self.config
        seen = (tokens == config.image_token_id) | (tokens == config.video_token_id)
        for name, needed, given in (("audio", (tokens == config.audio_token_id).sum(), len(audio)),
                                    ("picture", seen.sum(), len(vision))):
            if needed > given:
                raise ValueError(f"{int(needed)} {name} tokens with data for {given}")
        embeddings = self.embed(tokens, audio)
        embeddings = embeddings.masked_scatter(seen.unsqueeze(-1), vision.to(embeddings.dtype))
        # without a picture in the batch, the dummy's features keep their place in the graph
        count = int(seen.sum())
        unused = sum(part[count:].sum() for part in (vision, *deep)) + \
            audio[int((tokens == config.audio_token_id).sum()):].sum()
        hidden = self.model.language_model(
            inputs_embeds=embeddings + 0.0 * unused, position_ids=batch[positions],
            visual_pos_masks=seen, deepstack_visual_embeds=[part[:count] for part in deep],
            **kwargs).last_hidden_state
        return hidden, audio

    def target_loss(self, batch: dict[str, Tensor], with_ctc: bool = False
                    ) -> tuple[Tensor, Tensor | None]:
        """Summed cross-entropy over the targets of packed rows; and the CTC of the transcripts.

        A label lies at its own token; the state before it, of the same sample, predicts it (the
        first token of a sample is never a target).
        """
        hidden, audio = self.read(batch, use_cache=False, **of_samples(
            self.model.language_model, batch["position_ids"][0]))
        labels = batch["labels"][:, 1:]
        is_target = labels != -100
        loss = self.lm_head(hidden[:, :-1][is_target], labels[is_target])
        return loss, self.spoken_ctc(audio, batch) if with_ctc else None

    def spoken_ctc(self, audio: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """:meth:`Recogniser.ctc_loss` where the clips' transcripts come with the batch:
        ``clip_tokens`` ``(clips,)``, ``transcripts`` ids of all, ``transcript_lengths``
        ``(clips,)``, -1 for a clip without one."""
        lengths = batch["transcript_lengths"]
        spoken = (lengths >= 0).nonzero().squeeze(1).tolist()
        if not spoken:
            return 0.0 * self.ctc_logits(audio).sum()
        clips = torch.split(audio[:int(batch["clip_tokens"].sum())], batch["clip_tokens"].tolist())
        targets = torch.split(batch["transcripts"], lengths.clamp(min=0).tolist())
        return packed_ctc(self.ctc_logits(torch.cat([clips[i] for i in spoken])),
                          batch["clip_tokens"][spoken], [targets[i] for i in spoken],
                          blank=self.config.pad_token_id)

    @torch.inference_mode()
    def answer(self, batch: dict[str, Tensor], max_new_tokens: int) -> Tensor:
        """The likeliest token after each: ids ``(rows, new)``, padded behind an end.

        ``batch`` holds ``prompt_ids``, ``prompt_mask`` ``(rows, length)``, padded on the left, and
        ``prompt_positions`` ``(3, rows, length)``.
        """
        cache, mask = DynamicCache(config=self.model.language_model.config), batch["prompt_mask"]
        hidden, _ = self.read(batch, "prompt_ids", "prompt_positions", attention_mask=mask,
                              past_key_values=cache, use_cache=True)
        # not the greatest of all: a film's sound may end before its rows and columns do
        places = batch["prompt_positions"][:, :, -1].amax(0)
        ends = torch.tensor(self.config.eos_token_id, device=mask.device)
        ended = torch.zeros_like(places, dtype=torch.bool)
        tokens: list[Tensor] = []
        while True:
            token = self.lm_head(hidden[:, -1]).argmax(-1)
            tokens.append(token.masked_fill(ended, self.config.pad_token_id))
            ended = ended | torch.isin(token, ends)
            if ended.all() or len(tokens) == max_new_tokens:
                return torch.stack(tokens, 1)
            places, mask = places + 1, torch.nn.functional.pad(mask, (0, 1), value=1)
            hidden = self.model.language_model(
                input_ids=token[:, None], position_ids=places[None, :, None].expand(3, -1, -1),
                attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state


def part_of(name: str) -> str:
    """The part of :data:`PARTS` that a parameter belongs to."""
    return next(part for part, begin in PARTS.items() if name.startswith(begin))


def three_axes(config: Qwen3ASRConfig) -> Qwen3VLTextConfig:
    """A recogniser's language model as Qwen3-VL's text config; the angles stay as they are."""
    text = config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
             "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias",
             "attention_dropout", "pad_token_id")
    rope = dict(text.rope_parameters) | {"mrope_section": list(config.mrope_section),
                                         "mrope_interleaved": True}
    return Qwen3VLTextConfig(**{name: getattr(text, name) for name in names}, rope_parameters=rope)


def sections(head_dim: int) -> list[int]:
    """24 / 20 / 20 of 64 rotary angles, in proportion for other heads."""
    angles = head_dim // 2
    side = round(angles * RELEASED_SECTIONS[1] / sum(RELEASED_SECTIONS))
    return [angles - 2 * side, side, side]


def build(base: asr.Recogniser, processor: Qwen3ASRProcessor, vision: dict | Qwen3VLVisionModel,
          seed: int, mrope_section: list[int] | None = None) -> OmniModel:
    """A recogniser with a vision tower.

    ``vision``: a tower whose output is as wide as the language model; or for one of random weights
    fields of ``Qwen3VLVisionConfig`` (``vision_config`` of configs/model/*.yaml). The vision tokens
    are added to the processor's tokenizer, and the embeddings grow, where they lack them.
    UserError for a tower with more deepstack layers than the language model has layers to take
    them.
    """
    tokenizer = add_vision_tokens(processor.tokenizer)
    if len(tokenizer) > base.config.text_config.vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = Qwen3ASRConfig(**base.config.to_dict())
    config._attn_implementation = base.config._attn_implementation
    for field, token in VISION_IDS.items():
        setattr(config, field, tokenizer.convert_tokens_to_ids(token))
    fields = vision if isinstance(vision, dict) else vision.config.to_diff_dict()
    deep, layers = len(fields["deepstack_visual_indexes"]), config.text_config.num_hidden_layers
    if deep > layers:
        raise UserError(f"the vision tower has {deep} deepstack layers, the language model "
                        f"{layers} layers to take them")
    config.vision_config = fields | {"out_hidden_size": config.text_config.hidden_size}
    config.mrope_section = list(mrope_section or sections(config.text_config.head_dim))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OmniModel(config)
    missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
    if unexpected or any(not name.startswith("model.visual.") for name in missing):
        raise UserError("init_from: the recogniser's weights do not fit the omni model: "
                        f"{(unexpected or missing)[0]}")
    if not isinstance(vision, dict):
        model.model.visual.load_state_dict(vision.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    return adapt(model)


def adapt(model: OmniModel) -> OmniModel:
    """Batched encoder windows and a head that computes its targets' loss."""
    model.lm_head.__class__ = TargetHead
    batch_windows(model.model.audio_tower)
    split_samples(model.model.language_model)
    return model


def is_omni(folder: str) -> bool:
    """Whether a checkpoint folder has a vision tower."""
    if not (Path(folder) / "config.json").is_file():
        return False
    config = Qwen3ASRConfig.from_pretrained(folder)
    return getattr(config, "vision_config", None) is not None


def load(folder: str, attn_implementation: str = "sdpa") -> tuple[OmniModel, Qwen3ASRProcessor]:
    """Model (float32) and processor from ``RUN/model`` of stage=omni."""
    processor = Qwen3ASRProcessor.from_pretrained(folder)
    model = load_whole(OmniModel, folder, attn_implementation=attn_implementation)
    return adapt(model), processor
