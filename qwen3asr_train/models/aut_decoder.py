"""The text decoder of AuT: a Transformer decoder that attends to the encoder's tokens.

Pre-norm layers of causal self-attention, cross-attention and a GELU network (Vaswani et al. 2017,
with the norm before each part as in Xiong et al. 2020). Positions are sinusoids on both sides: the
encoder's own positions start anew with every second, so the decoder adds those of the whole clip to
what it attends to.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3asr_train.models.head import TargetHead


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; ``encoder_dim`` is the width of what it attends to."""

    encoder_dim: int
    vocab_size: int
    layers: int = 8
    d_model: int = 512
    heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.0
    tie_embeddings: bool = True
    initializer_range: float = 0.02


@dataclass
class Memory:
    """Encoder tokens as the decoder takes them: ``states`` ``(clips, longest, encoder_dim)`` with
    the clip's positions added, ``mask`` ``(clips, 1, 1, longest)``, True at real tokens."""

    states: Tensor
    mask: Tensor

    @classmethod
    def from_packed(cls, tokens: Tensor, lengths: Tensor) -> "Memory":
        """Packed ``(tokens, encoder_dim)`` of clips with ``lengths`` ``(clips,)`` tokens each."""
        padded = nn.utils.rnn.pad_sequence(torch.split(tokens, lengths.tolist()), batch_first=True)
        places = torch.arange(padded.shape[1], device=tokens.device)
        states = padded + sinusoids(places, padded.shape[2]).to(padded.dtype)
        return cls(states, (places < lengths[:, None])[:, None, None, :])


class Attention(nn.Module):
    """Multi-head attention from ``(clips, n, d_model)`` to ``(clips, m, source_dim)``."""

    def __init__(self, d_model: int, source_dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(source_dim, d_model, bias=False)
        self.v_proj = nn.Linear(source_dim, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """``(clips, heads, m, head_dim)`` each."""
        return self._split(self.k_proj(source)), self._split(self.v_proj(source))

    def forward(self, hidden: Tensor, source: Tensor | tuple[Tensor, Tensor],
                mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """``source``: states to attend to, or their keys and values."""
        queries = self._split(self.q_proj(hidden))
        keys, values = source if isinstance(source, tuple) else self.keys_and_values(source)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, hidden: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Attention weights, float32 ``(clips, heads, n, m)``; rows sum to 1."""
        queries, keys = self._split(self.q_proj(hidden)), self._split(self.k_proj(source))
        scores = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
        return scores.masked_fill(~mask, -torch.inf).softmax(-1) if mask is not None \
            else scores.softmax(-1)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, feed-forward; each with a norm before it."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        width, dropout = config.d_model, config.dropout
        self.self_attn = Attention(width, width, config.heads, dropout)
        self.cross_attn = Attention(width, config.encoder_dim, config.heads, dropout)
        self.self_attn_norm, self.cross_attn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, config.ffn_dim), nn.Linear(config.ffn_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, memory: Memory) -> Tensor:
        """A whole sequence ``(clips, length, d_model)``, each position seeing those before it."""
        normed = self.self_attn_norm(hidden)
        hidden = hidden + self.dropout(self.self_attn(normed, normed, causal=True))
        return self._finish(hidden, memory.states, memory.mask)

    def step(self, hidden: Tensor, cache: "LayerCache", is_real: Tensor, mask: Tensor) -> Tensor:
        """The next position ``(clips, 1, d_model)`` after those in ``cache``."""
        normed = self.self_attn_norm(hidden)
        hidden = hidden + self.self_attn(normed, cache.append(
            *self.self_attn.keys_and_values(normed)), is_real[:, None, None])
        return self._finish(hidden, cache.cross, mask)

    def _finish(self, hidden: Tensor, source: Tensor | tuple[Tensor, Tensor], mask: Tensor
                ) -> Tensor:
        hidden = hidden + self.dropout(
            self.cross_attn(self.cross_attn_norm(hidden), source, mask))
        return hidden + self.dropout(self.fc2(F.gelu(self.fc1(self.ffn_norm(hidden)))))


@dataclass
class LayerCache:
    """Keys and values of one layer: of the encoder's tokens, and of the positions so far."""

    cross: tuple[Tensor, Tensor]
    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a position; returns all ``(clips, heads, length, head_dim)``."""
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], 2)
        self.values = values if self.values is None else torch.cat([self.values, values], 2)
        return self.keys, self.values


class AuTDecoder(nn.Module):
    """Token ids and encoder tokens to hidden states; ``head`` makes logits or the loss of them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = TargetHead(config.d_model, config.vocab_size, bias=False)
        self.apply(self._initialise)
        if config.tie_embeddings:
            self.head.weight = self.embed_tokens.weight

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, memory: Memory) -> Tensor:
        """``(clips, length)`` -> hidden states ``(clips, length, d_model)``."""
        hidden = self._embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, memory)
        return self.norm(hidden)

    def cross_attention(self, input_ids: Tensor, memory: Memory) -> Tensor:
        """Weights of every layer and head, ``(layers, clips, heads, length, audio tokens)``."""
        hidden, maps = self._embed(input_ids), []
        for layer in self.layers:
            normed = layer.self_attn_norm(hidden)
            middle = hidden + layer.self_attn(normed, normed, causal=True)
            maps.append(layer.cross_attn.weights(layer.cross_attn_norm(middle), memory.states,
                                                 memory.mask))
            hidden = layer(hidden, memory)
        return torch.stack(maps)

    def caches(self, memory: Memory) -> list[LayerCache]:
        """Empty caches for :meth:`step`, one a layer."""
        return [LayerCache(layer.cross_attn.keys_and_values(memory.states))
                for layer in self.layers]

    def step(self, token: Tensor, place: Tensor, caches: list[LayerCache], is_real: Tensor,
             mask: Tensor) -> Tensor:
        """Logits ``(clips, vocabulary)`` of what follows ``token`` ``(clips,)``.

        ``place`` ``(clips,)``: its position; ``is_real`` ``(clips, steps so far)``: False at
        padding; ``mask``: of the encoder's tokens.
        """
        hidden = self._embed(token[:, None], place[:, None])
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer.step(hidden, cache, is_real, mask)
        return self.head(self.norm(hidden[:, 0]))

    def _embed(self, input_ids: Tensor, places: Tensor | None = None) -> Tensor:
        if places is None:
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.embed_tokens(input_ids) * math.sqrt(self.config.d_model)
        return embedded + sinusoids(places, self.config.d_model).to(embedded.dtype)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """``(…)`` -> float32 ``(…, width)``: sines, then cosines, of wavelengths 2π to 10,000·2π."""
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=places.device) * (-math.log(10_000) / half))
    angles = places[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]
