"""What a pass consists of: shapes of layers, counted by hand, and what lies between them."""

import pytest
import torch
from torch import Tensor, nn

from workbench.predict.shapes import Convolution, Product
from workbench.predict.trace import Trace, traced
from workbench.workload import Workload, WorkloadError, workload


def passed(module: nn.Module, *shape: int) -> Trace:
    def drawn(batch: int, device: str) -> tuple[Tensor]:
        return (torch.empty(batch, *shape, device=device),)

    model = nn.Sequential(module).to("meta").eval()
    return traced(Workload("", "", model, drawn, "", ""), 2)


@pytest.fixture(scope="module")
def resnet50() -> Trace:
    return traced(workload("resnet50"), 2)


@pytest.fixture(scope="module")
def bert_large() -> Trace:
    return traced(workload("bert_large"), 2)


def sizes(seen: Trace, prefix: str) -> dict[str, tuple[int, int, int]]:
    found = {p.name.removeprefix(prefix): p for p in seen.products if p.name.startswith(prefix)}
    return {name: (p.m, p.n, p.k) for name, p in found.items()}


def test_the_first_block_of_resnet50_is_as_counted_by_hand(resnet50) -> None:
    # 2 images; the stem halves 224 twice, so the block sees 56 x 56: 6272 pixels
    assert sizes(resnet50, "layer1.0.") == {
        "conv1": (64, 6272, 64),
        "conv2": (64, 6272, 64 * 3 * 3),
        "conv3": (256, 6272, 64),
        "downsample.0": (256, 6272, 64),
    }


def test_a_strided_convolution_has_the_pixels_of_its_result(resnet50) -> None:
    # stage 2 halves 56 x 56 in its 3x3: 2 * 28 * 28 = 1568 pixels
    product = next(p for p in resnet50.products if p.name == "layer2.0.conv2")
    assert (product.m, product.n, product.k) == (128, 1568, 1152)
    assert product.shape == Convolution(2, 128, 128, 56, 56, (3, 3), (2, 2), (1, 1), (1, 1), 1)


def test_resnet50_has_the_operations_that_are_published(resnet50) -> None:
    # torchvision's weights page: 4.09 GFLOPS, which are multiply-adds of an image
    assert sum(p.flops for p in resnet50.products) / 2 / 2 / 1e9 == pytest.approx(4.09, abs=0.005)


def test_only_the_first_convolution_of_resnet50_stays_dense_and_says_why(resnet50) -> None:
    (stem,) = [p for p in resnet50.products if p.reason]
    assert stem.name == "conv1"
    assert "3 input channels" in stem.reason


def test_a_layer_of_bert_large_is_as_counted_by_hand(bert_large) -> None:
    # hidden 1024, inner 4096, 2 sequences of 128 tokens: 256
    assert sizes(bert_large, "bert.encoder.layer.0.") == {
        "attention.self.query": (1024, 256, 1024),
        "attention.self.key": (1024, 256, 1024),
        "attention.self.value": (1024, 256, 1024),
        "attention.output.dense": (1024, 256, 1024),
        "intermediate.dense": (4096, 256, 1024),
        "output.dense": (1024, 256, 4096),
    }
    # 2 sequences, 16 heads, 128 x 128 scores of 64, twice, each a multiply and an add
    assert [each.flops for each in bert_large.attention] == [4 * 2 * 16 * 128 * 128 * 64] * 24


def test_what_lies_between_the_products_of_bert_is_grouped_as_a_compiler_would(bert_large) -> None:
    named = [(tuple(group.names), group.behind) for group in bert_large.groups if group.names]
    gelus = [behind.name for names, behind in named if names == ("gelu",)]
    assert gelus == [f"bert.encoder.layer.{n}.intermediate.dense" for n in range(24)]
    norms = [behind for names, behind in named if names == ("add", "native_layer_norm")]
    assert norms == [None] * 48  # no epilogue of ours has a norm


def test_batch_norms_are_folded_and_relu_and_residual_are_an_epilogues(resnet50) -> None:
    adds = [group for group in resnet50.groups if "add_" in group.names]
    assert len(adds) == 16  # 3 + 4 + 6 + 3 blocks
    assert all(group.behind.name.endswith("conv3") for group in adds[:-1])
    assert "mean" in adds[-1].names  # the last is read by the pooling alone, in one kernel
    # behind an epilogue the residual alone is read: 256 channels of 2 x 56 x 56 pixels
    assert [node.size for node in adds[0].reads] == [256 * 6272]
    alone = [group.behind.name for group in resnet50.groups if group.folded]
    assert alone == [f"layer{n}.0.downsample.0" for n in (1, 2, 3, 4)]


def test_narrow_groups_are_counted_as_they_are_packed() -> None:
    # 32 groups of 16 channels: 4 side by side make a block of 64
    (product,) = passed(
        nn.Conv2d(512, 512, 3, padding=1, groups=32, bias=False), 512, 8, 8
    ).products
    assert (product.m, product.n, product.k, product.count) == (16, 128, 144, 32)
    assert product.wide == (64, 9 * 64, 8)
    assert product.reason == ""


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (nn.Conv2d(32, 32, 3, groups=32), (32, 8, 8), "depthwise"),
        (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), (64, 8, 8), "reflect"),
        (nn.Linear(30, 64), (30,), "not a multiple of 4"),
    ],
)
def test_a_layer_that_is_not_packed_says_why(layer, shape, words) -> None:
    products = passed(layer, *shape).products
    assert words in products[0].reason


def test_a_product_of_two_activations_is_no_layer() -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(1, 2)

    (product,) = passed(Scores(), 16, 64).products
    assert (product.m, product.n, product.k, product.count) == (16, 16, 64, 2)
    assert "not a layer's weight" in product.reason


def test_a_product_knows_its_operations() -> None:
    assert Product(4, 5, 6, count=3).flops == 2 * 4 * 5 * 6 * 3


def test_gnmt_is_refused_with_the_reason() -> None:
    with pytest.raises(WorkloadError, match="gnmt: packs sentences by their lengths"):
        workload("gnmt")


def test_a_detector_passes_what_has_fixed_shapes_at_a_stated_size() -> None:
    work = workload("maskrcnn_rn50_fpn_1x")
    assert work.size == "800 x 1088 px"  # 4:3 of 800 in multiples of 32
    names = {product.name: product for product in traced(work, 1).products}
    # 1000 proposals an image, each 7 x 7 of 256 channels
    assert names["boxes.fc6"].n == 1000
    assert names["boxes.fc6"].k == 256 * 7 * 7
    # masks of the 100 best, at 14 x 14
    assert names["masks.0.0"].n == 100 * 14 * 14
