"""The omni model from parts of checkpoints, against transformers' models of these checkpoints."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from qwen3asr_train.data.positions import Text, Vision, position_ids
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import asr, omni, pretrained
from qwen3asr_train.models.tokenizer import VISION_TOKENS

AUDIO = {"audio_config": dict(num_mel_bins=128, d_model=16, encoder_layers=1, encoder_ffn_dim=24,
                              encoder_attention_heads=2, downsample_hidden_size=4)}
WIDTH = 24
TEXT = dict(hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=12, initializer_range=0.3, rms_norm_eps=1e-5)
VISION = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4,
              spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=16,
              out_hidden_size=WIDTH, deepstack_visual_indexes=[0], initializer_range=0.2)


@pytest.fixture(scope="module")
def vl(tmp_path_factory):
    """A Qwen3-VL and its folder."""
    folder = tmp_path_factory.mktemp("vl")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2],
            "mrope_interleaved": True}
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": 320, "rope_parameters": rope}, vision_config=VISION,
        image_token_id=310, video_token_id=311, vision_start_token_id=312, vision_end_token_id=313,
        tie_word_embeddings=True)).eval()
    model.save_pretrained(folder)
    return model, str(folder)


def save_qwen3(model, processor, folder):
    """With a tokenizer that has the chat's special tokens and one for vision, none for audio."""
    bpe = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    Qwen2Tokenizer(
        vocab=bpe["vocab"], merges=[tuple(m) for m in bpe["merges"]], unk_token=None,
        eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|vision_start|>"]).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def qwen3(request, processor, tmp_path_factory):
    """A Qwen3 whose embeddings end with its tokenizer, and its folder."""
    torch.manual_seed(1)
    own = len(json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]["vocab"]) + 4
    model = Qwen3ForCausalLM(Qwen3Config(**TEXT, vocab_size=own,
                                         tie_word_embeddings=request.param)).eval()
    return model, save_qwen3(model, processor, tmp_path_factory.mktemp("qwen3"))


def build(language_model, processor, vision):
    base = asr.build(AUDIO, processor, seed=2, language_model=language_model)
    return omni.build(base, processor, vision, seed=3).eval()


def test_a_qwen3_goes_on_bitwise_and_gets_rows_for_new_tokens(qwen3, tmp_path):
    theirs, folder = qwen3
    language_model, processor = pretrained.load_language_model(folder)
    ours = build(language_model, processor, VISION)
    tied, own = theirs.config.tie_word_embeddings, theirs.config.vocab_size
    tokens = processor.tokenizer
    ids = {name: tokens.convert_tokens_to_ids(name) for name in (
        "<|audio_pad|>", "<asr_text>", "<|im_end|>", *VISION_TOKENS)}
    assert len(set(ids.values())) == len(ids) and ids["<|im_end|>"] < own
    assert ids["<|vision_start|>"] < own <= ids["<|audio_pad|>"] < len(tokens)
    asr.save(ours, processor, tmp_path)
    for model in (ours, omni.load(str(tmp_path))[0].eval()):
        found = model.state_dict()
        for name, value in theirs.state_dict().items():
            name = name.replace("model.", "model.language_model.", 1)
            assert torch.equal(found[name][:len(value)], value), name
        rows = found["lm_head.weight"][own:]
        assert len(rows) == len(tokens) - own and rows.std() > 0.1
        embeddings = model.model.language_model.embed_tokens.weight
        assert (embeddings.data_ptr() == model.lm_head.weight.data_ptr()) == tied
        words = torch.arange(20, 60)[None]
        with torch.no_grad():
            hidden = model.model.language_model(
                input_ids=words, position_ids=position_ids([Text(40)])[:, None]).last_hidden_state
            torch.testing.assert_close(model.lm_head(hidden)[..., :own], theirs(words).logits)


def test_a_qwen3_with_rows_to_spare_keeps_them(processor, tmp_path):
    torch.manual_seed(1)
    theirs = Qwen3ForCausalLM(Qwen3Config(**TEXT, vocab_size=600, tie_word_embeddings=True))
    folder = save_qwen3(theirs, processor, tmp_path)
    ours = build(*pretrained.load_language_model(folder), VISION)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


def test_parts_of_a_qwen3_vl_are_that_qwen3_vl(vl, processor, tmp_path):
    """Its language model as a plain Qwen3 beside its tower sees a picture as it does."""
    theirs, folder = vl
    plain = Qwen3ForCausalLM(Qwen3Config(
        **TEXT, vocab_size=320, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})).eval()
    plain.model.load_state_dict(theirs.model.language_model.state_dict())
    torch.manual_seed(4)
    small = save_qwen3(plain, processor, tmp_path)
    tower = pretrained.load_vision_tower(folder, WIDTH)
    ours = build(*pretrained.load_language_model(small), tower)
    for name, value in theirs.model.visual.state_dict().items():
        assert torch.equal(ours.model.visual.state_dict()[name], value), name
    pixels, grid = torch.randn(24, 96), torch.tensor([[1, 4, 6]])
    before, after = [5, 9, 11], [7, 8]
    given = torch.tensor([[*before, *[310] * 6, *after]])
    positions = position_ids([Text(3), Vision(2, 3), Text(2)])[:, None]
    image = ours.config.image_token_id
    batch = {"input_ids": given.masked_fill(given == 310, image), "position_ids": positions,
             "pixel_values": pixels, "grid_thw": grid,
             "input_features": torch.zeros(1, 128, 100), "chunk_lengths": torch.tensor([100]),
             "clip_chunks": torch.tensor([1])}
    with torch.no_grad():
        found = ours.lm_head(ours.read(batch, use_cache=False)[0])
        expected = theirs(input_ids=given, pixel_values=pixels, image_grid_thw=grid,
                          mm_token_type_ids=(given == 310).int()).logits
    torch.testing.assert_close(found[..., :320], expected, rtol=1e-4, atol=1e-4)


def test_what_is_no_such_checkpoint(vl, qwen3, tmp_path):
    (_, with_tower), (_, plain) = vl, qwen3
    text, tower = pretrained.load_language_model, partial(pretrained.load_vision_tower, width=99)
    for load, folder, message in (
            (tower, plain, "a qwen3, not a Qwen3-VL"),
            (tower, with_tower, "output is 24 wide, the language model is 99 wide"),
            (tower, "/none", "vision_from=/none: no such"),
            (text, with_tower, "a qwen3_vl, not a Qwen3$"),
            (text, str(tmp_path), "language_model_from=.*no config.json")):
        with pytest.raises(UserError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)
    shutil.copy(f"{with_tower}/config.json", tmp_path)
    weights = load_file(f"{with_tower}/model.safetensors")
    del weights["model.visual.merger.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, first merger\.norm\.weight"):
        pretrained.load_vision_tower(str(tmp_path), WIDTH)


def test_more_deepstack_layers_than_layers(model, processor):
    with pytest.raises(UserError, match="3 deepstack layers, the language model 2"):
        omni.build(model, processor, VISION | {"deepstack_visual_indexes": [0, 1, 1]}, seed=0)
