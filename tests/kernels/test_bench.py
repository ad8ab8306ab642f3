"""The benchmark without a GPU: its shapes, its rotation, its refusal; with one, its clock."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from sparse24 import bench, convs, gemms, sweeps
from sparse24.candidates import Choice
from sparse24.seam import DTYPES, TYPES
from sparse24.trials import Asked, Trial

BENCH = Path(__file__).resolve().parents[2] / "experiments" / "bench"
SHAPES = BENCH / "gemm.csv"


def test_the_shapes_are_those_of_the_issue() -> None:
    found = gemms.BENCHMARK.shapes_of(SHAPES, ["talk"])
    # the talk's table of BERT-Large's GEMMs
    assert found == [
        (1024, 8192, 1024),
        (1024, 16384, 1024),
        (4096, 8192, 1024),
        (4096, 16384, 1024),
    ]
    squares = gemms.BENCHMARK.shapes_of(SHAPES, ["square"])
    assert squares == [(n, n, n) for n in (512, 1024, 2048, 4096, 8192, 16384)]
    tokens = {n for _, n, _ in gemms.BENCHMARK.shapes_of(SHAPES, ["tokens"])}
    assert (min(tokens), max(tokens)) == (1, 65536)
    every = gemms.BENCHMARK.shapes_of(SHAPES, [])
    assert len(every) == len(set(every))


def test_an_unknown_group_is_refused_with_the_known() -> None:
    with pytest.raises(bench.BenchError, match="no group 'cube'; known: talk, bert_large"):
        gemms.BENCHMARK.shapes_of(SHAPES, ["cube"])


def test_an_unknown_type_is_refused_before_anything_is_measured(tmp_path) -> None:
    with pytest.raises(bench.BenchError, match="type 'fp16'; known: float16, bfloat16, int8"):
        gemms.BENCHMARK.sweep([gemms.Shape(64, 64, 64)], ["fp16"], tmp_path / "out.json", {})


def test_a_sweep_goes_on_where_it_stopped_unless_the_kernels_changed(tmp_path, monkeypatch) -> None:
    kernels = "first"
    monkeypatch.setattr(bench, "facts", lambda: {"device": "none"})
    monkeypatch.setattr(sweeps.build, "compiler", lambda: None)
    monkeypatch.setattr(sweeps.build, "digest", lambda _: kernels)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(bench, "under_load", lambda calls: {"clock_mhz": "1"})
    monkeypatch.setattr(sweeps, "Operands", lambda problem, device: Mock())
    asked = []

    def timed(given: list[Asked], device: torch.device) -> list[list[Trial]]:
        asked.extend(each.problem.result for each in given)
        return [[Trial(Choice("sparse24", 0), bench.Timing(2.0, 1.0, 3.0))] for _ in given]

    monkeypatch.setattr(sweeps, "trials_of", timed)
    out, shapes = tmp_path / "out.json", [gemms.Shape(64, 8, 32), gemms.Shape(128, 16, 32)]
    gemms.BENCHMARK.sweep(shapes[:1], ["float16"], out, {})
    assert set(asked) == {(8, 64)}
    asked.clear()
    told = gemms.BENCHMARK.sweep(shapes, ["float16"], out, {"commit": "x"})
    assert set(asked) == {(16, 128)}
    assert json.loads(out.read_text()) == told
    assert [(row["m"], row["n"], row["k"], row["dtype"]) for row in told["rows"]] == [
        (64, 8, 32, "float16"),
        (128, 16, 32, "float16"),
    ]
    assert told["rows"][0]["found"]["sparse24"]["median_us"] == 2.0
    kernels = "second"  # a row of the first stays until it is asked for
    rows = gemms.BENCHMARK.sweep(shapes[:1], ["float16"], out, {})["rows"]
    assert [(row["m"], row["kernels"]) for row in rows] == [(64, "second"), (128, "first")]


def test_the_convolutions_are_the_talks_and_every_one_of_two_networks() -> None:
    found = convs.BENCHMARK.shapes_of(BENCH / "conv.csv", ["talk"])
    # the talk's table of convolutions: N, C, K, H; the last row in both readings
    assert [(s.n, s.c, s.k, s.h, s.r) for s in found] == [
        (32, 1024, 2048, 14, 1),
        (32, 2048, 1024, 14, 1),
        (32, 2048, 4096, 7, 1),
        (32, 4096, 2048, 7, 1),
        (256, 256, 512, 7, 3),
        (256, 512, 512, 7, 3),
    ]
    for make, name in ((_resnext101, "resnext101_32x16d"), (resnet.resnet50, "resnet50")):
        for batch in (1, 32, 256):
            rows = sweeps.rows_of(BENCH / "conv.csv", [f"{name}_{batch}"])
            told = {
                convs.Shape(*(int(r[n]) for n in convs.Shape._fields)): int(r["count"])
                for r in rows
            }
            assert told == _convolutions(make, batch)


def _resnext101() -> nn.Module:
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=16)


def _convolutions(make: Callable[[], nn.Module], batch: int) -> Counter[convs.Shape]:
    """The convolutions that are 2:4 of a network, as torchvision runs it at 224 pixels."""
    with torch.device("meta"):
        model, found = make().eval(), Counter()

    def note(layer: nn.Conv2d, given: tuple[torch.Tensor]) -> None:
        walk = *layer.kernel_size, layer.stride[0], layer.padding[0], layer.groups
        channels = layer.in_channels, layer.out_channels
        found[convs.Shape(batch, *channels, *given[0].shape[2:], *walk)] += 1

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 3:
            layer.register_forward_pre_hook(note)
    model(torch.empty(1, 3, 224, 224, device="meta"))
    return found


@pytest.mark.parametrize("dtype", convs.BENCHMARK.dtypes)
def test_a_convolution_is_asked_of_cudnn_and_a_1x1_one_of_cublas_too(dtype) -> None:
    point = convs.Shape(32, 1024, 2048, 14, 14, 1, 1, 1, 0, 1)
    asked = convs.problems(point, dtype)
    problem, backends, *_ = asked["same result"]
    # 32 * 14 * 14 pixels, as the talk's table says of its first row
    assert (problem.out_features, problem.tokens, problem.in_features) == (2048, 6272, 1024)
    assert set(backends) == {"sparse24", "dense"}
    assert asked["as an image"].problem.result == problem.result
    grouped = convs.Shape(256, 512, 512, 56, 56, 3, 3, 1, 1, 32)
    problem = convs.problems(grouped, dtype)["same result"].problem
    assert problem.result == (256 * 56 * 56, 512)
    assert problem.groups == 32
    assert problem.bias == (dtype == "float16")
    assert problem.scale == (dtype == "int8")
    assert DTYPES[problem.out_type] == getattr(torch, dtype)
    assert not convs.problems(grouped, dtype)["dense mode"].problem.sparse


@pytest.mark.parametrize("size", [1000, 3 * 2**20, 2**30])
def test_operands_rotate_through_more_than_the_cache(size) -> None:
    sets = bench.sets_to_rotate(size)
    assert sets >= 2
    assert sets == bench.MOST_SETS or (sets - 1) * size >= bench.ROTATE_BYTES


@pytest.mark.parametrize("dtype", gemms.BENCHMARK.dtypes)
def test_each_backend_is_asked_for_the_same_result(dtype) -> None:
    asked = gemms.problems(gemms.Shape(64, 128, 256), dtype)
    problem, backends, *_ = asked["same result"]
    assert (problem.out_features, problem.tokens, problem.in_features) == (64, 128, 256)
    assert problem.out_type == TYPES[torch.float16]
    assert set(backends) == {"sparse24", "cusparselt", "dense"}
    assert problem.bias == (dtype == "float16")
    assert problem.scale == (dtype == "int8")
    assert not asked["dense mode"].problem.sparse


def test_candidates_are_timed_in_turn_at_one_clock(monkeypatch) -> None:
    turns = []

    def elapsed(graph: str, rounds: int) -> float:
        turns.append(graph)
        clock = 1 + len(turns) / 100  # that falls as time goes on
        return rounds * clock * {"a": 2e-3, "b": 2e-3}[graph]

    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(
        bench, "captured", lambda calls: SimpleNamespace(name=calls[0], replay=lambda: None)
    )
    monkeypatch.setattr(bench, "_elapsed", lambda graph, rounds: elapsed(graph.name, rounds))
    first, second = bench.graph_times([["a"], ["b"]], repeats=3)
    assert turns[2:] == ["a", "b"] * 3  # behind one look at each
    assert second.median_us / first.median_us < 1.02
    assert first.low_us < first.median_us < first.high_us


def test_without_a_gpu_timing_is_a_named_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for call in (lambda: bench.graph_time([lambda: None]), bench.facts):
        with pytest.raises(bench.BenchError, match="run this on one"):
            call()


@pytest.mark.gpu
def test_a_graph_takes_as_long_as_its_copies() -> None:
    source = torch.empty(2**28, dtype=torch.int8, device="cuda")
    targets = [torch.empty_like(source) for _ in range(2)]
    timing = bench.graph_time([lambda t=t: t.copy_(source) for t in targets])
    # 512 MiB moved: no card has more than 10 TB/s, an H100 has 3.35 (its data sheet)
    assert timing.low_us <= timing.median_us <= timing.high_us
    assert timing.low_us > 2**29 / 10e12 * 1e6
