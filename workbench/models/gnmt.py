"""GNMT v2 of NVIDIA's DeepLearningExamples: residual LSTMs and normalized Bahdanau attention."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from workbench.models import scaling

__all__ = ["build"]

INIT = 0.1  # weights are drawn from U(-0.1, 0.1)
RESIDUAL_FROM = 2  # the first LSTM, counted from 0, whose input is added to its output


class Attention(nn.Module):
    """Weights over source states: softmax of scale * v / |v| . tanh(query + key + bias)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.vector = nn.Parameter(torch.empty(hidden))
        self.scale = nn.Parameter(torch.full([1], hidden**-0.5))
        self.bias = nn.Parameter(torch.zeros(hidden))
        for weight in (self.query.weight, self.key.weight, self.vector):
            nn.init.uniform_(weight, -INIT, INIT)

    def forward(self, states: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Weights [rows, length, source length] of `key(source)`; 0 where not visible."""
        query = self.query(states) + self.bias
        energy = torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1))
        scores = energy @ (self.scale * self.vector / self.vector.norm())
        return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)


@dataclass
class Decoding:
    """What decoding remembers: the encoded source, and of every LSTM its last (output, cell)."""

    source: Tensor  # [rows, source length, hidden]
    keys: Tensor  # what attention compares with, of the same shape
    visible: Tensor  # [rows, 1, source length], False at padding
    last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # each [1, rows, hidden]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order and as often as named."""
        self.source, self.keys = self.source[rows], self.keys[rows]
        self.visible = self.visible[rows]
        # cuDNN wants these contiguous, which indexing [:, rows] does not promise
        self.last = {
            index: (output.index_select(1, rows), cell.index_select(1, rows))
            for index, (output, cell) in self.last.items()
        }


class GNMT(nn.Module):
    """Encoder and decoder of LSTMs that share one embedding; the classifier is its own."""

    def __init__(
        self, layers: int, hidden: int, dropout: float, vocabulary: int, padding: int
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = nn.Embedding(vocabulary, hidden, padding_idx=padding)
        nn.init.uniform_(self.embedding.weight, -INIT, INIT)
        self.encoder = nn.ModuleList(
            [_lstm(hidden, hidden, bidirectional=True), _lstm(2 * hidden, hidden)]
            + [_lstm(hidden, hidden) for _ in range(layers - 2)]
        )
        self.attention = Attention(hidden)
        self.decoder = nn.ModuleList(
            [_lstm(hidden, hidden)] + [_lstm(2 * hidden, hidden) for _ in range(layers - 1)]
        )
        self.classifier = nn.Linear(hidden, vocabulary)
        for parameter in self.classifier.parameters():
            nn.init.uniform_(parameter, -INIT, INIT)
        self.dropout = nn.Dropout(dropout)  # on the input of every LSTM

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Logits [batch, target length, vocabulary] of the token after each of target_in."""
        return self.decode(target_in, self.start(source))

    def start(self, source: Tensor) -> Decoding:
        """The state before the first target token of source [batch, length], padded at its end."""
        real = source != self.padding
        states = self._encode(source, self._lengths(real))
        return Decoding(states, self.attention.key(states), real.unsqueeze(1))

    def decode(self, tokens: Tensor, state: Decoding) -> Tensor:
        """Logits [rows, length, vocabulary] after tokens, which the state then remembers."""
        return self.decode_with_attention(tokens, state)[0]

    def decode_with_attention(self, tokens: Tensor, state: Decoding) -> tuple[Tensor, Tensor]:
        """What `decode` gives, and the attention [rows, length, source length] behind it."""
        states = self._step(0, self.embedding(tokens), state)
        attention = self.attention(states, state.keys, state.visible)
        # in the source's dtype: softmax answers in fp32 under autocast
        context = attention.to(state.source.dtype) @ state.source
        for index in range(1, len(self.decoder)):
            new = self._step(index, torch.cat([states, context], dim=2), state)
            states = states + new if index >= RESIDUAL_FROM else new
        return self.classifier(states), attention

    def _lengths(self, real: Tensor) -> Tensor:
        """Source lengths on the CPU, where packing wants them."""
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError(
                f"a source has a token after padding (token {self.padding}); GNMT reads up to "
                "the first padding: pad sources at their end only"
            )
        return real.sum(dim=1).cpu()

    def _encode(self, source: Tensor, lengths: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(source))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        # packed, so that the backward direction begins at the sentence's end, not at padding
        states, _ = pad_packed_sequence(
            self.encoder[0](packed)[0], batch_first=True, total_length=source.shape[1]
        )
        for index, lstm in enumerate(self.encoder[1:], start=1):
            new = lstm(self.dropout(states))[0]
            states = states + new if index >= RESIDUAL_FROM else new
        return states

    def _step(self, index: int, states: Tensor, state: Decoding) -> Tensor:
        """Outputs of a decoder's LSTM, which goes on from where the state left it."""
        out, state.last[index] = self.decoder[index](self.dropout(states), state.last.get(index))
        return out


def build(
    *,
    layers: int = 4,
    hidden: int = 1024,
    dropout: float = 0.2,
    vocabulary: int,
    padding: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> GNMT:
    """GNMT with `layers` LSTMs on each side; depth leaves three, the third with its residual."""
    if layers <= RESIDUAL_FROM:
        raise ValueError(f"layers is {layers}; residuals begin at the third: give at least 3")
    if not 0 <= padding < vocabulary:
        raise ValueError(f"padding is {padding}; it must be a token of 0..{vocabulary - 1}")
    return GNMT(
        max(RESIDUAL_FROM + 1, scaling.layers(layers, depth)),
        scaling.channels(hidden, width),
        dropout,
        vocabulary,
        padding,
    )


def _lstm(inputs: int, hidden: int, bidirectional: bool = False) -> nn.LSTM:
    """An LSTM drawn as DeepLearningExamples draws it: of its two biases one begins at 0."""
    lstm = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=bidirectional)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
        else:
            nn.init.uniform_(parameter, -INIT, INIT)
    return lstm
