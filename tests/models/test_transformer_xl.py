"""Transformer-XL: size, causality, memory and relative positions."""

import pytest
import torch
from torch import Tensor, nn

from workbench.models import transformer_xl


def tiny(**options: bool | int) -> transformer_xl.TransformerXL:
    torch.manual_seed(0)
    model = transformer_xl.build(
        layers=2, hidden=64, heads=2, head_size=16, feed_forward=96, vocabulary=30, **options
    )
    # Larger than N(0, 0.02), so that attention is not flat.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.dim() == 2 else parameter.add_(0.3)
    return model.eval()


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, 30, (rows, length), generator=torch.manual_seed(1))


def test_the_enwik8_network_has_the_size_of_the_original() -> None:
    with torch.device("meta"):
        model = transformer_xl.build(vocabulary=204)
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    tied = linears.pop("output_projection")
    assert sum(p.numel() for p in model.parameters()) == 41_055_436  # networks.csv, row 32
    assert len(linears) == 60
    assert sum(m.weight.numel() for m in linears.values()) == 40_894_464
    assert tied.weight is model.embedding.weight and tied.bias is not None


def test_initial_weights_have_the_originals_spread() -> None:
    torch.manual_seed(0)
    model = transformer_xl.build(layers=1, vocabulary=204)
    layer = model.layers[0]
    for weight in (layer.attention.qkv_net.weight, layer.up.weight, model.embedding.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(layer.attention_norm.weight.detach().mean()) == pytest.approx(1.0, abs=0.005)
    assert float(model.r_w_bias.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert not layer.up.bias.any() and not model.output_projection.bias.any()


def test_a_later_token_does_not_change_earlier_logits() -> None:
    model, text = tiny(), tokens(2, 7)
    changed = text.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 30
    before, after = model(text)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("clamp", [-1, 3])
def test_segments_with_memory_equal_one_long_pass(clamp: int) -> None:
    model, text = tiny(clamp=clamp), tokens(2, 12)
    memory, parts = None, []
    for segment in text.split([5, 4, 3], dim=1):
        logits, memory = model(segment, memory, memory_length=12)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(text)[0])


def test_attention_scores_are_content_plus_distance() -> None:
    model = tiny()
    attention = model.layers[0].attention
    states = torch.randn(1, 5, 64, generator=torch.manual_seed(2))
    memory, segment = states[:, :2], states[:, 2:]
    places = transformer_xl.sinusoids(torch.arange(4, -1, -1), 64)
    biases = torch.stack([model.r_w_bias, model.r_r_bias]).unsqueeze(2)
    hide = torch.full((3, 5), float("-inf")).triu(3)
    found = attention(segment, memory, places, biases, hide)

    query, key, value = attention.qkv_net(states[0]).view(5, 3, 2, 16).unbind(1)
    relative = attention.r_net(places).view(5, 2, 16).flip(0)  # by rising distance
    rows = []
    for i in range(2, 5):
        scores = torch.stack(
            [
                ((query[i] + model.r_w_bias) * key[j]).sum(-1)
                + ((query[i] + model.r_r_bias) * relative[i - j]).sum(-1)
                for j in range(i + 1)
            ]
        )
        weights = (scores / 4).softmax(0)  # [keys, heads]; 4 = sqrt(head size)
        rows.append((weights.unsqueeze(-1) * value[: i + 1]).sum(0).flatten())
    torch.testing.assert_close(found[0], attention.o_net(torch.stack(rows)))


def test_equal_contexts_give_equal_logits_wherever_they_stand() -> None:
    # Tokens of period 5, windows of 4 tokens, 2 layers: from the 7th token on all windows are full.
    model = tiny(same_length=True)
    text = tokens(1, 5).repeat(1, 4)
    logits, _ = model(text, memory_length=4)
    torch.testing.assert_close(logits[:, 6:15], logits[:, 11:20])
    assert not torch.allclose(logits[:, 6:15], logits[:, 7:16])


def test_same_length_hides_what_is_further_than_the_memory() -> None:
    model, text = tiny(same_length=True), tokens(2, 12)
    whole, _ = model(text, memory_length=4)
    changed = text.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 30
    other, _ = model(changed, memory_length=4)
    # 2 layers of 4 tokens each reach 3 + 3 tokens back: 5 is seen by 5..11, and by nothing before.
    torch.testing.assert_close(whole[:, :5], other[:, :5])
    memory, parts = None, []
    for segment in text.split(3, dim=1):
        logits, memory = model(segment, memory, memory_length=4)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_memory_keeps_the_last_tokens_detached() -> None:
    model, text = tiny(), tokens(2, 5)
    _, first = model(text, memory_length=7)
    _, second = model(text, first, memory_length=7)
    _, none = model(text, second, memory_length=0)
    assert [m.shape for m in first] == [(2, 5, 64)] * 2
    assert [m.shape for m in second] == [(2, 7, 64)] * 2
    assert [m.shape for m in none] == [(2, 0, 64)] * 2
    assert not any(m.requires_grad for m in second)
    torch.testing.assert_close(second[0][:, :2], first[0][:, 3:])


def test_every_weight_gets_a_gradient_in_training() -> None:
    model = tiny(attention_dropout=0.1).train()
    logits, _ = model(tokens(2, 5), None, 4)
    logits.log_softmax(-1)[..., 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_wrong_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="1 entries"):
        tiny()(tokens(1, 2), [torch.zeros(1, 2, 64)], 2)
    with pytest.raises(ValueError, match="memory_length is 0"):
        tiny(same_length=True)(tokens(1, 2))


@pytest.mark.parametrize(
    ("width", "hidden", "heads"), [(0.05, 32, 1), (0.125, 64, 1), (0.5, 256, 4)]
)
def test_width_scales_heads_and_keeps_their_size(width: float, hidden: int, heads: int) -> None:
    model = transformer_xl.build(vocabulary=20, width=width, depth=0.25).eval()
    assert len(model.layers) == 3
    assert model.layers[0].attention.qkv_net.weight.shape == (3 * heads * 64, hidden)
    assert model(tokens(1, 3) % 20)[0].shape == (1, 3, 20)


def test_width_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="width"):
        transformer_xl.build(vocabulary=20, width=0.0)
