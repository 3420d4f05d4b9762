"""Makes the checkpoints beside it with PyPI's qwen-asr, and writes down what that answers.

qwen-asr 0.0.6 pins transformers 4.57.6, so it wants an environment of its own:

    python -m venv other && other/bin/pip install torch qwen-asr==0.0.6
    other/bin/python tests/models/qwen_asr/make.py

The audio is shorter than a window of the encoder: without FlashAttention qwen-asr does not cut
windows. ``expected.json``, of each model: the ids of its prompt; the logits behind the prompt's
last place, and the tokens that follow; of the aligner, the logits at its slots.
"""

import json
from pathlib import Path

import numpy as np
import torch
from qwen_asr.core.transformers_backend import (
    Qwen3ASRConfig,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
)
from transformers import AddedToken, Qwen2Tokenizer, WhisperFeatureExtractor
from transformers.models.qwen2.tokenization_qwen2 import bytes_to_unicode

HERE = Path(__file__).parent
SECONDS = 3.3
WIDTH = 16
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>",
           "<|audio_pad|>")
MARKERS = ("<asr_text>", "<timestamp>")
AUDIO = "<|audio_start|><|audio_pad|><|audio_end|>"
QUESTION = ("<|im_start|>system\nNames: Ada<|im_end|>\n"
            f"<|im_start|>user\n{AUDIO}<|im_end|>\n<|im_start|>assistant\n")
SLOTS = AUDIO + "".join(f"{word}<timestamp><timestamp>" for word in ("open", "the", "door"))


def waveform() -> np.ndarray:
    """Noise and a tone, as the test makes them again."""
    time = np.arange(int(SECONDS * 16000)) / 16000
    noise = np.random.default_rng(0).normal(0, 0.05, len(time))
    return (noise + 0.3 * np.sin(2 * np.pi * 300 * time * (1 + time / 4))).astype(np.float32)


def tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Bytes alone, without merges."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {letter: i for i, letter in enumerate(bytes_to_unicode().values())}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = Qwen2Tokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token=None, bos_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens={"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>",
                              "audio_eos_token": "<|audio_end|>"})
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    return made


def make(name: str, tied: bool, classes: int = 0) -> dict:
    """One checkpoint with random weights, and what it answers. ``classes``: of times, of an
    aligner."""
    folder = HERE / name
    processor = Qwen3ASRProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer(folder))
    ids = processor.tokenizer.convert_tokens_to_ids
    kind = {"classify_num": classes, "model_type": "qwen3_forced_aligner"} if classes else {}
    audio = dict(num_mel_bins=128, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32,
                 d_model=WIDTH, n_window=50, n_window_infer=800, output_dim=WIDTH,
                 downsample_hidden_size=4)
    text = dict(vocab_size=len(processor.tokenizer), hidden_size=WIDTH, intermediate_size=32,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=tied,
                rope_scaling={"rope_type": "default", "mrope_section": [2, 1, 1],
                              "mrope_interleaved": True, "interleaved": True})
    config = Qwen3ASRConfig(
        thinker_config=dict(audio_config=audio, text_config=text, **kind,
                            audio_token_id=ids("<|audio_pad|>"),
                            audio_start_token_id=ids("<|audio_start|>")),
        support_languages=["English"])
    if classes:
        config.timestamp_token_id, config.timestamp_segment_time = ids("<timestamp>"), 80
    torch.manual_seed(0)
    model = Qwen3ASRForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    if tied:
        model.thinker.lm_head.weight = model.thinker.model.embed_tokens.weight
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if classes:  # save_pretrained writes the class's own, with which it could not be opened
        written = json.loads((folder / "config.json").read_text())
        written["thinker_config"]["model_type"] = kind["model_type"]
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return answers(folder, SLOTS if classes else QUESTION)


@torch.inference_mode()
def answers(folder: Path, text: str) -> dict:
    """What qwen-asr answers with a checkpoint that it opens anew."""
    model = Qwen3ASRForConditionalGeneration.from_pretrained(folder).eval()
    processor = Qwen3ASRProcessor.from_pretrained(folder)
    inputs = processor(text=[text], audio=[waveform()], return_tensors="pt")
    ids, logits = inputs["input_ids"][0], model.thinker(**inputs).logits[0]
    if text == SLOTS:
        slot = processor.tokenizer.convert_tokens_to_ids("<timestamp>")
        return {"ids": ids.tolist(), "logits": logits[ids == slot].tolist()}
    tokens = model.generate(**inputs, max_new_tokens=12).sequences[0, len(ids):]
    return {"ids": ids.tolist(), "logits": logits[-1].tolist(), "tokens": tokens.tolist()}


def main() -> None:
    """All of them."""
    (HERE / "expected.json").write_text(json.dumps(
        {"tied": make("tied", tied=True), "untied": make("untied", tied=False),
         "aligner": make("aligner", tied=False, classes=50)}) + "\n")


if __name__ == "__main__":
    main()
