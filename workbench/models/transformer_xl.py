"""Transformer-XL of kimiyoung/transformer-xl's enwik8 base: relative attention with memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.models import scaling

__all__ = ["build"]

INIT_STD = 0.02


def sinusoids(distances: Tensor, hidden: int) -> Tensor:
    """Sines then cosines of distance * 10000^(-2i / hidden), [distances, hidden]."""
    index = torch.arange(0, hidden, 2, device=distances.device, dtype=torch.float32)
    angle = torch.outer(distances.float(), 10000 ** (-index / hidden))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def shift_relative(scores: Tensor) -> Tensor:
    """Scores by falling distance [.., queries, keys], seen so that columns are keys.

    Column c of row i stands for distance keys - 1 - c, so key j lies at c = j + queries - 1 - i:
    in memory each row starts keys - 1 after the one above. What stands above the causal diagonal
    belongs to the next row and must be masked.
    """
    queries, keys = scores.shape[-2:]
    return scores.flatten(-2)[..., queries - 1 :].unfold(-1, keys, max(1, keys - 1))


class RelativeAttention(nn.Module):
    """Attention over memory and segment; scores (q+u)k by content and (q+v)r by distance."""

    def __init__(self, hidden: int, heads: int, head_size: int, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv_net = nn.Linear(hidden, 3 * heads * head_size, bias=False)
        self.r_net = nn.Linear(hidden, heads * head_size, bias=False)
        self.o_net = nn.Linear(heads * head_size, hidden, bias=False)

    def forward(
        self, segment: Tensor, memory: Tensor, places: Tensor, biases: Tensor, hide: Tensor
    ) -> Tensor:
        """What each token sees, [batch, length, hidden]; biases [2, heads, 1, head size]."""
        query, key, value = self.qkv_net(torch.cat([memory, segment], dim=1)).chunk(3, dim=-1)
        query = self._split(query[:, memory.shape[1] :])
        key, value = self._split(key), self._split(value)
        relative = self._split(self.r_net(places).unsqueeze(0))  # [1, heads, keys, head size]
        content_bias, distance_bias = biases.to(query.dtype)
        scale = query.shape[-1] ** -0.5
        by_distance = shift_relative((query + distance_bias) * scale @ relative.transpose(2, 3))
        seen = functional.scaled_dot_product_attention(
            query + content_bias,
            key,
            value,
            attn_mask=by_distance + hide.to(by_distance.dtype),
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=scale,
        )
        return self.o_net(seen.transpose(1, 2).flatten(2))

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Relative attention and feed-forward, each followed by add and norm (post-norm)."""

    def __init__(
        self, attention: RelativeAttention, hidden: int, inner: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, inner)
        self.down = nn.Linear(inner, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, segment: Tensor, memory: Tensor, places: Tensor, biases: Tensor, hide: Tensor
    ) -> Tensor:
        """New states of the segment, [batch, length, hidden]."""
        seen = self.attention(segment, memory, places, biases, hide)
        states = self.attention_norm(segment + self.dropout(seen))
        inner = self.dropout(functional.relu(self.up(states)))
        return self.feed_forward_norm(states + self.dropout(self.down(inner)))


class TransformerXL(nn.Module):
    """Language model over segments; `clamp` and `same_length` may be set anew to evaluate."""

    def __init__(
        self,
        layers: list[Layer],
        bias_shape: tuple[int, int],
        hidden: int,
        vocabulary: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.clamp = -1
        self.same_length = False
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(layers)
        self.r_w_bias = nn.Parameter(torch.empty(bias_shape))  # u of the paper, all layers'
        self.r_r_bias = nn.Parameter(torch.empty(bias_shape))  # v of the paper, all layers'
        self.output_projection = nn.Linear(hidden, vocabulary)
        self.output_projection.weight = self.embedding.weight
        self.dropout = nn.Dropout(dropout)
        self.apply(_initialize)
        nn.init.normal_(self.r_w_bias, std=INIT_STD)
        nn.init.normal_(self.r_r_bias, std=INIT_STD)

    def forward(
        self, tokens: Tensor, memory: list[Tensor] | None = None, memory_length: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, length, vocabulary], and each layer's memory for the next segment.

        Memory is each layer's input at the last memory_length tokens, detached. With
        same_length every token sees the last memory_length tokens (itself included), no more.
        """
        self._check(memory, memory_length)
        states = self.dropout(self.embedding(tokens) * self.hidden**0.5)
        if memory is None:
            memory = [states[:, :0]] * len(self.layers)
        remembered, length = memory[0].shape[1], tokens.shape[1]
        distances = torch.arange(remembered + length - 1, -1, -1, device=tokens.device)
        if self.clamp > 0:
            distances = distances.clamp(max=self.clamp)
        places = self.dropout(sinusoids(distances, self.hidden).to(states.dtype))
        hide = self._hidden_keys(remembered, length, memory_length, tokens.device)
        biases = torch.stack([self.r_w_bias, self.r_r_bias]).unsqueeze(2)
        new_memory = []
        for layer, past in zip(self.layers, memory, strict=True):
            past = past.to(states.dtype)
            known = torch.cat([past, states], dim=1).detach()
            new_memory.append(known[:, max(0, known.shape[1] - memory_length) :])
            states = layer(states, past, places, biases, hide)
        return self.output_projection(self.dropout(states)), new_memory

    def _check(self, memory: list[Tensor] | None, memory_length: int) -> None:
        if memory is not None and len(memory) != len(self.layers):
            raise ValueError(f"memory has {len(memory)} entries; give one per layer or None")
        if memory_length < 0 or (self.same_length and memory_length == 0):
            raise ValueError(f"memory_length is {memory_length}; give 0, or >= 1 with same_length")

    def _hidden_keys(
        self, remembered: int, length: int, memory_length: int, device: torch.device
    ) -> Tensor:
        """-inf where token i may not look at key j and 0 elsewhere, [length, keys]."""
        query = torch.arange(remembered, remembered + length, device=device).unsqueeze(1)
        distance = query - torch.arange(remembered + length, device=device)
        hide = distance < 0
        if self.same_length:
            hide |= distance >= memory_length
        return torch.zeros(hide.shape, device=device).masked_fill(hide, float("-inf"))


def build(
    *,
    layers: int = 12,
    hidden: int = 512,
    heads: int = 8,
    head_size: int = 64,
    feed_forward: int = 2048,
    dropout: float = 0.1,
    attention_dropout: float = 0.0,
    vocabulary: int,
    width: float = 1.0,
    depth: float = 1.0,
    clamp: int = -1,
    same_length: bool = False,
) -> TransformerXL:
    """The language model; width scales the number of heads and leaves their size alone."""
    hidden = scaling.channels(hidden, width)
    if hidden % 2:
        raise ValueError(f"hidden is {hidden}; half of it are sines: give an even number")
    heads = max(1, round(heads * width))
    inner = scaling.channels(feed_forward, width)
    stack = [
        Layer(
            RelativeAttention(hidden, heads, head_size, attention_dropout), hidden, inner, dropout
        )
        for _ in range(scaling.layers(layers, depth))
    ]
    model = TransformerXL(stack, (heads, head_size), hidden, vocabulary, dropout)
    model.clamp, model.same_length = clamp, same_length
    return model


def _initialize(module: nn.Module) -> None:
    """The original's weights_init; norms' weights too are drawn, around 1."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.LayerNorm):
        nn.init.normal_(module.weight, mean=1.0, std=INIT_STD)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
