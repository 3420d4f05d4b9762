"""AuT against torch's own decoder layer, brute force and clips on their own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3ASREncoder

from qwen3asr_train.data.collate import Example, collate
from qwen3asr_train.data.features import audio_tokens, log_mel
from qwen3asr_train.data.prompts import DecoderPrompts
from qwen3asr_train.decoding.generate import generate, load
from qwen3asr_train.errors import UserError
from qwen3asr_train.models import aut
from qwen3asr_train.models.aut_decoder import DecoderConfig, DecoderLayer, Memory
from tests.models.conftest import SIZES

DECODER = {"layers": 2, "d_model": 24, "heads": 4, "ffn_dim": 40, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def model(processor):
    return aut.build(SIZES | {"aut_decoder": DECODER}, processor, seed=0).eval()


@pytest.fixture(scope="module")
def examples(processor, waveforms):
    prompts, made = DecoderPrompts(processor.tokenizer), []
    for number, waveform in enumerate(waveforms):
        mel = log_mel(waveform)
        tokens = audio_tokens(len(mel))
        if number == 2:
            made.append(Example(mel, prompts.prompt(tokens, question="system now?"),
                                prompts.answer("English")))
        else:
            made.append(Example(mel, prompts.prompt(tokens), prompts.target(
                ["turn on", "关上客厅的门", "", "light now", ""][number],
                ["English", "Chinese", None, "English", None][number])))
    return made


@pytest.fixture(scope="module")
def batch(examples, processor):
    return collate(examples, processor.tokenizer.pad_token_id)


def test_layer_is_torchs(batch):
    torch.manual_seed(0)
    config = DecoderConfig(encoder_dim=24, vocab_size=10, d_model=24, heads=4, ffn_dim=40)
    ours = DecoderLayer(config)
    theirs = nn.TransformerDecoderLayer(24, 4, 40, dropout=0.0, activation=F.gelu, norm_first=True,
                                        batch_first=True)
    for mine, their in ((ours.self_attn, theirs.self_attn), (ours.cross_attn,
                                                             theirs.multihead_attn)):
        parts = (mine.q_proj, mine.k_proj, mine.v_proj)
        their.in_proj_weight.data = torch.cat([part.weight for part in parts])
        their.in_proj_bias.data = torch.cat([
            torch.zeros(24) if part.bias is None else part.bias for part in parts])
        their.out_proj.load_state_dict(mine.out_proj.state_dict())
    for mine, their in ((ours.fc1, theirs.linear1), (ours.fc2, theirs.linear2),
                        (ours.self_attn_norm, theirs.norm1), (ours.cross_attn_norm, theirs.norm2),
                        (ours.ffn_norm, theirs.norm3)):
        their.load_state_dict(mine.state_dict())
    hidden, lengths = torch.randn(3, 7, 24), torch.tensor([5, 2, 9])
    memory = Memory.from_packed(torch.randn(16, 24), lengths)
    expected = theirs(hidden, memory.states, tgt_is_causal=True,
                      tgt_mask=nn.Transformer.generate_square_subsequent_mask(7),
                      memory_key_padding_mask=~memory.mask[:, 0, 0])
    torch.testing.assert_close(ours(hidden, memory), expected, atol=1e-5, rtol=1e-5)


def test_loss_is_the_sum_over_clips_on_their_own(model, examples, batch, processor):
    loss, ctc = model.target_loss(batch, with_ctc=True)
    expected_loss, expected_ctc = 0.0, 0.0
    for example in examples:
        alone = collate([example], 0)
        tokens, lengths = model.encode_audio(alone)
        ids = torch.tensor([example.prompt + example.target])
        hidden = model.decoder(ids[:, :-1], Memory.from_packed(tokens, lengths))
        logits = hidden[0] @ model.decoder.embed_tokens.weight.T
        first = len(example.prompt)
        expected_loss += F.cross_entropy(logits[first - 1:], ids[0, first:], reduction="sum")
        marker = processor.tokenizer.convert_tokens_to_ids("<asr_text>")
        if marker not in example.target:
            continue  # the answer to a question is no transcript
        spoken = torch.tensor(example.target[example.target.index(marker) + 1:-1])
        log_probs = model.ctc_head(tokens).log_softmax(-1)
        expected_ctc += F.ctc_loss(log_probs[:, None], spoken[None], lengths,
                                   torch.tensor([len(spoken)]), blank=model.blank_id,
                                   reduction="sum", zero_infinity=True)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ctc, expected_ctc, rtol=1e-5, atol=1e-4)


def test_smoothing_is_for_training_only(model, batch):
    plain = model.target_loss(batch)[0].item()
    model.decoder.head.label_smoothing = 0.2
    try:
        assert model.target_loss(batch)[0].item() == plain
        model.train()
        assert model.target_loss(batch)[0].item() != pytest.approx(plain, rel=1e-3)
    finally:
        model.decoder.head.label_smoothing = 0.0
        model.eval()


def test_greedy_is_the_argmax_of_the_whole_sequence_each_time(model, examples, processor):
    plain = [example for example in examples if len(example.prompt) == len(examples[0].prompt)]
    batch = collate(plain, processor.tokenizer.pad_token_id, with_prompts=True)
    found = generate(model, batch, 9)
    tokens, lengths = model.encode_audio(batch)
    for number, mine in enumerate(found):
        start = int(lengths[:number].sum())
        memory = Memory.from_packed(tokens[start:start + int(lengths[number])],
                                    lengths[number:number + 1])
        ids, logs = list(plain[number].prompt), []
        for _ in range(9):
            hidden = model.decoder(torch.tensor([ids]), memory)[0, -1].detach()
            best = (hidden @ model.decoder.head.weight.detach().T).log_softmax(-1).max(-1)
            ids.append(int(best.indices))
            logs.append(float(best.values))
            if ids[-1] in model.end_ids:
                break
        written = [t for t in ids[len(plain[number].prompt):] if t not in model.end_ids]
        assert mine.tokens == written
        assert mine.confidence == pytest.approx(float(np.exp(np.mean(logs))), rel=1e-4)


def test_prompts_of_different_lengths_are_generated_from_as_each_alone(model, examples, processor):
    together = generate(model, collate(examples, processor.tokenizer.pad_token_id,
                                       with_prompts=True), 6)
    alone = [generate(model, collate([example], 0, with_prompts=True), 6)[0]
             for example in examples]
    assert [g.tokens for g in together] == [g.tokens for g in alone]


def test_cross_attention_is_what_the_layers_use(model, batch):
    memory = Memory.from_packed(*model.encode_audio(batch))
    maps = model.decoder.cross_attention(batch["input_ids"], memory)
    assert maps.shape[:4] == (2, 5, 4, batch["input_ids"].shape[1])
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    hidden = model.decoder._embed(batch["input_ids"])
    layer = model.decoder.layers[0]
    normed = layer.self_attn_norm(hidden)
    hidden = layer.cross_attn_norm(hidden + layer.self_attn(normed, normed, causal=True))
    values = layer.cross_attn.keys_and_values(memory.states)[1]
    attended = layer.cross_attn.out_proj((maps[0] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attended, layer.cross_attn(hidden, memory.states, memory.mask),
                               atol=1e-5, rtol=1e-5)


def test_folder_opens_as_transformers_encoder_and_as_ours(model, batch, processor, tmp_path):
    aut.save(model, processor, tmp_path)
    encoder = Qwen3ASREncoder.from_pretrained(tmp_path)
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)
    reloaded, _ = load(str(tmp_path))
    assert isinstance(reloaded, aut.AuT)
    assert torch.equal(reloaded.eval().target_loss(batch)[0], model.target_loss(batch)[0])
    assert torch.equal(aut.load_encoder(str(tmp_path)).conv_out.weight, encoder.conv_out.weight)


def test_an_encoder_alone_writes_no_text(model, tmp_path):
    model.encoder.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an encoder alone"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="init_from_encoder=nowhere"):
        aut.load_encoder("nowhere")
