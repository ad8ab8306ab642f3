"""The Hopper kernel, run by the emulator, against the plain product and reference.py."""

import ctypes
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparse24 import draw, layout, reference
from sparse24.seam import ACTIVATIONS, ELEMENTS, OUTPUTS, TYPES
from tests.kernels.call import EXACT, POISON, Call, Convolution, operands, pitched, start, whole

NAMES = [str(dtype).removeprefix("torch.") for dtype in ELEMENTS]
every_type = pytest.mark.parametrize("dtype", ELEMENTS, ids=NAMES)
both_forms = pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
# rows and tokens of config.h's tiles
TILES = [
    (256, 128), (256, 192), (128, 128), (128, 64), (64, 64), (64, 16), (64, 128), (128, 128),
    (64, 128),
]  # fmt: skip
WIDE, BY_TURNS, WINDOW = 1, 7, 8
every_tile = pytest.mark.parametrize("tile", range(8), ids=[f"{r}x{t}" for r, t in TILES[:8]])


def some_tiles(tile: int) -> tuple[int, int]:
    """Features and tokens of two by two tiles, the last of each only in part there."""
    rows, tokens = TILES[tile]
    return rows + rows // 2 + 4, 2 * tokens - 3


@every_type
@both_forms
@every_tile
@pytest.mark.parametrize("order", list(product([False, True], repeat=2)), ids=str)
def test_the_product_is_exact(hopper, dtype, sparse, tile, order) -> None:
    x, weight = operands(*some_tiles(tile), dtype)
    wanted = x.double() @ weight.double().T
    copies_are_late, last_warp_first = order
    for out in (torch.bfloat16, EXACT.get(dtype, torch.float32)):  # by the copy engine, and plainly
        call = Call(x, weight, sparse, out)
        if tile == WIDE and dtype.itemsize == 1:
            assert call.run(hopper, tile) == "this tile is for 16-bit types"
            continue
        wrong = call.run(
            hopper, tile, copies_are_late=copies_are_late, last_warp_first=last_warp_first
        )
        assert wrong is None
        assert torch.equal(call.out, wanted.to(out))
        assert hopper.bank_conflicts == 0


@every_type
@pytest.mark.parametrize("columns", [4, 64, 132, 2000])
def test_few_and_many_columns_are_exact(hopper, dtype, columns) -> None:
    x, weight = operands(65, 33, dtype, columns)  # fewer blocks of K than stages, and many more
    call = Call(x, weight, True, EXACT.get(dtype, torch.float32))
    assert call.run(hopper, 4, copies_are_late=True) is None
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)


@both_forms
@pytest.mark.parametrize("multiprocessors", [1, 2, 3, 100])
@pytest.mark.parametrize("raster", [0, 1, 2, 8])
def test_every_tile_is_walked_once(hopper, sparse, multiprocessors, raster) -> None:
    x, weight = operands(64 * 4 + 4, 16 * 4 + 1, torch.float16, columns=72)
    call = Call(x, weight, sparse, torch.float16)
    assert call.run(hopper, 5, multiprocessors=multiprocessors, raster=raster) is None
    assert torch.equal(call.out, (x.double() @ weight.double().T).half())


@both_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("columns", [4, 600, 1100])  # fewer blocks of K than stages, as many, more
@pytest.mark.parametrize("multiprocessors", [1, 2])
@pytest.mark.parametrize("order", list(product([False, True], repeat=2)), ids=str)
def test_warpgroups_take_turns(hopper, dtype, sparse, columns, multiprocessors, order) -> None:
    x, weight = operands(
        128 * 2 + 4, 128 * 2 + 1, dtype, columns
    )  # nine tiles: the turns are uneven
    copies_are_late, last_warp_first = order
    call = Call(x, weight, sparse, torch.float16)
    wrong = call.run(
        hopper, BY_TURNS, multiprocessors=multiprocessors, copies_are_late=copies_are_late,
        last_warp_first=last_warp_first,
    )  # fmt: skip
    assert wrong is None
    assert torch.equal(call.out, (x.double() @ weight.double().T).half())


@both_forms
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("cluster", [(2, 1), (1, 2), (2, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("copies_are_late", [False, True])
def test_a_cluster_shares_what_it_loads(hopper, dtype, sparse, cluster, copies_are_late) -> None:
    x, weight = operands(64 * 5 + 4, 64 * 5 + 1, dtype)  # its last clusters are half empty
    call = Call(x, weight, sparse, torch.float16)
    wrong = call.run(
        hopper, 4, cluster=cluster, multiprocessors=8, copies_are_late=copies_are_late,
        last_warp_first=copies_are_late,
    )  # fmt: skip
    assert wrong is None
    assert torch.equal(call.out, (x.double() @ weight.double().T).half())


def epilogue_of(features: int, tokens: int, out: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    spread = 40 if out == torch.int8 else 1
    residual = (torch.randn(tokens, features, generator=generator) * spread).to(out)
    return {
        "bias": torch.randn(features, generator=generator),
        "residual": pitched(residual),
        "scale": torch.rand(features, generator=generator) * 0.02 + 0.01,
    }


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=map(str, ACTIVATIONS))
@pytest.mark.parametrize(
    ("dtype", "out"),
    [(dtype, out) for dtype in ELEMENTS for out in OUTPUTS[dtype] if out != torch.int32],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("gap", [None, 1], ids=["by the copy engine", "rows it cannot address"])
def test_the_epilogue_is_that_of_the_reference(
    hopper, dtype, out, activation, has_residual, gap
) -> None:
    tile = (0, WIDE if dtype.itemsize == 2 else BY_TURNS, 2)[activation % 3]
    features, tokens = some_tiles(tile)
    x, weight = operands(features, tokens, dtype, columns=132)
    given = epilogue_of(features, tokens, out)
    given["bias"] = given["bias"].to(ELEMENTS[activation % 2] if activation else torch.float32)
    if not has_residual:
        del given["residual"]
    call = Call(x, weight, True, out, gap)
    out_scale = 8.0 if out == torch.int8 else 0.375
    call.fields |= {name: start(tensor) for name, tensor in given.items()}
    call.fields |= {
        "bias_type": TYPES[given["bias"].dtype],
        "residual_pitch": given["residual"].stride(0) * out.itemsize if has_residual else 0,
        "residual_scale": 0.75,
        "out_scale": out_scale,
        "activation": activation,
    }
    assert call.run(hopper, tile, copies_are_late=True) is None
    wanted = reference.linear(
        x, weight, **given, out_type=TYPES[torch.float32], activation=activation,
        residual_scale=0.75, out_scale=out_scale, precision=torch.float64,
    ).double()  # fmt: skip
    if out == torch.int8:
        wanted = wanted.clamp(-127, 127)
        # half a step of rounding, and float32's own error of sums of some hundreds
        assert (call.out.double() - wanted).abs().max() <= 0.5 + 1e-3
        return
    step = torch.finfo(out).eps / 2 + 4e-7
    # gelu of a negative value cancels: its error is that of a float32 near 1, times the value
    assert ((call.out.double() - wanted).abs() <= step * wanted.abs() + 2e-6).all()


@pytest.mark.parametrize("out", [torch.float16, torch.bfloat16, torch.int8])
def test_gelu_of_short_types_is_right_where_erf_cancels(hopper, out) -> None:
    x, weight = operands(512, 8, torch.int8, columns=64)
    bias = torch.linspace(-9, 9, 512)
    bias[:3] = torch.tensor([torch.nan, torch.inf, -6.5e4])
    call = Call(torch.zeros_like(x), weight, True, out)
    call.fields |= {"bias": start(bias), "bias_type": TYPES[torch.float32]}
    call.fields |= {
        "activation": ACTIVATIONS["gelu"],
        "out_scale": 13.0 if out == torch.int8 else 1.0,
    }
    assert call.run(hopper, 0) is None
    found, wanted = call.out[0].double(), torch.nn.functional.gelu(bias.double())
    if out == torch.int8:
        assert found[:3].tolist() == [-127, 127, 0]  # NaN as the least
        assert torch.equal(found[3:], (wanted[3:] * 13).round())
        return
    assert found[0].isnan()
    assert found[1].isinf()
    smallest = torch.finfo(out).smallest_normal * torch.finfo(out).eps
    # what is left at -6.5, where the polynomial ends; erf of float32 gives 0 from -5.6 on
    allowed = (torch.finfo(out).eps / 2 + 1e-5) * wanted.abs() + max(smallest, 3e-10)
    assert ((found - wanted).abs() <= allowed)[2:].all()


@both_forms
def test_a_row_has_the_same_bits_in_every_batch_and_tile(hopper, sparse) -> None:
    weight = draw.weight_2to4(200, 512, torch.float16, seed=4)
    x = draw.operand(100, 512, torch.float16, seed=5)
    many = Call(x, weight, sparse, torch.float16)
    assert many.run(hopper, 0) is None
    for tile, (first, last) in enumerate(
        [(0, 100), (0, 1), (37, 41), (0, 60), (50, 100), (0, 100), (1, 99)]
    ):
        few = Call(x[first:last], weight, sparse, torch.float16)
        assert few.run(hopper, tile + 1) is None
        assert torch.equal(few.out, many.out[first:last])


# channels, kernel, stride, padding, dilation (of height, of width), groups, tile; the features are
# a group's multiple of the tile's rows where there are groups
CONVOLUTIONS = {
    "1x1": (72, (1, 1), (1, 1), (0, 0), (1, 1), 1, 4),
    "3x3": (72, (3, 3), (1, 1), (1, 1), (1, 1), 1, 2),
    "3x3 stride 2": (40, (3, 3), (2, 2), (1, 1), (1, 1), 1, 4),
    "1x1 stride 2": (64, (1, 1), (2, 2), (0, 0), (1, 1), 1, 3),
    "dilated": (64, (3, 3), (1, 1), (2, 2), (2, 2), 1, 5),
    "uneven": (136, (2, 3), (2, 1), (1, 0), (1, 3), 1, BY_TURNS),
    "groups": (256, (3, 3), (1, 1), (1, 1), (1, 1), 2, 6),
    "window": (40, (3, 3), (1, 1), (1, 1), (1, 1), 1, WINDOW),
    "window of groups": (256, (3, 3), (1, 1), (1, 1), (1, 1), 4, WINDOW),
    "narrow, wide padding": (16, (3, 1), (1, 2), (3, 2), (3, 1), 1, 0),
}
BATCH, HEIGHT, WIDTH = 3, 9, 11


def convolved(
    case: tuple, dtype: torch.dtype, sparse: bool, batch: int, height: int, width: int
) -> tuple[Call, Tensor, tuple]:
    """A call of a case of CONVOLUTIONS, what it should give, and what must outlive the call."""
    channels, kernel, stride, padding, dilation, groups, tile = case
    features = 100 if groups == 1 else groups * TILES[tile][0]
    of_group, block = channels // groups, layout.block_k(dtype)
    image = whole(draw.operand(batch * height * width, channels, dtype, seed=6))
    flat = whole(draw.weight_2to4(features, kernel[0] * kernel[1] * of_group, dtype, seed=7))
    weight = flat.view(features, *kernel, of_group)
    padded = torch.zeros(features, *kernel, -(-of_group // block) * block).to(dtype)
    padded[..., :of_group] = weight
    wanted = F.conv2d(
        image.view(batch, height, width, channels).permute(0, 3, 1, 2).double(),
        weight.permute(0, 3, 1, 2).double(), None, stride, padding, dilation, groups,
    ).permute(0, 2, 3, 1)  # fmt: skip
    out_height, out_width = wanted.shape[1:3]
    call = Call(
        pitched(image).new_zeros(batch * out_height * out_width, 16), padded.flatten(1), sparse,
        torch.float16,
    )  # fmt: skip
    x = pitched(image)
    sizes = (batch, height, width, channels, out_height, out_width)
    convolution = Convolution(*sizes, *kernel, *stride, *padding, *dilation, groups)
    call.fields |= {
        "x": start(x),
        "x_pitch": x.stride(0) * x.itemsize,
        "convolution": ctypes.addressof(convolution),
    }
    return call, wanted.flatten(0, 2).half(), (x, convolution)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=["float16", "int8"])
@both_forms
@pytest.mark.parametrize("size", [(2, 23, 14), (1, 5, 28), (2, 7, 7), (3, 3, 1)], ids=str)
def test_a_window_ends_with_its_image(hopper, dtype, sparse, size) -> None:
    case = (256, (3, 3), (1, 1), (1, 1), (1, 1), 4, WINDOW)
    call, wanted, _kept = convolved(case, dtype, sparse, *size)
    assert call.run(hopper, WINDOW, multiprocessors=3, copies_are_late=True) is None
    assert torch.equal(call.out, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=["float16", "int8"])
@both_forms
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_is_that_of_torch(hopper, dtype, sparse, case) -> None:
    call, wanted, _kept = convolved(case, dtype, sparse, BATCH, HEIGHT, WIDTH)
    tile = case[-1]
    for late in (False, True):
        assert call.run(hopper, tile, copies_are_late=late, last_warp_first=late) is None
        assert torch.equal(call.out, wanted)
        call.out.fill_(POISON)


def test_a_window_takes_what_it_is_made_for_alone(hopper) -> None:
    x, weight = operands(70, 3, torch.float16)
    assert "3 x 3 convolutions with padding 1" in Call(x, weight, True, torch.float16).run(
        hopper, WINDOW
    )


def test_what_the_copy_engine_cannot_address_is_refused_in_words(hopper) -> None:
    x, weight = operands(70, 3, torch.float16)
    call = Call(x, weight, True, torch.float16)
    call.fields["x_pitch"] += 2
    assert "multiples of 16 bytes" in call.run(hopper, 4)
    assert bool((call.out == POISON).all())
