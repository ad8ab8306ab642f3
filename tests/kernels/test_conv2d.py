"""conv2d against torch's: geometry, groups, epilogue, memory, gradients, compile, refusals."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import sparse24
from sparse24 import conv_candidates, convolution, draw, ops
from sparse24.geometry import Geometry
from sparse24.seam import COST_MODEL, ELEMENTS, SM80, TYPES

HALF = torch.float16


def image(shape: tuple[int, ...], dtype: torch.dtype = HALF, seed: int = 7) -> Tensor:
    batch, channels, height, width = shape
    flat = draw.operand(batch * height * width, channels, dtype, seed)
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def operands(channels: int = 24, features: int = 20, kernel=(3, 3), groups: int = 1, dtype=HALF):
    dense = draw.kernel_2to4((features, channels // groups, *kernel), dtype, seed=1)
    return dense, sparse24.pack_conv2d(dense, groups), image((2, channels, 9, 7), dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=4e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("kernel", "walk"),
    [
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": "same", "dilation": 2}),
        ((1, 1), {}),
        ((1, 1), {"stride": 2}),
        ((1, 1), {"padding": 1}),
        ((7, 7), {"stride": 2, "padding": 3}),
        ((1, 7), {"padding": (0, 3)}),
        ((2, 4), {"stride": (3, 1), "padding": (2, 1), "dilation": (1, 2)}),
        ((5, 5), {"padding": "valid"}),
    ],
    ids=str,
)
def test_each_geometry_gives_what_torch_gives(kernel, walk) -> None:
    dense, w, x = operands(kernel=kernel)
    bias = torch.randn(20)
    found = sparse24.conv2d(x, w, bias, **walk)
    wanted = F.conv2d(x.double(), dense.double(), bias.double(), **walk)
    assert found.shape == wanted.shape
    close(found, wanted)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize(("channels", "features", "groups"), [(128, 128, 8), (256, 512, 2)])
def test_groups_give_what_torch_gives(dtype, channels, features, groups) -> None:
    dense, w, x = operands(channels, features, groups=groups, dtype=dtype)
    found = sparse24.conv2d(x, w, padding=1, groups=groups, out_dtype=_out(dtype))
    wanted = F.conv2d(x.double(), dense.double(), padding=1, groups=groups)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)


def _out(dtype: torch.dtype) -> torch.dtype:
    return torch.int32 if dtype == torch.int8 else torch.float32


@pytest.mark.parametrize("activation", ["relu", "gelu", None])
def test_bias_residual_scales_and_activation_are_those_of_linear(activation) -> None:
    dense, w, x = operands()
    bias, residual = torch.randn(20), image((2, 20, 9, 7), seed=9)
    scales = sparse24.Scales(weight=torch.rand(20) + 0.5, residual=0.5)
    found = sparse24.conv2d(
        x, w, bias, padding=1, activation=activation, residual=residual, scales=scales
    )
    total = F.conv2d(x.double(), dense.double(), padding=1) * scales.weight.view(-1, 1, 1)
    total = total + bias.view(-1, 1, 1) + 0.5 * residual.double()
    act = {"relu": F.relu, "gelu": F.gelu, None: lambda t: t}[activation]
    close(found, act(total))


def test_int8_is_requantized_to_int8() -> None:
    dense, w, x = operands(dtype=torch.int8)
    scales = sparse24.Scales(weight=1e-2, x=0.1, out=2.0)
    found = sparse24.conv2d(x, w, padding=1, activation="relu", scales=scales)
    sums = F.conv2d(x.double(), dense.double(), padding=1).relu() * (1e-3 / 2)
    assert found.dtype == torch.int8
    # the scale is a float32, so that a half may fall to either side
    assert (found.double() - sums.clamp(-127, 127)).abs().max() <= 0.501


def test_channels_last_goes_in_without_a_copy_and_comes_out() -> None:
    _, w, x = operands()
    pixels = x.permute(0, 2, 3, 1).data_ptr()
    given = (x, w, None, 1, 1, 1, None, None, None, None, None)
    assert convolution.prepared(*given).x.data_ptr() == pixels
    found = sparse24.conv2d(x, w, padding=1)
    assert found.permute(0, 2, 3, 1).stride(3) == 1
    wide, w, x = operands(features=16)
    assert sparse24.conv2d(x, w).is_contiguous(memory_format=torch.channels_last)


def test_contiguous_images_and_odd_channels_are_copied_with_the_same_result() -> None:
    _, w, x = operands(channels=20)  # 40 bytes are no multiple of 16
    wanted = sparse24.conv2d(x, w, padding=1)
    assert torch.equal(sparse24.conv2d(x.contiguous(), w, padding=1), wanted)
    assert torch.equal(sparse24.conv2d(x[:, :, ::1, :].clone(), w, padding=1), wanted)
    _, second, _ = operands(channels=20, features=8)
    # 20 features lie 24 apart: the next convolution reads them as they are
    given = (wanted, second, None, 1, 1, 1, None, None, None, None, None)
    assert convolution.prepared(*given).x.data_ptr() == wanted.data_ptr()
    assert sparse24.conv2d(wanted, second, padding=1).shape == (2, 8, 9, 7)


def test_a_1x1_convolution_is_the_product_bit_by_bit() -> None:
    dense, w, x = operands(kernel=(1, 1))
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    wanted = sparse24.linear(rows, sparse24.pack(dense.flatten(1)))
    found = sparse24.conv2d(x, w)
    assert torch.equal(found.permute(0, 2, 3, 1).flatten(0, 2), wanted)


def test_batches_may_be_empty_and_images_smaller_than_the_kernel() -> None:
    _, w, x = operands()
    assert sparse24.conv2d(x[:0], w, padding=1).shape == (0, 20, 9, 7)
    assert sparse24.conv2d(x[:, :, :1, :1], w, padding=1).shape == (2, 20, 1, 1)
    with pytest.raises(sparse24.ConvError, match="leaves no pixel of the image; pad it"):
        sparse24.conv2d(x[:, :, :2], w)


@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (128, 2)])
def test_gathered_for_the_ampere_kernel_it_is_the_same(channels, groups) -> None:
    dense, w, x = operands(channels, 128, groups=groups)
    bias, residual = torch.randn(128), image((2, 128, 5, 5), seed=9)
    walk = (2, 1), (1, 0), (1, 1)
    call = convolution.prepared(x, w, bias, *walk, None, "relu", residual, None, None)
    found = conv_candidates.ours(call.x, w.packed, w.form, call.finish, call.geometry, SM80)
    wanted = F.conv2d(x.double(), dense.double(), bias.double(), *walk, groups)
    wanted = (wanted + residual.double()).relu()
    close(found.view(*call.out, 128).permute(0, 3, 1, 2), wanted)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (20, 1), (128, 8)])
def test_gradients_are_those_of_the_dense_convolution(activation, channels, groups) -> None:
    dense, w, x = operands(channels, 64, groups=groups)
    bias, residual = torch.randn(64), image((2, 64, 5, 4), seed=9)
    ours = [t.clone().requires_grad_() for t in (x, bias, residual)]
    theirs = [t.double().requires_grad_() for t in (x, bias, residual)]
    walk = {"stride": 2, "padding": 1}
    found = sparse24.conv2d(ours[0], w, ours[1], **walk, activation=activation, residual=ours[2])
    wanted = F.conv2d(theirs[0], dense.double(), theirs[1], **walk, groups=groups) + theirs[2]
    grad = torch.randn(found.shape)
    found.backward(grad.half())
    (wanted.relu() if activation else wanted).backward(grad.double())
    for our, their in zip(ours, theirs, strict=True):
        assert our.grad.dtype == our.dtype
        torch.testing.assert_close(our.grad.double(), their.grad, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)], ids=str)
def test_compiled_whole_it_gives_the_same_bits(kernel, dynamic) -> None:
    torch.compiler.reset()
    _, w, _ = operands(kernel=kernel)
    bias = torch.randn(20)

    def layer(x: Tensor) -> Tensor:
        return sparse24.conv2d(x * 2, w, bias, padding=kernel[0] // 2, activation="relu") + 1

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):
        x = image((batch, 24, 9, 7))
        assert torch.equal(compiled(x), layer(x))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours).sum().backward()
        layer(theirs).sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_the_op_keeps_the_rules_of_torch(dtype) -> None:
    dense, w, x = operands(dtype=dtype)
    pixels, out = x.permute(0, 2, 3, 1), torch.float16
    residual = torch.randn(2 * 5 * 4, 20).to(out)
    walk = 20, [3, 3], [2, 2], [1, 1], [1, 1], 1, TYPES[dtype], TYPES[out]
    arguments = (pixels, w.packed, torch.randn(20), residual, torch.rand(20), *walk, 1, 0.5, 2.0)
    schema = () if dtype == torch.float8_e4m3fn else ("test_schema",)
    checks = (*schema, "test_faketensor")
    torch.library.opcheck(ops.convolve, (*arguments, True, COST_MODEL), test_utils=checks)


def test_autocast_casts_as_for_a_dense_convolution() -> None:
    dense, w, x = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sparse24.conv2d(x.float(), w, padding=1)
    assert found.dtype == torch.bfloat16
    wanted = F.conv2d(x.double(), dense.double(), padding=1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=2e-2)


def test_why_tells_the_backend_the_size_and_the_copies() -> None:
    _, w, x = operands(128, 64, groups=8)
    assert sparse24.backend(x, w, padding=1) == "reference"
    assert sparse24.why(x, w, padding=1) == (
        "64 of 128 channels, 2 of 9x7 float16, 3x3 convolution, stride 1x1, padding 1x1, "
        "dilation 1x1, groups 8: reference (plain torch); the kernels are for compute "
        "capability 8.x and 9.0"
    )
    copied = sparse24.why(x.contiguous(), w, padding=1)
    assert "x is copied first: its memory is not channels_last" in copied
    _, w, x = operands(kernel=(1, 1))
    told = sparse24.why(x, w)
    assert told.startswith("20 x 126 x 24 float16: reference")
    assert "computed as a product of its pixels" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 24, 9, 7)}, r"x is float32 .* allowed is float16 \[batch, 24, "),
        ({"x": torch.zeros(2, 20, 9, 7).half()}, r"x is float16 \[2, 20, 9, 7\]"),
        ({"x": torch.zeros(24, 9, 7).half()}, r"x is float16 \[24, 9, 7\]"),
        ({"w": torch.zeros(20, 24, 3, 3).half()}, "w is Tensor; give a SparseConvWeight"),
        ({"groups": 2}, "groups is 2; the weight was packed with groups=1"),
        ({"stride": 0}, "stride is 0; allowed are an integer of at least 1"),
        ({"stride": (1, 2, 3)}, r"stride is \(1, 2, 3\)"),
        ({"stride": 9}, "strides up to 8"),
        ({"padding": -1}, "padding is -1; allowed are an integer of at least 0"),
        ({"padding": "full"}, "padding is 'full'; allowed are 'same', 'valid'"),
        ({"padding": "same", "stride": 2}, "padding 'same' of a 3x3 kernel"),
        ({"dilation": 64}, "kernels that span at most 128 pixels"),
        ({"bias": torch.zeros(1)}, r"bias is float32 \[1\]"),
        ({"residual": torch.zeros(2, 20, 9, 9).half()}, r"residual is .* \[2, 20, 7, 5\]"),
        ({"activation": "silu"}, "activation is 'silu'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused_by_what_was_given(change, message) -> None:
    _, w, x = operands()
    with pytest.raises(sparse24.LinearError, match=message):
        sparse24.conv2d(**({"x": x, "w": w} | change))


def test_the_geometry_knows_a_product() -> None:
    assert Geometry((1, 1)).is_pointwise
    assert Geometry((1, 1), dilation=(2, 3)).is_pointwise
    assert not Geometry((1, 1), stride=(1, 2)).is_pointwise
    assert not Geometry((1, 1), padding=(1, 0)).is_pointwise
