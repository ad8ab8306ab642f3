"""Layouts: which weights a module has over input channels, and where those channels lie."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)  # LSTM, GRU, RNN and their cells
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_CELL = ("weight_ih", "weight_hh")


@dataclass(frozen=True)
class Layout:
    """Where input channels lie in a weight: dimension `input_dim`, in `groups` stacked groups.

    Everything that speaks of input channels (patterns, checks, quantization, export) looks at a
    weight through `oriented`: [out, in / groups, *kernel].
    """

    input_dim: int = 1
    groups: int = 1

    def channels(self, weight: Tensor) -> int:
        """Input channels per group of the convolution."""
        return weight.shape[self.input_dim] // self.groups

    def oriented(self, weight: Tensor) -> Tensor:
        """The weight as [out, in / groups, *kernel]: a view, or a copy if channels are grouped."""
        if self.input_dim == 1:
            return weight
        if self.groups == 1:
            return weight.transpose(0, 1)
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def restored(self, oriented: Tensor) -> Tensor:
        """The inverse of `oriented`."""
        if self.input_dim == 1:
            return oriented
        if self.groups == 1:
            return oriented.transpose(0, 1)
        return oriented.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)


CHANNELS_SECOND = Layout()


def layout_of(module: nn.Module) -> Layout:
    """The layout of the weights of `module`: the one definition of where input channels lie.

    Linear and convolution weights are [out, in / groups, *kernel], projections of attention
    [out, in], gate matrices [gates x hidden, in], transposed convolutions [in, out / groups,
    *kernel] with the groups stacked along the input channels.
    """
    return Layout(0, module.groups) if isinstance(module, TRANSPOSED) else CHANNELS_SECOND


def leaves(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's own weights that have a layout."""
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION
    if isinstance(module, nn.RNNBase):
        return tuple(name for name in module._flat_weights_names if name.startswith("weight"))
    if isinstance(module, nn.RNNCellBase):
        return _CELL
    return ("weight",) if isinstance(module, (*LINEAR, *TRANSPOSED)) else ()


def reflatten(model: nn.Module) -> None:
    """Give recurrent weights on a GPU their common buffer back where an assignment split it.

    cuDNN wants them in one piece and copies them at every call otherwise. Weights that still share
    one storage are left alone, so captured CUDA graphs stay valid.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            weights = [w for w in module._flat_weights if isinstance(w, Tensor)]
            storages = {weight.untyped_storage().data_ptr() for weight in weights}
            if len(storages) > 1 and all(weight.is_cuda for weight in weights):
                with torch.no_grad():
                    module.flatten_parameters()
