"""LSTM and GRU step by step, so that what their matmuls get can be rounded.

A fused LSTM shows nothing of its inside. An INT8 engine multiplies the rounded hidden state by the
rounded gate matrices and keeps gates and cell in floating point; so does this. The hidden state is
a tanh times a sigmoid (a GRU's a mean of such), so its range is known to be 1 without calibration,
and it is also the input of the layers above the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

# whether the input is the layer's own, then input, weight, bias -> output
Matmul = Callable[[bool, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class _Stack:
    """The layers of one call: their weights in PyTorch's order, and how they are joined."""

    kind: str
    weights: list[Tensor]
    biased: bool
    count: int
    both: bool
    dropout: float
    matmul: Matmul

    def parts(self, number: int) -> list[Any]:
        """Input weight, hidden weight and their biases (or None) of a layer's direction."""
        per = 4 if self.biased else 2
        return [*self.weights[number * per : (number + 1) * per], None, None][:4]


def unrolled(kind: str, arguments: tuple, matmul: Matmul) -> Any:
    """What torch.lstm, gru, lstm_cell or gru_cell answers to the arguments, by way of `matmul`."""
    if kind.endswith("_cell"):
        return _cell(kind, arguments, matmul)
    packed = isinstance(arguments[3], list | tuple)
    if packed:
        data, sizes, state, weights, *rest = arguments
        values, lengths = pad_packed_sequence(PackedSequence(data, sizes))
    else:
        values, state, weights, *rest = arguments
        if rest[5]:  # batch first
            values = values.transpose(0, 1)
        lengths = torch.full((values.shape[1],), values.shape[0])
    biased, count, share, training, both = rest[:5]
    stack = _Stack(kind, weights, biased, count, both, share if training else 0.0, matmul)
    outputs, states = _run(stack, values, state, lengths.to(values.device))
    if packed:
        outputs = pack_padded_sequence(outputs, lengths).data
    elif rest[5]:
        outputs = outputs.transpose(0, 1)
    return (outputs, *states)


def _run(stack: _Stack, values: Tensor, state: Any, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
    given = list(state) if stack.kind == "lstm" else [state]
    ends = []
    for layer in range(stack.count):
        outputs = []
        for way in range(1 + stack.both):
            number = layer * (1 + stack.both) + way
            projected = _projected(stack, number, values, own=layer == 0)
            start = [part[number].float() for part in given]
            result, end = _direction(stack, number, projected, start, lengths, way == 1)
            outputs.append(result)
            ends.append(end)
        values = torch.cat(outputs, dim=-1)
        if layer < stack.count - 1:
            values = dropout(values, stack.dropout)
    return values, [torch.stack(parts) for parts in zip(*ends, strict=True)]


def _projected(stack: _Stack, number: int, values: Tensor, own: bool) -> Tensor:
    weight, _, bias, _ = stack.parts(number)
    return stack.matmul(own, values, weight, bias).float()


def _direction(
    stack: _Stack,
    number: int,
    projected: Tensor,
    state: list[Tensor],
    lengths: Tensor,
    backwards: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs [time, batch, hidden] and the last state; a sequence ends at its length."""
    _, weight, _, bias = stack.parts(number)
    steps = range(len(projected))
    outputs = []
    for step in reversed(steps) if backwards else steps:
        hidden = stack.matmul(False, state[0], weight, bias).float()
        new = _step(stack.kind, projected[step], hidden, state)
        live = (step < lengths).unsqueeze(1)
        state = [torch.where(live, a, b) for a, b in zip(new, state, strict=True)]
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _cell(kind: str, arguments: tuple, matmul: Matmul) -> Any:
    values, state, w_input, w_hidden, b_input, b_hidden = (*arguments, None, None)[:6]
    kind = kind.removesuffix("_cell")
    given = [part.float() for part in (state if kind == "lstm" else [state])]
    projected = matmul(True, values, w_input, b_input).float()
    hidden = matmul(False, given[0], w_hidden, b_hidden).float()
    new = _step(kind, projected, hidden, given)
    return tuple(new) if kind == "lstm" else new[0]


def _step(kind: str, projected: Tensor, hidden: Tensor, state: list[Tensor]) -> list[Tensor]:
    """The new hidden state (and cell) from W x + b and U h + b; the gates in PyTorch's order."""
    if kind == "lstm":
        enter, forget, new, leave = (projected + hidden).chunk(4, dim=-1)
        cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
        return [leave.sigmoid() * cell.tanh(), cell]
    (reset, update, new), (h_reset, h_update, h_new) = projected.chunk(3, -1), hidden.chunk(3, -1)
    keep = (update + h_update).sigmoid()
    fresh = (new + (reset + h_reset).sigmoid() * h_new).tanh()
    return [(1 - keep) * fresh + keep * state[0]]
