"""Building, loading and saving the recogniser: transformers' classes with two modules replaced."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Qwen3ForCausalLM,
)

from qwen3asr_train.errors import UserError
from qwen3asr_train.models.encoder import WindowedEncoder, batch_windows
from qwen3asr_train.models.folder import (
    greedy,
    load_processor,
    load_whole,
    opening,
    refuse_other_kinds,
    save_as,
)
from qwen3asr_train.models.head import TargetHead
from qwen3asr_train.models.own_tokens import with_own_tokens
from qwen3asr_train.models.packed import of_samples, sample_lengths, split_samples
from qwen3asr_train.objectives.ctc import packed_ctc, transcripts, unpacked

log = logging.getLogger(__name__)


class Recogniser(Qwen3ASRForConditionalGeneration):
    """``Qwen3ASRForConditionalGeneration`` with batched encoder windows and a loss at targets only.

    Made by :func:`adapt`; its state dict, config and checkpoint folder are transformers' own.
    """

    def encode_audio(self, batch: dict[str, Tensor]) -> Tensor:
        """Projected audio tokens of all clips, packed ``(tokens, d)``."""
        encoded = self.model.audio_tower(
            batch["input_features"], chunk_lengths=batch["chunk_lengths"],
            clip_chunks=batch["clip_chunks"],
            window_chunks=batch.get("window_chunks")).last_hidden_state
        return self.model.multi_modal_projector(encoded)

    def embed(self, input_ids: Tensor, audio: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Token embeddings ``(clips, length, d)`` with ``audio`` in place of its pad tokens; only
        where ``prompts`` ``(clips, length)`` is True, if given (an answer may hold any token)."""
        embeddings = self.model.language_model.embed_tokens(input_ids)
        places = input_ids == self.config.audio_token_id
        if prompts is not None:
            places = places & prompts
        return embeddings.masked_scatter(places.unsqueeze(-1), audio.to(embeddings.dtype))

    def hidden(self, batch: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        """The language model's last states ``(rows, length, d)`` over the rows of a batch."""
        places = batch.get("position_ids")
        return self.model.language_model(
            inputs_embeds=embeddings, position_ids=places, use_cache=False,
            **of_samples(self.model.language_model, places)).last_hidden_state

    def target_loss(self, batch: dict[str, Tensor], with_ctc: bool = False
                    ) -> tuple[Tensor, Tensor | None]:
        """Summed cross-entropy over the target tokens of a batch, a float32 scalar; and the CTC.

        ``batch`` as :func:`qwen3asr_train.data.collate.collate` makes it: ``input_ids`` and
        ``labels`` ``(rows, length)``, padded on the right, labels -100 wherever there is no
        target; ``input_features``, ``chunk_lengths``, ``clip_chunks`` of the encoder; and where
        samples share rows, ``position_ids`` ``(rows, length)``, which begin at 0 for each of them:
        transformers makes the block-diagonal mask of these. Padding on the right under causal
        attention needs no mask: no target sees it.

        With ``own_tokens``, the model's own stand in place of some targets, when the next is to be
        told: :func:`qwen3asr_train.models.own_tokens.with_own_tokens`.

        ``with_ctc``: also return :meth:`ctc_loss` of the same audio, else None.
        """
        audio = self.encode_audio(batch)
        embeddings = self.embed(batch["input_ids"], audio)
        if "own_tokens" in batch:
            embeddings = self.embed(with_own_tokens(self, batch, embeddings), audio)
        hidden = self.hidden(batch, embeddings)
        labels = batch["labels"][:, 1:]
        is_target = labels != -100
        loss = self.lm_head(hidden[:, :-1][is_target], labels[is_target])
        return loss, self.ctc_loss(audio, batch) if with_ctc else None

    def ctc_loss(self, audio: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """CTC of the transcript through the language model's own norm and head, summed over clips.

        With tied embeddings it pulls each audio token towards the embedding of what is said there,
        so a model with random weights finds the alignment in a few hundred steps instead of
        thousands. The blank is the padding token, which is never a target. It needs all logits of
        the audio positions: for small vocabularies.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        if "position_ids" in batch:
            ids, labels = unpacked(ids, labels, sample_lengths(batch["position_ids"]))
        targets = transcripts(labels, self.config.asr_text_token_id,
                              self.config.eos_token_id[-1])
        lengths = (ids == self.config.audio_token_id).sum(1)
        if not lengths.any():  # text alone
            return 0.0 * self.ctc_logits(audio).sum()  # every rank uses the same parameters
        return packed_ctc(self.ctc_logits(audio), lengths, targets, blank=self.config.pad_token_id)

    def ctc_logits(self, audio: Tensor) -> Tensor:
        """Of audio tokens ``(tokens, d)`` by the language model's norm and head. Trained through
        the head alone, they became fifteen times as long as embeddings."""
        return self.lm_head(self.model.language_model.norm(audio))

    def greedy(self, batch: dict[str, Tensor], max_new_tokens: int, synced: bool = False
               ) -> tuple[Tensor, Tensor]:
        """The likeliest token after each, by transformers' ``generate``: ids and their
        log-probabilities ``(clips, new)``.

        ``batch`` holds ``prompt_ids`` and ``prompt_mask``, padded on the left. ``synced``: step on
        until every rank has finished, as ZeRO-3 needs. The audio is embedded once here;
        ``generate`` would keep it as a model input.
        """
        embeddings = self.embed(batch["prompt_ids"], self.encode_audio(batch))
        scores: list[Tensor] = []

        def keep_score(_, logits: Tensor) -> Tensor:
            # output_logits would keep the whole vocabulary of every step
            scores.append(logits.float().log_softmax(-1).amax(-1))
            return logits

        tokens = self.generate(
            inputs_embeds=embeddings, attention_mask=batch["prompt_mask"], do_sample=False,
            max_new_tokens=max_new_tokens, synced_gpus=synced, logits_processor=[keep_score])
        return tokens, torch.stack(scores[:tokens.shape[1]], 1)


def adapt(model: Qwen3ASRForConditionalGeneration) -> Recogniser:
    """Turn a transformers model into a :class:`Recogniser` in place; weights and names stay."""
    model.__class__ = Recogniser
    model.lm_head.__class__ = TargetHead
    batch_windows(model.model.audio_tower)
    split_samples(model.model.language_model)
    # padding is CTC's blank, and so among text in place of audio; real padding reaches no target
    model.model.language_model.embed_tokens.padding_idx = None
    return model


def build(preset: dict, processor: Qwen3ASRProcessor, seed: int,
          attn_implementation: str = "sdpa", encoder: WindowedEncoder | None = None,
          language_model: Qwen3ForCausalLM | None = None) -> Recogniser:
    """A model with random weights, except for ``encoder`` and ``language_model`` where given.

    ``preset``: ``audio_config`` and ``text_config`` of ``Qwen3ASRConfig`` (configs/model/*.yaml);
    the vocabulary size and the special tokens' ids are the processor's, the projector's width is
    the language model's. The sizes of what is given replace those of the preset; a language model's
    embeddings get new rows for tokens of the processor that they have none for.
    """
    tokenizer = processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    text = dict(preset["text_config"] if language_model is None else
                language_model.config.to_dict())
    text["vocab_size"] = max(text.get("vocab_size") or 0, len(tokenizer))
    audio = preset["audio_config"] if encoder is None else encoder.config.to_diff_dict()
    audio = dict(audio, output_dim=text["hidden_size"])
    config = Qwen3ASRConfig(
        audio_config=dict(audio, model_type="qwen3_asr_encoder"),
        text_config=dict(text, model_type="qwen3", pad_token_id=tokenizer.pad_token_id),
        audio_token_id=processor.audio_token_id,
        timestamp_token_id=ids("<timestamp>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[ids("<|endoftext|>"), ids("<|im_end|>")],
        asr_text_token_id=ids("<asr_text>"),
        initializer_range=text["initializer_range"],
        tie_word_embeddings=text["tie_word_embeddings"],
        attn_implementation=attn_implementation,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ASRForConditionalGeneration(config)
        if language_model is not None:
            language_model.resize_token_embeddings(text["vocab_size"], mean_resizing=False)
    if language_model is not None:
        model.model.language_model.load_state_dict(language_model.model.state_dict())
        model.lm_head.load_state_dict(language_model.lm_head.state_dict())
    if encoder is not None:
        model.model.audio_tower.load_state_dict(encoder.state_dict())
    model.generation_config = greedy(config)
    return adapt(model)


def replace_encoder(model: Recogniser, encoder: WindowedEncoder) -> None:
    """Put ``encoder`` in place of the model's own; the projector stays.

    UserError for one of another width or another number of mel bins; its depth may be another.
    """
    own = model.model.audio_tower.config
    for field in ("d_model", "num_mel_bins"):
        theirs, ours = getattr(encoder.config, field), getattr(own, field)
        if theirs != ours:
            raise UserError(f"init_from_encoder: its {field} is {theirs}, that of the encoder of "
                            f"init_from, whose place it is to take, {ours}")
    encoder.config.output_dim = own.output_dim
    model.config.audio_config = encoder.config
    model.model.audio_tower = encoder


def load(folder: str, attn_implementation: str = "sdpa") -> tuple[Recogniser, Qwen3ASRProcessor]:
    """Model (float32) and processor from a checkpoint folder or a hub name."""
    with opening(folder):
        refuse_other_kinds(folder)
        processor = load_processor(folder)
        model = load_whole(Qwen3ASRForConditionalGeneration, folder,
                           attn_implementation=attn_implementation)
    if getattr(model.config, "vision_config", None) is not None:
        log.info("init_from=%s: an omni model; its vision tower stays behind", folder)
        del model.config.vision_config
    # the released configs lack it
    model.config.asr_text_token_id = processor.tokenizer.convert_tokens_to_ids("<asr_text>")
    return adapt(model), processor


def save(model: nn.Module, processor: Qwen3ASRProcessor, folder: Path,
         state_dict: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder that transformers' ``from_pretrained`` opens."""
    save_as(Qwen3ASRForConditionalGeneration, model, folder, state_dict)
    processor.save_pretrained(folder)
