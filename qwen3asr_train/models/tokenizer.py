"""Byte-level BPE in Qwen's file format, trained on a corpus, for the small presets.

The released models keep their own 151,936-entry vocabulary; a tiny model with that vocabulary would
be all embedding. The small tokenizer is a ``Qwen2Tokenizer`` with the same special tokens, so the
processor, the chat template and every reader of the released files work on it unchanged.
"""

import json
import re
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2Tokenizer, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>",
                  "<|audio_end|>", "<|audio_pad|>")
"""Stripped by ``skip_special_tokens``, as in the released tokenizer."""

MARKERS = ("<asr_text>", "<timestamp>")
"""Added tokens that stay in decoded text: the output format is read off them."""

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""What the omni model needs besides; the released tokenizers have them."""

AUDIO_TOKENS = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>",
                "audio_eos_token": "<|audio_end|>"}
"""Under the names by which the processor asks the tokenizer for them."""

CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'audio' -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if not messages or messages[0].role != 'system' -%}{{ '<|im_start|>system\\n<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ render(message.content) }}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_UNSPACED = re.compile(r"([぀-ヿ㐀-鿿฀-๿])")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """A tokenizer of at most ``vocabulary`` BPE entries (256 bytes included) from ``texts``.

    Scripts written without spaces are trained character by character: on a small corpus BPE would
    otherwise learn whole phrases, which new sentences are not made of.
    """
    reference = Qwen2Tokenizer()
    trainee = Tokenizer(models.BPE())
    trainee.normalizer = reference.backend_tokenizer.normalizer
    trainee.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, min_frequency=2,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    trainee.train_from_iterator((_UNSPACED.sub(r"\n\1\n", text) for text in texts), trainer)
    learned = json.loads(trainee.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"], merges=merges, unk_token=None, eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=AUDIO_TOKENS)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    return tokenizer


def add_vision_tokens(tokenizer: Qwen2Tokenizer) -> Qwen2Tokenizer:
    """The tokenizer with :data:`VISION_TOKENS`, behind its others where it lacks them."""
    missing = [token for token in VISION_TOKENS if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
    return tokenizer


def complete(tokenizer: Qwen2Tokenizer) -> Qwen2Tokenizer:
    """A text model's tokenizer with all special tokens of ours, behind its others where it lacks
    them."""
    for tokens, special in ((SPECIAL_TOKENS, True), (MARKERS, False)):
        missing = [token for token in tokens if token not in tokenizer.get_vocab()]
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in missing])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<|endoftext|>"
    return add_vision_tokens(tokenizer)


def make_processor(tokenizer: Qwen2Tokenizer) -> Qwen3ASRProcessor:
    """Tokenizer -> processor with the released models' features and prompt."""
    return Qwen3ASRProcessor(feature_extractor=Qwen3ASRFeatureExtractor(), tokenizer=tokenizer,
                             chat_template=CHAT_TEMPLATE)
