"""Small random models and clips."""

import numpy as np
import pytest

from qwen3asr_train.models import asr
from qwen3asr_train.models.tokenizer import make_processor, train_tokenizer

SIZES = {
    "audio_config": dict(num_mel_bins=128, d_model=32, encoder_layers=2, encoder_attention_heads=2,
                         encoder_ffn_dim=48, downsample_hidden_size=8, initializer_range=0.2),
    "text_config": dict(hidden_size=40, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, head_dim=12,
                        tie_word_embeddings=True, initializer_range=0.2),
}
TEXTS = ["turn on the light please now", "关上客厅的门"] * 5 + ["system user assistant"] * 3


@pytest.fixture(scope="session")
def processor():
    return make_processor(train_tokenizer([*TEXTS, *["language English", "language Chinese"] * 2],
                                          400))


@pytest.fixture(scope="session")
def model(processor):
    return asr.build(SIZES, processor, seed=0).eval()


@pytest.fixture(scope="session")
def waveforms():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(int(s * 16_000))).astype(np.float32)
            for s in (0.3, 1.0, 2.345, 9.1, 17.03)]
