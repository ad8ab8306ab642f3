"""The reference against formulas written out, and the ops against the reference."""

import math

import pytest
import torch

from sparse24 import layout, ops
from sparse24.draw import operand, weight_2to4
from sparse24.seam import ACTIVATIONS, COST_MODEL, ELEMENTS, OUTPUTS, TYPES, Plan, pitch

PAIRS = [(dtype, out) for dtype in ELEMENTS for out in OUTPUTS[dtype]]


def call(x, weight, out, bias=None, residual=None, scale=None, activation=None, **numbers):
    return ops.linear(
        x,
        layout.pack(weight),
        bias,
        residual,
        scale,
        *weight.shape,
        TYPES[x.dtype],
        TYPES[out],
        ACTIVATIONS[activation],
        numbers.get("residual_scale", 1.0),
        numbers.get("out_scale", 1.0),
        True,
        COST_MODEL,
    )


def by_hand(total: float, activation: str | None) -> float:
    if activation == "relu":
        return max(total, 0.0)
    if activation == "gelu":
        return total / 2 * (1 + math.erf(total / math.sqrt(2)))
    if activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (total + 0.044715 * total**3)
        return total / 2 * (1 + math.tanh(inner))
    return total


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_epilogue_is_the_formula_of_the_seam(activation) -> None:
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float16)
    weight = torch.tensor([[2.0, 0, 0, -1.0], [0, 0.25, 4.0, 0]], dtype=torch.float16)
    bias, residual = torch.tensor([0.5, -1.0]), torch.tensor([[3.0, 8.0]])
    scale = torch.tensor([0.5, 2.0])
    # sums 2 - 3 = -1 and -0.5 + 2 = 1.5, by hand
    pre = [-1 * 0.5 + 0.5 + 0.25 * 3, 1.5 * 2 - 1 + 0.25 * 8]
    wanted = [by_hand(total, activation) * 4 for total in pre]
    found = call(
        x, weight, torch.float32, bias, residual, scale, activation,
        residual_scale=0.25, out_scale=4.0,
    )  # fmt: skip
    torch.testing.assert_close(found, torch.tensor([wanted]), rtol=1e-6, atol=1e-6)


def test_int8_results_round_half_to_even_and_clip_to_127() -> None:
    x = torch.tensor([[1, 0, 0, 0], [3, 0, 0, 0], [5, 0, 0, 0], [127, 0, 0, 0], [-127, 0, 0, 0]])
    weight = torch.tensor([[1, 0, 0, 0], [2, 0, 0, 0]])
    found = call(x.to(torch.int8), weight.to(torch.int8), torch.int8, out_scale=0.5)
    # 0.5, 1.5, 2.5, 63.5, -63.5 to the even neighbor; 254 / 2 stays
    assert found.tolist() == [[0, 1], [2, 3], [2, 5], [64, 127], [-64, -127]]
    found = call(x.to(torch.int8), weight.to(torch.int8), torch.int8, out_scale=1.0)
    assert found[3].tolist() == [127, 127]
    assert found[4].tolist() == [-127, -127]


def test_int8_sums_are_exact_beyond_what_float32_holds() -> None:
    columns = 4 * 5000
    x = torch.full((1, columns), 127, dtype=torch.int8)
    weight = torch.zeros(1, columns, dtype=torch.int8)
    weight[0, ::4] = 127
    weight[0, 0] = 126  # 5000 * 127 * 127 - 127 = 80,644,873 is odd and above 2^24
    assert call(x, weight, torch.int32).item() == 80_644_873


@pytest.mark.parametrize(("dtype", "out"), PAIRS, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 12), (0, 8, 64), (1, 64, 256)], ids=str)
def test_the_op_agrees_with_a_dense_product_in_double(dtype, out, shape) -> None:
    tokens, rows, columns = shape
    weight, x = weight_2to4(rows, columns, dtype, seed=1), operand(tokens, columns, dtype, seed=2)
    found = call(x, weight, out, out_scale=2e-4 if out == torch.int8 else 1.0)
    assert found.dtype == out
    assert found.shape == (tokens, rows)
    assert tokens < 2 or found.stride() == (pitch(rows, out), 1)
    exact = x.double() @ weight.double().T
    if out == torch.int32:
        assert torch.equal(found.double(), exact)
    elif out == torch.int8:
        assert torch.equal(found.double(), (exact * 2e-4).round().clamp(-127, 127))
    else:
        resolution = torch.finfo(out).eps
        wanted = exact.to(out).double()
        torch.testing.assert_close(found.double(), wanted, rtol=2 * resolution, atol=1e-5)


def test_the_ops_of_packing_are_the_layout() -> None:
    weight = weight_2to4(70, 68, torch.bfloat16, seed=3)
    packed = ops.pack(weight, True)
    assert torch.equal(packed, layout.pack(weight))
    assert torch.equal(ops.unpack(packed, 70, 68, TYPES[torch.bfloat16], True), weight)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_the_ops_keep_the_rules_of_torch(dtype) -> None:
    weight, x = weight_2to4(20, 68, dtype, seed=4), operand(5, 68, dtype, seed=5)
    out = OUTPUTS[dtype][0]
    packed, bias = layout.pack(weight), torch.randn(20)
    residual, numbers = torch.randn(5, 20).to(out), (20, 68, TYPES[dtype])
    # torch compares inputs before and after with isclose, which float8 lacks
    schema = () if dtype == torch.float8_e4m3fn else ("test_schema",)
    checks = (*schema, "test_faketensor")
    arguments = (x, packed, bias, residual, torch.rand(20), *numbers, TYPES[out], 1, 0.5, 2.0)
    torch.library.opcheck(ops.linear, (*arguments, True, COST_MODEL), test_utils=checks)
    torch.library.opcheck(ops.pack, (weight, True), test_utils=checks)
    torch.library.opcheck(ops.unpack, (packed, *numbers, True), test_utils=checks)


def test_a_plan_survives_its_number() -> None:
    plan = Plan(tile=7, cluster_m=2, cluster_n=4, raster=96)
    assert Plan.of(plan.number()) == plan
    assert plan.number() == 7 | 2 << 8 | 4 << 16 | 96 << 24
