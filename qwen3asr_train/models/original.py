"""Checkpoints in the layout that Qwen3-ASR was published in, which PyPI's qwen-asr and vLLM read.

The model is that of transformers' classes under other names: weights of a ``thinker``, the
projector within the encoder, a config within a config, and Whisper's feature extractor, whose
features are the same. Its language model rotates by positions on three axes, which are equal
without pictures: that is the rotation on one.

Source: qwen-asr 0.0.6, ``core/transformers_backend``; vLLM's ``models/qwen3_asr.py`` reads the same
names, and transformers converts the released checkpoints alike (``convert_qwen3_asr_to_hf.py``).
"""

import json
import re
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3ASRConfig,
    Qwen3ASRProcessor,
)

from qwen3asr_train.data.features import audio_tokens
from qwen3asr_train.evaluation.languages import LANGUAGE_TABLE
from qwen3asr_train.models.tokenizer import AUDIO_TOKENS, CHAT_TEMPLATE, make_processor

_AUDIO = ("num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model",
          "dropout", "attention_dropout", "activation_function", "activation_dropout",
          "scale_embedding", "initializer_range", "n_window", "n_window_infer", "output_dim",
          "downsample_hidden_size")
_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
         "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias",
         "attention_dropout", "tie_word_embeddings")
_TOKENS = {"audio": "<|audio_pad|>", "audio_start": "<|audio_start|>",
           "audio_end": "<|audio_end|>"}
_THIRD = 20 / 128
"""Of a head, the part that rotates by each of the two further axes in the released models."""

_FEATURES = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128,
             "sampling_rate": 16000, "hop_length": 160, "n_fft": 400, "chunk_length": 30,
             "padding_side": "right", "padding_value": 0.0, "dither": 0.0,
             "return_attention_mask": True, "processor_class": "Qwen3ASRProcessor"}
_NAMES = {
    "thinker.audio_tower.proj1.": "model.multi_modal_projector.linear_1.",
    "thinker.audio_tower.proj2.": "model.multi_modal_projector.linear_2.",
    "thinker.audio_tower.": "model.audio_tower.",
    "thinker.model.": "model.language_model.",
}


def is_original(config: dict) -> bool:
    """Whether a config.json has this layout. transformers reads it as one without sizes, and would
    begin with random weights of its default ones."""
    return config.get("model_type") == "qwen3_asr" and "thinker_config" in config


def key_mapping(config: dict) -> dict[str, str]:
    """How ``from_pretrained`` finds the weights: regular expression -> what stands in its place."""
    return {f"^{re.escape(old)}": new for old, new in _prefixes(config).items()}


def _prefixes(config: dict) -> dict[str, str]:
    """How names of weights begin -> how they do in transformers; the first that fits counts."""
    return _NAMES | {"thinker.lm_head.": "score." if _aligns(config) else "lm_head."}


def to_transformers(config: dict, tokenizer: PreTrainedTokenizerBase) -> Qwen3ASRConfig:
    """A config.json of this layout -> transformers' config of the model; ValueError for a rotation
    that is stretched."""
    thinker = config["thinker_config"]
    audio, text = ({name: thinker[part][name] for name in names if name in thinker[part]}
                   for part, names in (("audio_config", _AUDIO), ("text_config", _TEXT)))
    scaling = thinker["text_config"].get("rope_scaling") or {}
    if (kind := scaling.get("rope_type", "default")) != "default":
        raise ValueError(f"rope_type={kind} in its config.json: only default is read")
    text["rope_parameters"] = {"rope_type": kind,
                               "rope_theta": thinker["text_config"]["rope_theta"]}
    # places in a chunk: the sinusoids begin anew in each
    audio["max_position_embeddings"] = audio_tokens(2 * audio["n_window"])
    ids = tokenizer.convert_tokens_to_ids
    made = Qwen3ASRConfig(
        audio_config={"model_type": "qwen3_asr_encoder", **audio},
        text_config={"model_type": "qwen3", **text},
        audio_token_id=thinker["audio_token_id"],
        timestamp_token_id=ids("<timestamp>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[ids("<|endoftext|>"), ids("<|im_end|>")],
        tie_word_embeddings=text.get("tie_word_embeddings", False),
        architectures=["Qwen3ASRForTokenClassification" if _aligns(config) else
                       "Qwen3ASRForConditionalGeneration"])
    if _aligns(config):
        made.num_labels = thinker["classify_num"]
    return made


def from_transformers(config: Qwen3ASRConfig, processor: Qwen3ASRProcessor, aligner: bool) -> dict:
    """transformers' config -> config.json of this layout."""
    audio, text = ({name: value for name in names if (value := getattr(part, name)) is not None}
                   for part, names in ((config.audio_config, _AUDIO), (config.text_config, _TEXT)))
    third = round(_THIRD * text["head_dim"])
    text |= {"model_type": "qwen3_asr_text",
             "rope_theta": config.text_config.rope_parameters["rope_theta"],
             "rope_scaling": {"rope_type": "default", "mrope_interleaved": True,
                              "interleaved": True, "mrope_section": [
                                  text["head_dim"] // 2 - 2 * third, third, third]}}
    ids = processor.tokenizer.convert_tokens_to_ids
    thinker = {"model_type": "qwen3_asr_thinker",
               "audio_config": {"model_type": "qwen3_asr_audio_encoder", **audio},
               "text_config": text, "initializer_range": config.initializer_range,
               **{f"{name}_token_id": ids(token) for name, token in _TOKENS.items()}}
    made = {"architectures": ["Qwen3ASRForConditionalGeneration"], "model_type": "qwen3_asr",
            "support_languages": list(LANGUAGE_TABLE), "thinker_config": thinker}
    if aligner:
        thinker |= {"model_type": "qwen3_forced_aligner", "classify_num": config.num_labels}
        made |= {"timestamp_token_id": config.timestamp_token_id,
                 "timestamp_segment_time": processor.timestamp_segment_time}
    return made


def save(model: PreTrainedModel, processor: Qwen3ASRProcessor, folder: Path, dtype: torch.dtype,
         state_dict: dict[str, Tensor] | None = None) -> None:
    """Write a recogniser or forced aligner as a folder that qwen-asr and vLLM open.

    ``state_dict``: its weights where they are elsewhere, as under ZeRO-3.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aligner = hasattr(model, "score")
    config = from_transformers(model.config, processor, aligner)
    weights = {}
    for name, value in (model.state_dict() if state_dict is None else state_dict).items():
        old, new = next(pair for pair in _prefixes(config).items() if name.startswith(pair[1]))
        weights[old + name.removeprefix(new)] = value.to(dtype, copy=True)
    save_torch_state_dict(weights, folder)
    files = {"config.json": config | {"dtype": str(dtype).removeprefix("torch.")},
             "generation_config.json": {"eos_token_id": model.config.eos_token_id,
                                        "pad_token_id": model.config.pad_token_id,
                                        "do_sample": False},
             "preprocessor_config.json": _FEATURES}
    processor.tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # transformers 4 wants names here, where 5 writes a list
    files["tokenizer_config.json"] = settings | AUDIO_TOKENS | {
        "extra_special_tokens": AUDIO_TOKENS, "processor_class": "Qwen3ASRProcessor"}
    files["chat_template.json"] = {"chat_template": CHAT_TEMPLATE}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load_tokenizer(folder: str) -> Qwen2Tokenizer:
    """The tokenizer, with the names by which the processor asks it for tokens."""
    return Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=AUDIO_TOKENS)


def load_processor(folder: str, config: dict) -> Qwen3ASRProcessor:
    """transformers' processor; an aligner's knows how long a class of times is."""
    processor = make_processor(load_tokenizer(folder))
    if milliseconds := config.get("timestamp_segment_time"):
        processor.timestamp_segment_time = milliseconds
    return processor


def _aligns(config: dict) -> bool:
    """Whether it is a forced aligner's."""
    return "classify_num" in config["thinker_config"]
