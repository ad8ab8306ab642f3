"""Layers with an INT8 form, their weights as integers and scales, one scale per output channel."""

import torch
from torch import Tensor, nn

from workbench.sparsity.layouts import LINEAR, TRANSPOSED, layout_of, leaves

LEVELS = 127  # symmetric and narrow: -127..127, so that a negated weight is a weight
RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


class QuantError(ValueError):
    """Activations or weights from which no INT8 network can be made."""


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of all layers with an INT8 form, in model order.

    Linear and convolution layers, transposed ones too, LSTM and GRU. Left out: a weight shared with
    an embedding, an LSTM with a projection (its hidden state has no bound), and
    nn.MultiheadAttention with its output projection, whose weights PyTorch uses inside one call.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for part in module.modules()
    }
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, (*LINEAR, *TRANSPOSED, *RECURRENT)) or id(module) in inside:
            continue
        own = {id(weight) for weight in weights_of(name, module).values()}
        if not getattr(module, "proj_size", 0) and not own & tables:
            found[name] = module
            tables |= own  # a weight that a second layer shares is found by its first name
    return found


def weights_of(name: str, module: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> weight of a layer: one, or an LSTM's gate matrices."""
    prefix = f"{name}." if name else ""
    return {f"{prefix}{leaf}": getattr(module, leaf) for leaf in leaves(module)}


def weight_scale(module: nn.Module, weight: Tensor) -> Tensor:
    """Largest magnitude / 127 of each output channel (an LSTM: of each row of a gate), [out]."""
    oriented = layout_of(module).oriented(weight.detach()).float()
    return oriented.abs().amax(dim=tuple(range(1, oriented.ndim))) / LEVELS


def to_integers(module: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight's int8 integers in its own shape: round half to even of weight / scale."""
    divisor = spread(module, torch.where(scale > 0, scale, 1.0), weight)
    return (weight.detach().float() / divisor).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def spread(module: nn.Module, scale: Tensor, weight: Tensor) -> Tensor:
    """The scales [out] laid over the weight's shape."""
    layout = layout_of(module)
    shape = layout.oriented(weight).shape
    return layout.restored(scale.view(-1, *[1] * (len(shape) - 1)).expand(shape))
