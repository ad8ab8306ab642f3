"""linear against torch's own dense ops: layouts, types, gradients, compile, autocast, refusals."""

import pytest
import torch
from torch.nn import functional as F

import sparse24
from sparse24 import draw
from sparse24.linear import aligned
from sparse24.seam import ELEMENTS, OUTPUTS

ACTIVATIONS = {
    None: lambda t: t,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
}
OUT, IN = 20, 36


@pytest.fixture
def weight() -> torch.Tensor:
    return draw.weight_2to4(OUT, IN, torch.float16, seed=1)


@pytest.fixture
def w(weight) -> sparse24.SparseWeight:
    return sparse24.pack(weight)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    # one rounding to the type of the result, and float32 sums in another order
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.double(), wanted.double(), rtol=eps, atol=16 * eps)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out", OUTPUTS[torch.float16], ids=str)
def test_the_result_is_that_of_dense_torch(weight, w, activation, out) -> None:
    x, bias = torch.randn(2, 3, IN).half(), torch.randn(OUT)
    residual = torch.randn(2, 3, OUT).to(out)
    found = sparse24.linear(x, w, bias, activation, residual, out)
    wanted = x.double() @ weight.double().T + bias + residual
    assert (found.shape, found.dtype) == ((2, 3, OUT), out)
    close(found, ACTIVATIONS[activation](wanted))


def slices(x: torch.Tensor) -> dict[str, torch.Tensor]:
    wide = torch.full((2, 3, 5, 96), float("nan"), dtype=x.dtype)
    wide[..., 8 : 8 + IN] = x
    odd = torch.full((2, 3, 5, 97), float("nan"), dtype=x.dtype)
    odd[..., 1 : 1 + IN] = x
    return {
        "contiguous": x,
        "wide rows": wide[..., 8 : 8 + IN],
        "odd rows": odd[..., 1 : 1 + IN],
        "transposed": x.transpose(0, 2).contiguous().transpose(0, 2),
        "columns apart": x.transpose(0, 3).contiguous().transpose(0, 3),
    }


@pytest.mark.parametrize("name", slices(torch.zeros(2, 3, 5, IN)))
def test_every_stride_gives_the_same_bits(w, name) -> None:
    x = draw.operand(30, IN, torch.float16, seed=2).view(2, 3, 5, IN)
    given = slices(x)[name]
    assert torch.equal(given, x)
    assert torch.equal(sparse24.linear(given, w), sparse24.linear(x, w))
    one = given[1, 2, 4]
    assert torch.equal(sparse24.linear(one, w), sparse24.linear(x[1, 2, 4], w))


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), ()], ids=str)
def test_empty_batches_and_single_rows_keep_their_dimensions(dtype, shape) -> None:
    w = sparse24.pack(draw.weight_2to4(OUT, IN, dtype, seed=3))
    x = draw.operand(1, IN, dtype, seed=4)[0].expand(*shape, IN)
    assert sparse24.linear(x, w).shape == (*shape, OUT)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_rows_that_are_no_multiple_of_16_bytes_are_copied_into_such(dtype) -> None:
    x = draw.operand(5, 12, dtype, seed=4)
    flat = aligned(x, 12)
    assert flat.stride(0) * flat.itemsize % 16 == 0
    assert torch.equal(flat.double(), x.double())


def test_rows_that_start_between_16_bytes_are_copied_to_rows_that_do_not():
    whole = torch.randn(4, 24).half()
    x = whole[:, 4:16]  # 8 bytes in, rows of 24 bytes 48 bytes apart: a clone would lie close
    flat = aligned(x, 12)
    assert torch.equal(flat, x) and flat.storage_offset() == 0
    assert flat.stride(0) * flat.element_size() % 16 == 0


def test_int8_without_scales_is_the_bare_sums() -> None:
    dense, x = (draw.weight_2to4(OUT, IN, torch.int8, 5), draw.operand(7, IN, torch.int8, 6))
    found = sparse24.linear(x, sparse24.pack(dense))
    assert found.dtype == torch.int32
    assert torch.equal(found, x.int() @ dense.int().T)


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_with_scales_is_dequantized_and_requantized(per_channel) -> None:
    dense, x = (draw.weight_2to4(OUT, IN, torch.int8, 5), draw.operand(7, IN, torch.int8, 6))
    steps = torch.rand(OUT) * 0.01 + 0.001 if per_channel else 0.004
    w, bias = sparse24.pack(dense), torch.randn(OUT)
    real = (x.double() @ dense.double().T) * steps * 0.02 + bias
    scales = sparse24.Scales(weight=steps, x=0.02)
    found = sparse24.linear(x, w, bias, "relu", scales=scales)
    assert found.dtype == torch.float16
    close(found, real.relu())
    residual = draw.operand(7, OUT, torch.int8, 7)
    scales = sparse24.Scales(weight=steps, x=0.02, out=0.05, residual=0.1)
    found = sparse24.linear(x, w, bias, "relu", residual, scales=scales)
    wanted = ((real + residual * 0.1).relu() / 0.05).round().clamp(-127, 127)
    assert found.dtype == torch.int8
    assert (found.double() - wanted).abs().max() <= 1  # a tie may fall either way in float32
    assert (found.double() != wanted).double().mean() < 0.02


def test_gradients_are_those_of_the_dense_product(weight, w) -> None:
    x, bias = torch.randn(2, 3, IN).half(), torch.randn(OUT)
    residual, grad = torch.randn(2, 3, OUT).half(), torch.randn(2, 3, OUT).half()
    for activation in ACTIVATIONS:
        ours = [t.clone().requires_grad_() for t in (x, bias, residual)]
        theirs = [t.double().requires_grad_() for t in (x, bias, residual)]
        sparse24.linear(ours[0], w, ours[1], activation, ours[2]).backward(grad)
        total = theirs[0] @ weight.double().T + theirs[1] + theirs[2]
        ACTIVATIONS[activation](total).backward(grad.double())
        for our, their in zip(ours, theirs, strict=True):
            assert our.grad.dtype == our.dtype
            torch.testing.assert_close(our.grad.double(), their.grad, rtol=4e-3, atol=1e-2)


def test_gradients_pass_through_copies_and_strides(weight, w) -> None:
    base = torch.randn(IN, 6).half().requires_grad_()
    sparse24.linear(base.T, w).sum().backward()
    wanted = weight.double().sum(0)[:, None].expand(IN, 6)
    torch.testing.assert_close(base.grad.double(), wanted, rtol=4e-3, atol=1e-2)


def test_the_gradient_of_the_weight_stays_2to4(weight) -> None:
    x, grad = torch.randn(2, 3, IN), torch.randn(2, 3, OUT)
    dense = weight.float().requires_grad_()
    F.linear(x, dense).backward(grad)
    torch.testing.assert_close(sparse24.weight_gradient(grad, x), dense.grad)
    kept = sparse24.weight_gradient(grad, x, weight)
    torch.testing.assert_close(kept, dense.grad * (weight != 0))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_whole_it_gives_the_same_bits(w, dynamic) -> None:
    torch.compiler.reset()
    bias = torch.randn(OUT)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return sparse24.linear(x * 2, w, bias, "gelu") + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (1, 2, 9):
        x = torch.randn(tokens, 2, IN).half()
        assert torch.equal(compiled(x), layer(x))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours).sum().backward()
        layer(theirs).sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


def test_int8_with_scales_compiles_whole() -> None:
    w = sparse24.pack(draw.weight_2to4(OUT, IN, torch.int8, 5))
    scales = sparse24.Scales(weight=torch.rand(OUT), x=0.01)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return sparse24.linear(x, w, activation="relu", scales=scales)

    x = draw.operand(7, IN, torch.int8, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_autocast_casts_as_for_a_dense_product(weight, w) -> None:
    x, bias = torch.randn(4, IN), torch.randn(OUT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sparse24.linear(x, w, bias)
    assert found.dtype == torch.bfloat16
    close(found, x.half().double() @ weight.double().T + bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.zeros(3, IN)},
            r"x is float32 \[3, 36\] .* allowed is float16 \[..., 36\]",
        ),
        ({"x": torch.zeros(3, 35).half()}, r"x is float16 \[3, 35\]"),
        ({"x": torch.zeros(3, IN, device="meta").half()}, "on meta; allowed is float16 .* on cpu"),
        ({"x": torch.zeros(()).half()}, r"x is float16 \[\]"),
        ({"w": torch.zeros(OUT, IN).half()}, r"w is Tensor; give a SparseWeight"),
        ({"bias": torch.zeros(1)}, r"bias is float32 \[1\] .* \[20\]"),
        ({"bias": torch.zeros(OUT).double()}, "bias is float64 .* float16 or bfloat16 or float32"),
        ({"residual": torch.zeros(2, OUT).half()}, r"residual is float16 \[2, 20\] .* \[3, 20\]"),
        ({"residual": torch.zeros(3, OUT)}, "residual is float32 .* allowed is float16"),
        ({"activation": "silu"}, "activation is 'silu' .* None, 'relu', 'gelu_tanh', 'gelu'"),
        ({"out_dtype": torch.int8}, "result torch.int8; allowed for torch.float16"),
        ({"scales": sparse24.Scales(out=0.5)}, "int8 result takes Scales"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_by_what_was_given(w, change, message) -> None:
    given = {"x": torch.zeros(3, IN).half(), "w": w} | change
    with pytest.raises(sparse24.LinearError, match=message):
        sparse24.linear(**given)


def test_the_bare_sums_take_no_epilogue_and_int8_no_gradient() -> None:
    w = sparse24.pack(draw.weight_2to4(OUT, IN, torch.int8, 5))
    x, bias = draw.operand(3, IN, torch.int8, 6), torch.zeros(OUT)
    with pytest.raises(sparse24.LinearError, match="int32 results are the bare sums"):
        sparse24.linear(x, w, bias)
    with pytest.raises(sparse24.LinearError, match=r"call it under torch.no_grad\(\)"):
        sparse24.linear(x, w, bias.requires_grad_(), scales=sparse24.Scales())
    with pytest.raises(ValueError, match="has 3 values; the weight has 20"):
        sparse24.linear(x, w, scales=sparse24.Scales(weight=torch.ones(3)))


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_is_positive_and_finite(value) -> None:
    with pytest.raises(ValueError, match="Scales.x is"):
        sparse24.Scales(x=value)
