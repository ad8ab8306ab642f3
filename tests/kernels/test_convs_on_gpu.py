"""Convolutions on a GPU: random cases, layers of networks, graphs, compile, dispatch."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import resnet

import sparse24
from sparse24 import check, conv_candidates, convolution, convs, draw
from sparse24.conv_cases import conv_case_of
from sparse24.seam import SM80, Plan

pytestmark = pytest.mark.gpu

SHAPES = Path(__file__).resolve().parents[2] / "experiments" / "bench" / "conv.csv"


def image(batch: int, channels: int, height: int, width: int) -> Tensor:
    flat = draw.operand(batch * height * width, channels, torch.float16, 2, "cuda")
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def operands(channels: int = 128, features: int = 264, groups: int = 1):
    shape = (features, channels // groups, 3, 3)
    dense = draw.kernel_2to4(shape, torch.float16, 1, "cuda")
    w = sparse24.pack_conv2d(dense, groups)
    return dense, w, image(3, channels, 13, 11), torch.randn(features, device="cuda")


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=4e-3, atol=2e-2)


def test_random_convolutions_hold() -> None:
    _, failed = check.sweep(range(2000), "cuda", drawing=conv_case_of)
    assert failed == []


def test_random_convolutions_hold_gathered_for_the_ampere_kernel() -> None:
    _, failed = check.sweep(range(2000, 2500), "cuda", [SM80], conv_case_of)
    assert failed == []


@pytest.mark.parametrize("tile", range(7))
@pytest.mark.parametrize("cluster", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_every_tile_and_cluster_gives_the_same_bits(tile, cluster) -> None:
    _, w, x, bias = operands(features=512)
    if w.backend != "sm90":
        pytest.skip("tiles are those of the Hopper kernel")
    call = convolution.prepared(x, w, bias, 2, 1, 1, None, "relu", None, None, None)
    given = call.x, w.packed, w.form, call.finish, call.geometry
    wanted = conv_candidates.ours(*given)
    for raster in (0, 4):
        try:
            found = conv_candidates.ours(*given, Plan(tile, *cluster, raster).number())
        except RuntimeError as error:
            assert "cluster" in str(error)  # 16 tokens are too few to share
            continue
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("group", ["resnext101_32x16d_1", "resnet50_1"])
def test_every_layer_of_the_networks_is_that_of_torch(group) -> None:
    for shape in convs.BENCHMARK.shapes_of(SHAPES, [group]):
        weight = (shape.k, shape.c // shape.groups, shape.r, shape.s)
        dense = draw.kernel_2to4(weight, torch.float16, 1, "cuda")
        x, w = image(2, shape.c, shape.h, shape.w), sparse24.pack_conv2d(dense, shape.groups)
        walk = {"stride": shape.stride, "padding": shape.padding}
        found = sparse24.conv2d(x, w, **walk, out_dtype=torch.float32)
        wanted = F.conv2d(x.double(), dense.double(), **walk, groups=shape.groups)
        size = wanted.square().mean().sqrt()
        assert (found - wanted).abs().max() < 5e-4 * size, shape


def test_a_graph_replays_the_result_of_new_images() -> None:
    _, w, x, bias = operands()
    sparse24.conv2d(x, w, bias, padding=1, activation="relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = sparse24.conv2d(x, w, bias, padding=1, activation="relu")
    x.mul_(0.5)
    graph.replay()
    assert torch.equal(result, sparse24.conv2d(x, w, bias, padding=1, activation="relu"))


def test_the_bits_of_an_image_do_not_depend_on_its_batch() -> None:
    _, w, x, bias = operands(128, 128, groups=2)
    whole = sparse24.conv2d(x, w, bias, padding=1)
    for n in range(len(x)):
        assert torch.equal(sparse24.conv2d(x[n : n + 1], w, bias, padding=1), whole[n : n + 1])


def test_compiled_whole_it_gives_the_same_bits() -> None:
    _, w, x, bias = operands()

    def layer(t: Tensor) -> Tensor:
        return sparse24.conv2d(t, w, bias, padding=1, activation="relu")

    assert torch.equal(torch.compile(layer, fullgraph=True)(x), layer(x))


def test_gradients_are_those_of_the_dense_convolution() -> None:
    dense, w, x, bias = operands(128, 128, groups=8)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    sparse24.conv2d(ours, w, bias, padding=1).sum().backward()
    F.conv2d(theirs, dense, bias.half(), padding=1, groups=8).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=5e-2)


def test_why_names_a_plan_that_fits_the_groups() -> None:
    _, w, x, bias = operands(256, 256, groups=4)
    told = sparse24.why(x, w, bias, padding=1)
    print(told)
    close(
        sparse24.conv2d(x, w, bias, padding=1),
        F.conv2d(x, w.unpack(), bias.half(), padding=1, groups=4),
    )
    assert w.backend != "sm90" or "of the cost model" in told


def test_a_swapped_resnet_is_never_slower_and_says_the_same(tmp_path) -> None:
    torch.manual_seed(0)
    model = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], num_classes=8, groups=8, width_per_group=16
    )
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.weight.shape[1] % 4 == 0:
            layer.weight.data.unflatten(1, (-1, 4))[:, :, 1::2] = 0
    model = model.half().eval().cuda().to(memory_format=torch.channels_last)
    x, exact = image(8, 3, 96, 96), copy.deepcopy(model).float()
    store = sparse24.dispatch.Measured(tmp_path / "times.json")
    with torch.no_grad():
        wanted = exact(x.float())
        table = sparse24.swap(model, tokens=[8], example=x, store=store)
        found = model(x).float()
    print(table)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
    for layer in table:
        for _, dense, ours in layer.times:
            assert layer.swapped or dense <= ours
