"""The kernels on a GPU: random cases, graphs, streams, devices, compile; skipped without one."""

import pytest
import torch

import sparse24
from sparse24 import bench, check, draw

pytestmark = pytest.mark.gpu


def operands(tokens: int = 200, out: int = 264, columns: int = 520, device: str = "cuda"):
    dense = draw.weight_2to4(out, columns, torch.float16, 1, device)
    x = draw.operand(tokens, columns, torch.float16, 2, device)
    return sparse24.pack(dense), x, torch.randn(out, device=device)


def test_random_cases_hold() -> None:
    _, failed = check.sweep(range(2000), "cuda")
    assert failed == []


def test_random_cases_hold_for_the_ampere_kernel() -> None:
    _, failed = check.sweep(range(2000, 4000), "cuda", [sparse24.seam.SM80])
    assert failed == []


def test_a_graph_replays_the_result_of_new_inputs() -> None:
    w, x, bias = operands()
    sparse24.linear(x, w, bias, "gelu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = sparse24.linear(x, w, bias, "gelu")
    x.copy_(draw.operand(*x.shape, torch.float16, 9, "cuda"))
    graph.replay()
    assert torch.equal(result, sparse24.linear(x, w, bias, "gelu"))


def test_the_current_stream_is_used() -> None:
    w, x, bias = operands()
    wanted = sparse24.linear(x, w, bias)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = x * 2  # only on this stream, and only after the sleep
        found = sparse24.linear(late, w, bias * 2)
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(found, wanted * 2, rtol=2e-3, atol=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_is_used() -> None:
    w, x, bias = operands(device="cuda:1")
    assert torch.cuda.current_device() == 0
    found = sparse24.linear(x, w, bias)
    assert found.device == torch.device("cuda:1")
    assert torch.equal(found.to(0), sparse24.linear(x.to(0), w.to(0), bias.to(0)))


def test_compiled_whole_it_gives_the_same_bits() -> None:
    w, x, bias = operands()
    layer = torch.compile(lambda t: sparse24.linear(t, w, bias, "relu"), fullgraph=True)
    assert torch.equal(layer(x), sparse24.linear(x, w, bias, "relu"))


def test_gradients_are_those_of_the_dense_product() -> None:
    w, x, bias = operands()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    sparse24.linear(ours, w, bias, "gelu").sum().backward()
    dense = torch.nn.functional.linear(theirs, w.unpack(), bias.half())
    torch.nn.functional.gelu(dense).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=5e-2)


def test_a_start_that_is_no_multiple_of_16_bytes_is_copied() -> None:
    w, x, bias = operands()
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view_as(x).copy_(x)
    assert torch.equal(sparse24.linear(shifted, w, bias), sparse24.linear(x, w, bias))


def test_packing_on_the_gpu_refuses_what_is_not_2to4_by_row_and_group() -> None:
    dense = draw.weight_2to4(300, 512, torch.float16, 1, "cuda")
    dense[211, 40:43] = 1
    with pytest.raises(sparse24.PackError, match=r"row 211, group 10 .* non-zeros"):
        sparse24.pack(dense)


def test_tuning_never_takes_what_was_slower(tmp_path) -> None:
    w, *_ = operands(out=512, columns=512)
    store = sparse24.dispatch.Measured(tmp_path / "times.json")
    sparse24.tune(w, [16, 2048], bias=True, store=store)
    (rungs,) = w.tuned.values()
    for rung in rungs:
        times = {t.choice: t.timing.median_us for t in rung.trials}
        assert times[rung.choice] <= min(times.values()) * (1 + sparse24.dispatch.MARGIN)
    assert "us  [" in sparse24.why((16, 512), w, torch.zeros(512, device="cuda"))


def test_the_host_needs_little_time() -> None:
    w, x, bias = operands(16, 64, 64)
    with torch.no_grad():
        micros = bench.host_us(lambda: sparse24.linear(x, w, bias))
    print(f"linear takes {micros:.2f} us of the host")
    assert micros < 40  # a record says the time; this catches a tenfold slip on a busy host
