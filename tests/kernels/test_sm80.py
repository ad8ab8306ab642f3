"""The Ampere kernel, run by the emulator, against the plain product and reference.py."""

from itertools import product

import pytest
import torch
from torch import Tensor

from sparse24 import draw, reference
from sparse24.seam import ACTIVATIONS, ELEMENTS, OUTPUTS, TYPES
from tests.kernels.call import COLUMNS, EXACT, POISON, Call, operands, start

NAMES = [str(dtype).removeprefix("torch.") for dtype in ELEMENTS]
every_type = pytest.mark.parametrize("dtype", ELEMENTS, ids=NAMES)
both_forms = pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
# features and tokens for which, on one multiprocessor, each tile is the cheapest
TILES = {"256x128": (200, 100), "128x128": (124, 120), "64x32": (70, 3)}
every_tile = pytest.mark.parametrize("size", TILES.values(), ids=TILES)
every_order = pytest.mark.parametrize("order", list(product([False, True], repeat=2)), ids=str)


@every_type
@both_forms
@every_tile
@every_order
def test_the_product_is_exact(emulator, dtype, sparse, size, order) -> None:
    x, weight = operands(*size, dtype)
    call = Call(x, weight, sparse, EXACT.get(dtype, torch.float32))
    copies_are_late, last_warp_first = order
    wrong = call.run(emulator, copies_are_late=copies_are_late, last_warp_first=last_warp_first)
    assert wrong is None
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)
    assert emulator.threads == (128 if size == TILES["64x32"] else 256)
    assert emulator.bank_conflicts == 0


@every_type
@pytest.mark.parametrize("columns", [4, 64, 132])
def test_few_columns_are_exact(emulator, dtype, columns) -> None:
    x, weight = operands(65, 33, dtype, columns)  # fewer blocks of K than stages
    call = Call(x, weight, True, EXACT.get(dtype, torch.float32))
    assert call.run(emulator, copies_are_late=True) is None
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)


@every_type
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_rows_of_x_and_out_may_start_anywhere(emulator, dtype, gap) -> None:
    x, weight = operands(70, 5, dtype)
    odd = torch.full((5, COLUMNS + 1 + gap), POISON).to(dtype)
    odd[:, 1 : COLUMNS + 1] = x
    call = Call(odd[:, 1 : COLUMNS + 1], weight, True, EXACT.get(dtype, torch.float32), gap)
    assert call.run(emulator) is None
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)


def epilogue_of(features: int, tokens: int, out: torch.dtype, gap: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    spread = 40 if out == torch.int8 else 1
    residual = torch.randn(tokens, features + gap, generator=generator) * spread
    return {
        "bias": torch.randn(features, generator=generator),
        "residual": residual.to(out)[:, :features],
        "scale": torch.rand(features, generator=generator) * 0.02 + 0.01,
    }


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=map(str, ACTIVATIONS))
@pytest.mark.parametrize(
    ("dtype", "out"),
    [(dtype, out) for dtype in ELEMENTS for out in OUTPUTS[dtype] if out != torch.int32],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
# four features at once; the same and a rest of two; rows that forbid it
@pytest.mark.parametrize(("features", "gap"), [(72, 8), (70, 10), (70, 9)])
def test_the_epilogue_is_that_of_the_reference(
    emulator, dtype, out, activation, features, gap
) -> None:
    x, weight = operands(features, 5, dtype)
    given = epilogue_of(features, 5, out, gap)
    given["bias"] = given["bias"].to(ELEMENTS[activation % 2] if activation else torch.float32)
    call = Call(x, weight, True, out, gap)
    out_scale = 8.0 if out == torch.int8 else 0.375
    call.fields |= {name: start(tensor) for name, tensor in given.items()}
    call.fields |= {
        "bias_type": TYPES[given["bias"].dtype],
        "residual_pitch": given["residual"].stride(0) * out.itemsize,
        "residual_scale": 0.75,
        "out_scale": out_scale,
        "activation": activation,
    }
    assert call.run(emulator) is None
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


@both_forms
def test_a_row_has_the_same_bits_in_every_batch_and_tile(emulator, sparse) -> None:
    weight = draw.weight_2to4(200, 512, torch.float16, seed=4)
    x = draw.operand(100, 512, torch.float16, seed=5)
    many = Call(x, weight, sparse, torch.float16)
    assert many.run(emulator) is None
    for first, last in ((0, 1), (37, 41), (0, 60)):
        few = Call(x[first:last], weight, sparse, torch.float16)
        assert few.run(emulator) is None
        assert torch.equal(few.out, many.out[first:last])


@both_forms
@every_type
def test_a_device_of_little_shared_memory_gets_a_smaller_tile(emulator, dtype, sparse) -> None:
    x, weight = operands(*TILES["256x128"], dtype)
    call = Call(x, weight, sparse, EXACT.get(dtype, torch.float32))
    assert call.run(emulator, shared_limit=99 * 1024) is None  # Ada's
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)
    assert "shared memory" in call.run(emulator, shared_limit=16 * 1024)


def test_e4m3_is_refused_where_the_device_has_none(emulator) -> None:
    x, weight = operands(70, 3, torch.float8_e4m3fn)
    call = Call(x, weight, True, torch.float32)
    assert "8.9" in call.run(emulator, capability=80)
    assert "8.0" in call.run(emulator, capability=75)


def test_on_hopper_e4m3_takes_the_smallest_tile(emulator) -> None:
    x, weight = operands(*TILES["256x128"], torch.float8_e4m3fn)
    call = Call(x, weight, True, torch.float32)
    assert call.run(emulator, capability=90) is None
    assert emulator.threads == 128  # of the others no code is built: sm80_has
    assert torch.equal(call.out.double(), x.double() @ weight.double().T)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": TYPES[torch.float32]}, "x and the weight must be"),
        ({"out_type": TYPES[torch.float8_e4m3fn]}, "e4m3"),
        ({"out_type": TYPES[torch.int8]}, "only where x and the weight are s8"),
        ({"tokens": -1}, "negative"),
        ({"convolution": 64}, "no convolutions"),
        ({"weight": 8}, "multiple of 16"),
        ({"x_pitch": 601}, "multiple of their element's size"),
    ],
)
def test_a_wrong_call_is_refused_in_words(emulator, change, words) -> None:
    x, weight = operands(70, 3, torch.float16)
    call = Call(x, weight, True, torch.float32)
    call.fields |= change
    assert words in call.run(emulator)
    assert bool((call.out == POISON).all())


def test_bare_sums_take_no_epilogue(emulator) -> None:
    x, weight = operands(70, 3, torch.int8)
    call = Call(x, weight, True, torch.int32)
    call.fields["activation"] = ACTIVATIONS["relu"]
    assert "bare sums" in call.run(emulator)
