"""AuT: the released audio encoder under an attention decoder, as a recogniser of its own.

Stage 1 of Qwen3-ASR's pipeline (Qwen3-Omni report, section on AuT) trains the encoder so. The
encoder is transformers' with batched windows, and is saved as such: ``RUN/model`` opens with
``Qwen3ASREncoder.from_pretrained``. The decoder lies in ``RUN/model/decoder``.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3ASREncoder, Qwen3ASREncoderConfig, Qwen3ASRProcessor

from qwen3asr_train.errors import UserError
from qwen3asr_train.models.aut_decoder import AuTDecoder, DecoderConfig, Memory
from qwen3asr_train.models.encoder import WindowedEncoder, batch_windows, tokens_of_chunks
from qwen3asr_train.models.folder import load_whole, opening, read_config, save_as
from qwen3asr_train.objectives.ctc import packed_ctc, transcripts


class AuT(nn.Module):
    """Encoder, decoder, and a linear layer for CTC on the encoder's tokens.

    Batches are those of :func:`qwen3asr_train.data.collate.collate`, with prompts that hold no
    audio: the decoder finds the audio by cross-attention.
    """

    def __init__(self, encoder: Qwen3ASREncoder, config: DecoderConfig,
                 processor: Qwen3ASRProcessor):
        super().__init__()
        ids = processor.tokenizer.convert_tokens_to_ids
        self.encoder = batch_windows(encoder)
        self.decoder = AuTDecoder(config)
        self.ctc_head = nn.Linear(config.encoder_dim, config.vocab_size)
        nn.init.normal_(self.ctc_head.weight, std=config.initializer_range)
        nn.init.zeros_(self.ctc_head.bias)
        self.marker_id, self.blank_id = ids("<asr_text>"), processor.audio_token_id
        self.end_ids = (ids("<|endoftext|>"), ids("<|im_end|>"))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.ctc_head.weight.device

    def encode_audio(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Packed encoder tokens ``(tokens, encoder_dim)`` and how many each clip has ``(clips,)``.
        """
        tokens = self.encoder(
            batch["input_features"], chunk_lengths=batch["chunk_lengths"],
            clip_chunks=batch["clip_chunks"], window_chunks=batch.get("window_chunks"))
        counts = tokens_of_chunks(batch["chunk_lengths"]).split(batch["clip_chunks"].tolist())
        return tokens.last_hidden_state, torch.stack([count.sum() for count in counts])

    def target_loss(self, batch: dict[str, Tensor], with_ctc: bool = False
                    ) -> tuple[Tensor, Tensor | None]:
        """Cross-entropy summed over target tokens; and CTC summed over clips, or None."""
        tokens, lengths = self.encode_audio(batch)
        hidden = self.decoder(batch["input_ids"], Memory.from_packed(tokens, lengths))
        labels = batch["labels"][:, 1:]
        is_target = labels != -100
        loss = self.decoder.head(hidden[:, :-1][is_target], labels[is_target])
        if not with_ctc:
            return loss, None
        targets = transcripts(batch["labels"], self.marker_id, self.end_ids[-1])
        return loss, packed_ctc(self.ctc_head(tokens), lengths, targets, blank=self.blank_id)

    def greedy(self, batch: dict[str, Tensor], max_new_tokens: int, synced: bool = False
               ) -> tuple[Tensor, Tensor]:
        """The likeliest token after each, ids and their log-probabilities ``(clips, new)``.

        ``batch`` holds ``prompt_ids`` and ``prompt_mask``, padded on the left. After a clip's end
        come further ends. ``synced``: step on until every rank has finished, as ZeRO-3 needs.
        """
        memory = Memory.from_packed(*self.encode_audio(batch))
        return self.decode(memory, batch["prompt_ids"], batch["prompt_mask"], max_new_tokens,
                           synced)

    def decode(self, memory: Memory, prompt_ids: Tensor, prompt_mask: Tensor, max_new_tokens: int,
               synced: bool = False) -> tuple[Tensor, Tensor]:
        """:meth:`greedy` from encoder tokens that are there already."""
        caches, is_real = self.decoder.caches(memory), prompt_mask.bool()
        ends = torch.tensor(self.end_ids, device=self.device)
        finished = torch.zeros(len(prompt_ids), dtype=torch.bool, device=self.device)
        places = (is_real.cumsum(1) - 1).clamp_min(0)
        for at in range(prompt_ids.shape[1]):
            seen = is_real[:, :at + 1].clone()
            seen[:, at] = True  # padding sees itself: a row without any key has no softmax
            logits = self.decoder.step(prompt_ids[:, at], places[:, at], caches, seen, memory.mask)
        found, scores, place = [], [], places[:, -1]
        for _ in range(max_new_tokens):
            score, token = logits.float().log_softmax(-1).max(-1)
            found.append(token.masked_fill(finished, self.end_ids[-1]))
            scores.append(score.masked_fill(finished, 0.0))
            finished = finished | torch.isin(token, ends)
            if bool(finished.all()) and not synced:
                break
            place = place + 1
            is_real = torch.nn.functional.pad(is_real, (0, 1), value=True)
            logits = self.decoder.step(found[-1], place, caches, is_real, memory.mask)
        return torch.stack(found, 1), torch.stack(scores, 1)


def build(preset: dict, processor: Qwen3ASRProcessor, seed: int,
          attn_implementation: str = "sdpa") -> AuT:
    """An AuT with random weights; ``preset``: ``audio_config`` and ``aut_decoder`` of the config's
    model group."""
    config = Qwen3ASREncoderConfig(**preset["audio_config"],
                                   attn_implementation=attn_implementation)
    decoder = DecoderConfig(encoder_dim=config.d_model, vocab_size=len(processor.tokenizer),
                            **preset["aut_decoder"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AuT(Qwen3ASREncoder(config), decoder, processor)


def load(folder: str, attn_implementation: str = "sdpa", field: str = "init_from"
         ) -> tuple[AuT, Qwen3ASRProcessor]:
    """Model (float32) and processor from a folder that :func:`save` wrote, and that ``field`` of
    the config names; UserError for any other."""
    decoder = Path(folder) / "decoder"
    with opening(folder, field=field):
        if not (decoder / "config.json").is_file():
            raise UserError(f"{field}={folder}: an encoder alone, without the decoder that writes "
                            "text in RUN/model of stage=aut")
        processor = Qwen3ASRProcessor.from_pretrained(folder)
        encoder = load_whole(Qwen3ASREncoder, folder, field,
                             attn_implementation=attn_implementation)
    config = DecoderConfig(**json.loads((decoder / "config.json").read_text()))
    model = AuT(encoder, config, processor)
    weights = load_file(decoder / "model.safetensors")
    if config.tie_embeddings:
        weights["decoder.head.weight"] = weights["decoder.embed_tokens.weight"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith("encoder.") for name in missing):
        raise UserError(f"{decoder}: weights and config.json do not belong together")
    return model, processor


def save(model: AuT, processor: Qwen3ASRProcessor, folder: Path,
         state_dict: dict[str, Tensor] | None = None) -> None:
    """Write the encoder in transformers' format, the decoder below it, and the processor."""
    weights = model.state_dict() if state_dict is None else state_dict
    encoder = {name.removeprefix("encoder."): tensor for name, tensor in weights.items()
               if name.startswith("encoder.")}
    save_as(Qwen3ASREncoder, model.encoder, folder, encoder)
    processor.save_pretrained(folder)
    rest = {name: tensor.contiguous() for name, tensor in weights.items()
            if not name.startswith("encoder.")}
    if model.decoder.config.tie_embeddings:
        del rest["decoder.head.weight"]
    (folder / "decoder").mkdir(exist_ok=True)
    save_file(rest, folder / "decoder" / "model.safetensors")
    (folder / "decoder" / "config.json").write_text(
        json.dumps(asdict(model.decoder.config), indent=2) + "\n")


def load_encoder(folder: str, attn_implementation: str = "sdpa") -> WindowedEncoder:
    """The encoder of ``folder``: an AuT's, a recogniser's, or one by itself; or a hub name."""
    with opening(folder, field="init_from_encoder"):
        kind = read_config(folder).model_type
        if kind == "qwen3_asr":
            from transformers import Qwen3ASRForConditionalGeneration

            whole = load_whole(Qwen3ASRForConditionalGeneration, folder, "init_from_encoder",
                               attn_implementation=attn_implementation)
            return batch_windows(whole.model.audio_tower)
        if kind != Qwen3ASREncoderConfig.model_type:
            raise UserError(f"init_from_encoder={folder}: a {kind}, not a Qwen3-ASR encoder")
        return batch_windows(load_whole(Qwen3ASREncoder, folder, "init_from_encoder",
                                        attn_implementation=attn_implementation))
