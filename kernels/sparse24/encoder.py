"""Encoder: the layers of a transformer's encoder with packed products, norms behind the residuals.

A layer is four products (query, key and value are one) and torch's attention between them. GELU
and the residual's add are in the products; a norm gives the next INT8 product its int8 input beside
the float residual, from one kernel.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .nn import SparseLinear
from .rounding import norm


class EncoderLayer(nn.Module):
    """One layer: attention, a norm, the feed-forward pair, a norm."""

    def __init__(
        self,
        inputs: list[SparseLinear],
        output: SparseLinear,
        up: SparseLinear,
        down: SparseLinear,
        norms: tuple[nn.LayerNorm, nn.LayerNorm],
        heads: int,
        scale: float,
    ) -> None:
        """inputs: query, key and value in one product [3 * hidden, hidden], or the three."""
        super().__init__()
        self.inputs = nn.ModuleList(inputs)
        self.output, self.up, self.down = output, up, down
        self.attention_norm, self.output_norm = norms
        self.heads, self.scale = heads, scale
        if down.scales is not None and up.scales is not None:
            up.emit(down.scales.x)

    @property
    def reciprocal(self) -> Tensor | None:
        """Of the step in which the layer takes its input, if its products share one."""
        return self.inputs[0].reciprocal if _is_int8(self.inputs) else None

    def forward(
        self, x: Tensor, rounded: Tensor | None, mask: Tensor | None, after: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The result [batch, tokens, hidden] and, for the reciprocal `after`, its int8 form.

        `rounded` is x in the layer's own int8 form, if it is there already.
        """
        given = x if rounded is None else rounded
        seen = self._attention([product(given) for product in self.inputs], mask)
        x = self.output(seen, x)
        own = self.up.reciprocal if self.up.scales is not None else None
        x, rounded = norm(x, self.attention_norm, own)
        inner = self.up(x if rounded is None else rounded)
        return norm(self.down(inner, x), self.output_norm, after)

    def _attention(self, parts: list[Tensor], mask: Tensor | None) -> Tensor:
        """Attention of query, key and value, side by side or apart, [batch, tokens, hidden]."""
        if len(parts) == 1:
            parts = list(parts[0].unflatten(-1, (3, -1)).unbind(-2))
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        found = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=self.scale)
        return found.transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """All layers of an encoder, in the place of the first of them."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        """The layers in order."""
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """The last layer's result; the arguments are those of a layer of transformers."""
        _refuse(self.training, encoder_hidden_states, others)
        x, rounded = hidden_states, None
        for layer, after in zip(self.layers, [*self.layers[1:], None], strict=True):
            x, rounded = layer(x, rounded, attention_mask, after and after.reciprocal)
        return x


def _is_int8(inputs: nn.ModuleList) -> bool:
    first = inputs[0].scales
    return first is not None and all(
        layer.scales is not None and layer.scales.x == first.x for layer in inputs
    )


def _refuse(training: bool, encoder_hidden_states: Tensor | None, others: dict[str, Any]) -> None:
    if training:
        raise RuntimeError("the swapped encoder has no dropout: call model.eval()")
    asked = [name for name, value in others.items() if name in _UNANSWERED and value is not None]
    asked = [name for name in asked if others[name] is not False]
    if encoder_hidden_states is not None:
        asked.append("encoder_hidden_states")
    if asked:
        raise TypeError(
            f"the swapped encoder is asked for {', '.join(asked)}, which it does not have; give "
            "none of them, or call the model that was not swapped"
        )


_UNANSWERED = (
    "encoder_attention_mask",
    "output_attentions",
    "output_hidden_states",
    "past_key_values",
)
