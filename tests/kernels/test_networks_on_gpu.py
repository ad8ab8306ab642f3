"""Swapped networks on a GPU: numbers, CUDA graphs, compilation, measuring; skipped without one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse24
from sparse24.dispatch import Measured
from sparse24.rounding import from_int8, norm, to_int8
from tests.kernels.networks import RESNETS, apart, bert, resnet

pytestmark = pytest.mark.gpu

NETWORKS = [*RESNETS, "bert_large"]
# 2^-11 and 2^-8 of some 32 roundings (test_swap_networks.py); INT8 of ranges of one batch
WHOLE = {"fp16": 4 * 2**-11, "bf16": 4 * 2**-8, "int8": 0.06}


def drawn(network: str) -> tuple[nn.Module, dict | Tensor]:
    model, inputs = bert() if network == "bert_large" else resnet(network)
    move = isinstance(inputs, dict)
    on_gpu = {name: t.cuda() for name, t in inputs.items()} if move else inputs.cuda()
    return model.cuda(), on_gpu


def run(model, inputs: dict | Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    with torch.no_grad():
        if isinstance(inputs, dict):
            return next(iter(model(**inputs).values()))
        return model(inputs.to(dtype, memory_format=torch.channels_last))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_swapped_network_keeps_its_numbers(network: str, precision: str) -> None:
    model, inputs = drawn(network)
    wanted = run(model, inputs, torch.float32)
    table = sparse24.swap(model, precision=precision, example=inputs, measure=False)
    assert sum(row.swapped for row in table) > 5
    found = run(model, inputs, torch.bfloat16 if precision == "bf16" else torch.float16)
    assert apart(found, wanted) < WHOLE[precision]


@pytest.mark.parametrize("network", NETWORKS)
def test_int8_on_the_gpu_is_int8_of_the_reference(network: str) -> None:
    model, inputs = drawn(network)
    sparse24.swap(model, precision="int8", example=inputs, measure=False)
    found = run(model, inputs).cpu()
    cpu = {n: t.cpu() for n, t in inputs.items()} if isinstance(inputs, dict) else inputs.cpu()
    # sums are exact on both; scale and bias are one rounding here and two there, and GELU, softmax
    # and norms are of other libraries: a value at the edge of two integers falls to the other side
    assert apart(found, run(model.cpu(), cpu)) < 0.02


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("network", ["resnet50", "bert_large"])
def test_a_graph_of_each_shape_gives_the_model_its_results(network: str, precision: str) -> None:
    model, inputs = drawn(network)
    sparse24.swap(model, precision=precision, example=inputs, measure=False)
    graphs = sparse24.Graphs(model)
    for batch in (3, 1, 3):
        for _ in range(2):
            if isinstance(inputs, dict):
                given = {"input_ids": torch.randint(1, 96, (batch, 24), device="cuda")}
            else:
                given = torch.randn(batch, 3, 48, 48, device="cuda")
            assert torch.equal(run(graphs, given), run(model, given))
    assert len(graphs) == 2


def test_a_graph_of_padded_tokens_masks_them() -> None:
    model, inputs = drawn("bert_large")
    sparse24.swap(model, precision="fp16", measure=False)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, 15:] = 0
    given = inputs | {"attention_mask": mask}
    graphs = sparse24.Graphs(model)
    # eagerly a mask of ones is left out; in a graph it is not, as its values are not looked at
    assert apart(run(graphs, given), run(model, given)) < WHOLE["fp16"]
    assert apart(run(graphs, inputs | {"attention_mask": torch.ones_like(mask)}),
                 run(model, inputs)) < WHOLE["fp16"]  # fmt: skip


class Waits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), device="cuda"))

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x * self.factor


def test_what_waits_for_the_gpu_is_no_graph_and_the_next_call_works() -> None:
    with pytest.raises(sparse24.GraphError, match="but not as a CUDA graph: .*must not wait for"):
        sparse24.Graphs(Waits().eval())(torch.ones(3, device="cuda"))
    model = nn.Linear(8, 8).cuda().eval()
    x = torch.randn(4, 8, device="cuda")
    assert torch.equal(sparse24.Graphs(model)(x), model(x))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("network", ["resnet50", "bert_large"])
def test_compiled_whole_it_keeps_its_numbers(network: str, precision: str) -> None:
    model, inputs = drawn(network)
    sparse24.swap(model, precision=precision, example=inputs, measure=False)
    wanted = run(model, inputs)
    compiled = torch.compile(model, fullgraph=True)
    assert apart(run(compiled, inputs), wanted) < WHOLE[precision]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("network", ["resnet50", "bert_large"])
def test_a_measured_network_keeps_its_numbers(network: str, precision: str, tmp_path) -> None:
    model, inputs = drawn(network)
    wanted = run(model, inputs, torch.float32)
    store = Measured(tmp_path / "times.json")
    table = sparse24.swap(model, precision=precision, example=inputs, store=store)
    print(table)
    assert any(row.times for row in table)
    assert apart(run(model, inputs), wanted) < WHOLE[precision]


@pytest.mark.parametrize("shape", [(5,), (3, 24, 128), (3, 32, 6, 6), (2, 10, 5, 7), (4, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_is_one_kernel_with_the_integers_of_plain_torch(shape, dtype) -> None:
    x = torch.randn(shape, device="cuda", dtype=dtype) * 2
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    step = torch.tensor(0.02, device="cuda")
    found = to_int8(x, 1 / step)
    wanted = (x.float() * (1 / step)).round().clamp(-127, 127).to(torch.int8)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride() or 1 in shape
    back = from_int8(found, step, torch.float16)
    assert torch.equal(back, (found.float() * step).half())


def test_a_norm_and_its_rounding_are_those_of_plain_torch() -> None:
    layer = nn.LayerNorm(1024).cuda().half()
    nn.init.normal_(layer.weight, 1, 0.1)
    for tokens in (384, 7, 1):
        x = torch.randn(2, tokens, 1024, device="cuda").half()
        with torch.no_grad():
            result, rounded = norm(x, layer, torch.tensor(1 / 0.03, device="cuda"))
            wanted = F.layer_norm(x.double(), (1024,), layer.weight.double(), layer.bias.double())
        assert apart(result, wanted) < 2**-11
        # at the edge of two integers a difference of the norm's last bit shows
        assert (rounded - (wanted / 0.03).round().clamp(-127, 127)).abs().max() <= 1
        assert apart(rounded * 0.03, result) < 0.02
