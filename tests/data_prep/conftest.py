"""Tiny checkpoints with random weights, of each kind that can label audio."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from qwen3asr_train.models import asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

LETTERS = ["<s>", "</s>", "<unk>", *"abcdefghijklmnopq"]


def save_whisper(folder: Path) -> None:
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|tl|>",
               "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *special]
    ids = {name: number for number, name in enumerate(names)}
    tokenizer = transformers.WhisperTokenizer(vocab=ids, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    end = ids["<|endoftext|>"]
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
        vocab_size=len(names) + 51, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_source_positions=100, max_target_positions=24, init_std=0.5,
        pad_token_id=end, bos_token_id=end, eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"]))
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True, lang_to_id={name: ids[name] for name in special[2:5]},
        task_to_id={"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"], begin_suppress_tokens=[end],
        # One byte each: no broken UTF-8; and nothing above the timestamps' beginning.
        suppress_tokens=[i for i, name in enumerate(names) if not ("!" <= name <= "~" or i == end)]
        + list(range(len(names), len(names) + 51)),
        max_length=24, pad_token_id=end, eos_token_id=end, bos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"])
    model.save_pretrained(folder)
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(chunk_length=2),
                                  tokenizer).save_pretrained(folder)


def save_wav2vec2(folder: Path, norm: str = "layer", head: bool = True) -> None:
    folder.mkdir()
    names = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnop"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,) * 7, num_conv_pos_embeddings=4, pad_token_id=0,
        num_conv_pos_embedding_groups=2, feat_extract_norm=norm, initializer_range=1.0,
        do_stable_layer_norm=norm == "layer")
    torch.manual_seed(0)
    model = (transformers.Wav2Vec2ForCTC if head else transformers.Wav2Vec2Model)(config)
    if head:
        model.lm_head.bias.data[:5] = torch.tensor([2.0, -99, -99, -99, 2.0])
    model.save_pretrained(folder)
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer"),
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)


def save_moonshine(folder: Path) -> None:
    torch.manual_seed(0)
    transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(
        vocab_size=len(LETTERS), hidden_size=16, intermediate_size=16,
        encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, encoder_num_attention_heads=2,
        decoder_num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        decoder_start_token_id=0, initializer_range=1.0)).save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level(LETTERS), bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", pad_token="</s>")
    transformers.Wav2Vec2Processor(transformers.Wav2Vec2FeatureExtractor(
        return_attention_mask=True, do_normalize=False), tokenizer).save_pretrained(folder)


def save_parakeet(folder: Path, kind: str) -> None:
    names, blank = [*LETTERS, "<blank>"], len(LETTERS)
    encoder = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16, subsampling_conv_channels=8, conv_kernel_size=3)
    transducer = {} if kind == "CTC" else dict(
        decoder_hidden_size=8, num_decoder_layers=1, blank_token_id=blank)
    pad = blank if kind == "CTC" else 1
    torch.manual_seed(1)
    model = getattr(transformers, f"ParakeetFor{kind}")(
        getattr(transformers, f"Parakeet{kind}Config")(
            encoder_config=encoder, vocab_size=len(names), pad_token_id=pad, **transducer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    if transducer:
        durations = range(len(names), len(names) + len(getattr(model.config, "durations", ())))
        model.generation_config = transformers.GenerationConfig(
            decoder_start_token_id=blank, pad_token_id=pad, suppress_tokens=[*durations] or None)
    model.save_pretrained(folder)
    transformers.ParakeetProcessor(
        transformers.ParakeetFeatureExtractor(), transformers.ParakeetTokenizer(
            tokenizer_object=word_level(names), unk_token="<unk>", pad_token=names[pad],
            additional_special_tokens=["<blank>"])).save_pretrained(folder)


def word_level(names: list[str]) -> Tokenizer:
    return Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))


def save_ours(folder: Path) -> None:
    processor = make_processor(train_tokenizer(
        ["turn on the light please now", "language English", "language Chinese"] * 3, 300))
    sizes = {"audio_config": dict(num_mel_bins=128, d_model=32, encoder_layers=1,
                                  encoder_attention_heads=2, encoder_ffn_dim=48,
                                  downsample_hidden_size=8, initializer_range=0.2),
             "text_config": dict(hidden_size=40, intermediate_size=64, num_hidden_layers=1,
                                 num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                                 tie_word_embeddings=True, initializer_range=0.2)}
    asr.save(asr.build(sizes, processor, seed=0), processor, folder)


BUILDERS = {
    "ours": save_ours, "whisper": save_whisper, "moonshine": save_moonshine,
    "ctc": save_wav2vec2, "ctc_unmasked": lambda folder: save_wav2vec2(folder, norm="group"),
    "headless": lambda folder: save_wav2vec2(folder, head=False),
    "parakeet_ctc": lambda folder: save_parakeet(folder, "CTC"),
    "parakeet_rnnt": lambda folder: save_parakeet(folder, "RNNT"),
    "parakeet_tdt": lambda folder: save_parakeet(folder, "TDT"),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a checkpoint by its name in ``BUILDERS``; made when it is first asked for."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            BUILDERS[name](root / name)
        return root / name

    return folder
