"""Transformer of fairseq's transformer_vaswani_wmt_en_de_big, decoding with a cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.models import scaling
from workbench.models.beam_search import generate

__all__ = ["build", "generate"]

HEAD_SIZE = 64
FIRST_POSITION = 2  # fairseq counts positions from its padding index + 1, and that index is 1

KeysValues = tuple[Tensor, Tensor]  # each [batch, heads, length, head size]
Places = Callable[[Tensor], Tensor]  # positions from 0 -> their embeddings, one dimension more


def sinusoids(positions: Tensor, hidden: int) -> Tensor:
    """Fairseq's table rows: sines then cosines of p * 10000^(-i / (hidden/2 - 1))."""
    half = hidden // 2
    index = torch.arange(half, device=positions.device, dtype=torch.float32)
    frequency = torch.exp(index * (-math.log(10000) / (half - 1)))
    angle = positions.unsqueeze(-1).float() * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Attention(nn.Module):
    """Multi-head attention whose keys and values are made apart, so that they can be cached."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)
        for linear in (self.query, self.key, self.value):  # their biases keep torch's default
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)
        _init_linear(self.out)

    def keys_values(self, states: Tensor) -> KeysValues:
        """Keys and values of the states [batch, length, hidden]."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(
        self, states: Tensor, memory: KeysValues, visible: Tensor | None, causal: bool
    ) -> Tensor:
        """What the states see in memory; visible is True where a key may be looked at."""
        seen = functional.scaled_dot_product_attention(
            self._split(self.query(states)), *memory, attn_mask=visible, is_causal=causal
        )
        return self.out(seen.transpose(1, 2).flatten(2))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        _init_linear(self.up)
        _init_linear(self.down)

    def forward(self, states: Tensor) -> Tensor:
        """New states of the same shape."""
        return self.down(functional.relu(self.up(states)))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each followed by add and norm (post-norm)."""

    def __init__(self, hidden: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden, feed_forward)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        """New states; padding is hidden by visible [batch, 1, 1, length]."""
        own = self.attention.keys_values(states)
        seen = self.attention(states, own, visible, causal=False)
        states = self.attention_norm(states + self.dropout(seen))
        return self.feed_forward_norm(states + self.dropout(self.feed_forward(states)))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, feed-forward; post-norm."""

    def __init__(self, hidden: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden)
        self.source_attention = Attention(hidden, heads)
        self.source_attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden, feed_forward)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Tensor,
        past: KeysValues | None,
        source: KeysValues,
        visible: Tensor,
        own_visible: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """New states, and the keys and values of all target tokens so far.

        A token sees itself and those before it, or, given own_visible [batch, 1, 1, length], all
        target tokens where that is True.
        """
        own = self.attention.keys_values(states)
        if past is not None:
            own = (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
        causal = past is None and own_visible is None
        seen = self.attention(states, own, own_visible, causal)
        states = self.attention_norm(states + self.dropout(seen))
        seen = self.source_attention(states, source, visible, causal=False)
        states = self.source_attention_norm(states + self.dropout(seen))
        states = self.feed_forward_norm(states + self.dropout(self.feed_forward(states)))
        return states, own


@dataclass
class Decoding:
    """What decoding remembers: per layer the target's and the source's keys and values."""

    target: list[KeysValues | None]
    source: list[KeysValues]
    visible: Tensor  # [rows, 1, 1, source length], False at padding
    length: int = 0  # target tokens seen so far

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order and as often as named."""
        self.target = [past and (past[0][rows], past[1][rows]) for past in self.target]
        self.source = [(keys[rows], values[rows]) for keys, values in self.source]
        self.visible = self.visible[rows]


class EncoderDecoder(nn.Module):
    """Encoder and decoder layers, and one embedding shared with the output projection."""

    def __init__(
        self, layers: int, hidden: int, feed_forward: int, dropout: float, vocabulary: int, pad: int
    ) -> None:
        super().__init__()
        self.padding = pad
        self.hidden = hidden
        self.embedding = nn.Embedding(vocabulary, hidden, padding_idx=pad)
        nn.init.normal_(self.embedding.weight, std=hidden**-0.5)
        nn.init.zeros_(self.embedding.weight[pad].detach())
        # On meta: the weight it would draw is replaced by the embedding's own parameter.
        self.output_projection = nn.Linear(hidden, vocabulary, bias=False, device="meta")
        self.output_projection.weight = self.embedding.weight
        shape = (hidden, scaling.heads(hidden, HEAD_SIZE), feed_forward, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*shape) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def encode(self, source: Tensor, places: Places) -> tuple[list[KeysValues], Tensor]:
        """Source [batch, length] as each decoder layer reads it, and where it is not padding."""
        real = source != self.padding
        visible = real[:, None, None, :]
        states = self.embed(source, places(numbered(real)))
        for layer in self.encoder:
            states = layer(states, visible)
        return [layer.source_attention.keys_values(states) for layer in self.decoder], visible

    def embed(self, tokens: Tensor, places: Tensor) -> Tensor:
        """States of the first layer: the scaled embedding of each token plus that of its place."""
        embedded = self.embedding(tokens) * self.hidden**0.5
        return self.dropout(embedded + places.to(embedded.dtype))


class Transformer(EncoderDecoder):
    """The network that gives one target token after another, at places told by sinusoids."""

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Logits [batch, target length, vocabulary] of the token after each of target_in."""
        return self.decode(target_in, self.start(source))

    def start(self, source: Tensor) -> Decoding:
        """The state before the first target token of source [batch, length]."""
        keys_values, visible = self.encode(source, self._places)
        return Decoding([None] * len(self.decoder), keys_values, visible)

    def decode(self, tokens: Tensor, state: Decoding) -> Tensor:
        """Logits [rows, length, vocabulary] after tokens, which the state then remembers."""
        count = tokens.shape[1]
        assert state.length == 0 or count == 1, "a started state takes one token at a time"
        positions = torch.arange(state.length, state.length + count, device=tokens.device)
        states = self.embed(tokens, self._places(positions))
        for index, layer in enumerate(self.decoder):
            past, source = state.target[index], state.source[index]
            states, state.target[index] = layer(states, past, source, state.visible)
        state.length += count
        return self.output_projection(states)

    def _places(self, positions: Tensor) -> Tensor:
        return sinusoids(positions + FIRST_POSITION, self.hidden)


def build(
    *,
    layers: int = 6,
    hidden: int = 1024,
    feed_forward: int = 4096,
    dropout: float = 0.3,
    vocabulary: int,
    padding: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> Transformer:
    """The Transformer with hidden // 64 heads, or the next smaller count that divides hidden."""
    hidden = scaling.channels(hidden, width)
    if hidden < 4 or hidden % 2:
        raise ValueError(f"hidden is {hidden}; half of it are sines: give an even number >= 4")
    check_token("padding", padding, vocabulary)
    return Transformer(
        scaling.layers(layers, depth),
        hidden,
        scaling.channels(feed_forward, width),
        dropout,
        vocabulary,
        padding,
    )


def check_token(name: str, token: int, vocabulary: int) -> None:
    """Refuse a special token that the vocabulary does not have."""
    if not 0 <= token < vocabulary:
        raise ValueError(f"{name} is {token}; it must be a token of 0..{vocabulary - 1}")


def numbered(real: Tensor) -> Tensor:
    """Positions from 0, counting real tokens only: padding is invisible on either side."""
    return real.cumsum(dim=1) - 1


def _init_linear(linear: nn.Linear) -> None:
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
