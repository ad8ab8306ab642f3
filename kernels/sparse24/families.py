"""Families: encoders of other libraries, by where the parts of a layer lie, and their swap."""

from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .encoder import Encoder, EncoderLayer
from .fusion import activation_of, is_hooked, place
from .layout import PackError
from .nn import SparseLinear
from .table import Given, Layer, measured


@dataclass(frozen=True)
class Family:
    """The names of a layer's parts: products, norms, the activation, and the attention module."""

    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    norms: tuple[str, str]
    activation: str
    attention: str  # which knows `config`, `num_attention_heads` and `scaling`


# by the name of a layer's class: sparse24 imports no other library
FAMILIES = {
    "BertLayer": Family(
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        output="attention.output.dense",
        up="intermediate.dense",
        down="output.dense",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        activation="intermediate.intermediate_act_fn",
        attention="attention.self",
    )
}


class Unfused(ValueError):
    """Why an encoder stays as it is."""


def swap_encoders(model: nn.Module, shared: dict[str, str], given: Given) -> list[Layer]:
    """Put an Encoder in the place of the layers of each encoder of FAMILIES; a row per product.

    One that cannot be fused is left whole, with the reason in one row: its Linears are swapped as
    any others.
    """
    rows = []
    for name, layers in list(model.named_modules()):
        kinds = {type(layer).__name__ for layer in layers} if _is_list(layers) else set()
        if len(kinds) != 1 or not kinds <= FAMILIES.keys():
            continue
        (kind,) = kinds
        try:
            made = [
                _Maker(f"{name}.{i}", layer, FAMILIES[kind], shared, given).make()
                for i, layer in enumerate(layers)
            ]
        except (Unfused, PackError) as error:
            rows.append(Layer(name, kind, (len(layers),), False, f"not fused: {error}"))
            continue
        encoder = Encoder([layer for layer, _ in made]).train(layers.training)
        place(model, name, nn.ModuleList([encoder]).train(layers.training))
        rows += [row for _, found in made for row in found]
    return rows


def _is_list(layers: nn.Module) -> bool:
    return isinstance(layers, nn.ModuleList) and len(layers) > 0


class _Maker:
    """One layer on its way to an EncoderLayer."""

    def __init__(
        self, name: str, layer: nn.Module, family: Family, shared: dict[str, str], given: Given
    ) -> None:
        self.name, self.layer, self.family = name, layer, family
        self.shared, self.given = shared, given
        self.dense: dict[SparseLinear, tuple[str, nn.Linear, bool]] = {}

    def make(self) -> tuple[EncoderLayer, list[Layer]]:
        """The layer and a row for each of its products; Unfused or PackError says why not."""
        family, part = self.family, self.layer.get_submodule
        try:
            attention = part(family.attention)
            norms = tuple(part(name) for name in family.norms)
            activation = activation_of(part(family.activation))
            self._refuse(attention.config)
            heads, scale = attention.num_attention_heads, attention.scaling
        except AttributeError as error:
            raise Unfused(f"{self.name} is of another version of its library: {error}") from None
        if activation is None:
            found = type(part(family.activation)).__name__
            raise Unfused(f"the activation of {self.name}, {found}, is none of relu and the GELUs")
        if any(type(norm) is not nn.LayerNorm for norm in norms):
            raise Unfused(f"{self.name} has other norms than nn.LayerNorm")
        inputs = self._inputs()
        output = self._packed(family.output, residual=True)
        up = self._packed(family.up, activation)
        down = self._packed(family.down, residual=True)
        layer = EncoderLayer(inputs, output, up, down, norms, heads, scale)
        return layer, [self._row(product) for product in (*inputs, output, up, down)]

    def _refuse(self, config: Any) -> None:
        """Raise Unfused where the layer does what an EncoderLayer does not."""
        implementation = getattr(config, "_attn_implementation", "sdpa")
        reasons = {
            "it trains, with dropout: call model.eval() first": self.layer.training,
            "it is a decoder": config.is_decoder or config.add_cross_attention,
            "its feed-forward part runs in chunks": config.chunk_size_feed_forward,
            "it gives hidden states or attentions too": config.output_hidden_states
            or config.output_attentions,
            f"its attention is {implementation}: call model.set_attn_implementation('sdpa')": (
                implementation not in ("sdpa", "eager")
            ),
            "hooks are on it": any(is_hooked(module) for module in self.layer.modules()),
        }
        for reason, holds in reasons.items():
            if holds:
                raise Unfused(f"{self.name}: {reason}")

    def _inputs(self) -> list[SparseLinear]:
        """Query, key and value as one product, or as three where their steps differ."""
        names = self.family.query, self.family.key, self.family.value
        layers = [self._linear(name) for name in names]
        scales = [self._scales(name) for name in names]
        if len({None if s is None else s.x for s in scales}) > 1:
            return [self._packed(name) for name in names]
        merged = copy(layers[0])
        merged._parameters = dict(layers[0]._parameters)
        merged.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]))
        merged.bias = _joined([layer.bias for layer in layers])
        whole, step = scales[0], None
        if whole is not None:
            step = type(whole)(torch.cat([s.weight for s in scales]), whole.x)
        stem = names[0].rpartition(".")[0]
        ends = ",".join(name.rpartition(".")[2] for name in names)
        return [self._made(f"{stem}.{{{ends}}}", merged, step)]

    def _packed(
        self, name: str, activation: str | None = None, residual: bool = False
    ) -> SparseLinear:
        return self._made(name, self._linear(name), self._scales(name), activation, residual)

    def _made(
        self,
        name: str,
        layer: nn.Linear,
        scales: Any,
        activation: str | None = None,
        residual: bool = False,
    ) -> SparseLinear:
        try:
            made = SparseLinear.of(layer, activation, self.given.dtype, scales)
        except PackError as error:
            raise PackError(f"{self.name}.{name}: {error}") from None
        self.dense[made] = name, layer, residual
        return made

    def _linear(self, name: str) -> nn.Linear:
        layer, whole = self.layer.get_submodule(name), f"{self.name}.{name}"
        if type(layer) is not nn.Linear:
            raise Unfused(f"{whole} is a {type(layer).__name__}: only nn.Linear is replaced")
        if whole in self.shared:
            raise Unfused(f"the weight of {whole} is also that of {self.shared[whole]}")
        return layer

    def _scales(self, name: str) -> Any:
        return self.given.scales_of(f"{self.name}.{name}", self._linear(name).weight)

    def _row(self, product: SparseLinear) -> Layer:
        """What became of a product, measured at the rows that the query got of the example."""
        name, layer, residual = self.dense[product]
        given, fused = self.given, "; residual fused" if residual else ""
        fused += f"; {product.activation} fused" if product.activation else ""
        if product.scales is not None:
            fused += f"; INT8, {'float' if product.scales.out is None else 'int8'} result"
        row = partial(Layer, f"{self.name}.{name}", "Linear", tuple(layer.weight.shape))
        if not given.measures(layer.weight):
            return row(True, f"2:4, not measured{fused}")
        sizes = given.rows(f"{self.name}.{self.family.query}")
        dense = layer.weight.to(product.weight.dtype) if product.scales is None else None
        swapped, reason, times = measured(product, residual, sizes, given, dense)
        return row(swapped, f"{reason}{fused}", times)


def _joined(biases: list[Tensor | None]) -> nn.Parameter | None:
    if any(bias is None for bias in biases):
        if any(bias is not None for bias in biases):
            raise Unfused("of query, key and value some have a bias and some do not")
        return None
    return nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
