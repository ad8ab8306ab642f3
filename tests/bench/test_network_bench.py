"""The benchmark of whole networks without a GPU: its rows, and how it goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24 import bench, sweeps
from sparse24.bench import BenchError, Timing
from sparse24.candidates import Choice
from sparse24.dense_mode import in_dense_mode
from sparse24.nn import SparseLinear
from sparse24.trials import Trial
from workbench.bench import eight_bits, meter
from workbench.bench import network as benchmark
from workbench.bench.candidates import CANDIDATES, Candidate, folded
from workbench.bench.network import Tools, difference, measured_row, settle
from workbench.bench.plan import Planned, planned
from workbench.workload import workload

MEASURED = {"median_us": 5.0, "low_us": 4.0, "high_us": 6.0, "memory_mb": 1.0, "energy_mj": None,
            "energy_reason": "no driver", "shares": {"2:4 products": 1.0}}  # fmt: skip
TINY = Planned("resnet20_cifar", 2, False)


def measured(call: Any) -> dict[str, Any]:
    call()
    return dict(MEASURED)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    # a CPU has convolutions of float16, and plain torch stands in for the kernels there
    return Tools(torch.device("cpu"), torch.half, measured, lambda call: call, "h100", tmp_path)


def test_a_swapped_network_is_timed_beside_its_error_and_its_prediction(tools) -> None:
    row = measured_row(TINY, "sparse24 fp16", tools)
    assert row["found"] == {"sparse24 fp16": MEASURED}
    assert row["packed"] == 19  # 3 x 6 convolutions and the classifier; the first has 3 channels
    assert 0 < row["error"] < 5e-3  # FP16 has 11 bits: rounding of some 20 layers
    assert row["predicted"]["speedup"] >= 1
    assert row["weights"] == "random, pruned 2:4 by magnitude"
    json.dumps(row)


def test_each_phase_is_told_as_it_ends_so_that_a_log_cut_off_says_where_it_was(
    tools, monkeypatch, capsys
) -> None:
    row = measured_row(TINY, "eager fp16", tools)
    phases = ["drawn and pruned", "made", "first calls", "timed"]
    assert list(row["seconds"]) == phases
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"resnet20_cifar 2 eager fp16: {phase} {row['seconds'][phase]} s" for phase in phases
    ]

    def failing(*_: Any) -> nn.Module:
        raise torch.OutOfMemoryError("of 80 GB")

    monkeypatch.setitem(CANDIDATES, "eager fp16", replace(CANDIDATES["eager fp16"], make=failing))
    assert list(measured_row(TINY, "eager fp16", tools)["seconds"]) == phases[:2]


def test_dense_mode_packs_the_same_layers_dense(tools) -> None:
    row = measured_row(TINY, "sparse24 dense fp16", tools)
    assert row["packed"] == 19
    assert 0 < row["error"] < 5e-3
    assert "predicted" not in row


def test_a_network_without_linear_layers_for_8_bits_says_so(tools) -> None:
    row = measured_row(TINY, "compiled int8", tools)
    assert "linear layers alone" in row["found"]["compiled int8"]["reason"]


def test_what_fails_in_a_candidate_is_its_reason_and_our_own_errors_are_not(
    tools, monkeypatch
) -> None:
    def failing(error: Exception) -> Candidate:
        def make(*_: Any) -> nn.Module:
            raise error

        return replace(CANDIDATES["eager fp16"], make=make)

    monkeypatch.setitem(CANDIDATES, "eager fp16", failing(torch.OutOfMemoryError("of 80 GB")))
    assert measured_row(TINY, "eager fp16", tools)["found"] == {
        "eager fp16": {"reason": "of 80 GB"}
    }
    for error in (BenchError("no clock"), KeyError("layer")):
        monkeypatch.setitem(CANDIDATES, "eager fp16", failing(error))
        with pytest.raises(type(error)):
            measured_row(TINY, "eager fp16", tools)


def test_the_benchmark_goes_on_where_it_stopped_unless_code_changed(tmp_path, monkeypatch) -> None:
    code, asked, judged = "first", [], []
    monkeypatch.setattr(bench, "require_gpu", lambda: None)
    monkeypatch.setattr(bench, "facts", lambda: {"device": "Card"})
    monkeypatch.setattr(sweeps.build, "compiler", lambda: None)
    monkeypatch.setattr(sweeps.build, "digest", lambda _: "kernels")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(benchmark, "card", lambda: "h100")
    monkeypatch.setattr(benchmark, "sha256_of_code", lambda: code)
    monkeypatch.setattr(sparse24, "Graphs", lambda model: model, raising=False)

    def row(which: Planned, candidate: str, _: Tools) -> dict[str, Any]:
        asked.append((which.network, which.batch, candidate, which.autotune))
        return dict(zip(benchmark.NAMED, (*which[:2], candidate), strict=True)) | {
            "found": {candidate: MEASURED}
        }

    monkeypatch.setattr(benchmark, "measured_row", row)
    out = tmp_path / "network.json"

    def metric(name: str, precision: str) -> dict[str, Any]:
        judged.append((name, precision))
        return {"reason": f"{name} {precision}"}

    def run(batches: list[int]) -> list[tuple]:
        asked.clear()
        judged.clear()
        benchmark.network(out, ["bert_large"], "fp16", batches, "", metric)
        return list(asked)

    assert [key[:3] for key in run([1])] == planned(["bert_large"], "fp16", [1])
    assert all(key[3] for key in run([8]))  # tuned, as the plan says
    assert run([1, 8]) == []
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 12
    told = {row["candidate"]: row.get("metric") for row in rows}
    assert told["sparse24 fp16"] == {"reason": "bert_large fp16"}
    assert told["eager fp16"] is None
    code = "second"
    assert len(run([1, 8])) == 12
    assert judged == [("bert_large", "fp16")]  # once for both batches


def test_attention_gets_no_mask_while_a_graph_is_recorded(monkeypatch) -> None:
    given, attention = [], nn.functional.scaled_dot_product_attention

    def note(*args: Tensor, **kwargs: Any) -> Tensor:
        given.append(kwargs.get("attn_mask", args[3] if len(args) > 3 else None))
        return attention(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", note)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    work = workload("bert_base", "cpu")
    with torch.no_grad():
        work.module(*work.arguments(1, "cpu"))
    assert given == [None] * 12
    benchmark.refuse_masks()
    with pytest.raises(BenchError, match=r"5\.17\.0 gives attention a mask .* install 5\.18"):
        benchmark.refuse_masks("5.17.0")


def test_batch_norms_are_folded_for_the_opponents_too(tools) -> None:
    work = workload("resnet20_cifar", "cpu")
    example = work.arguments(2, "cpu")
    settle(work.module, example)
    fewer = folded(work.module, example)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fewer.modules())
    torch.testing.assert_close(fewer(*example), work.module(*example), rtol=1e-4, atol=1e-4)


def test_random_networks_are_settled_so_that_fp16_holds_them() -> None:
    work = workload("resnet56_cifar", "cpu")
    example = work.arguments(2, "cpu")
    settle(work.module, example)
    seen = []
    norm = [m for m in work.module.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    norm.register_forward_hook(lambda _, given, out: seen.append(out))
    work.module(*example)
    assert float(seen[0].std()) == pytest.approx(1.0, rel=0.05)


def test_the_difference_of_outputs_is_relative() -> None:
    exact = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    assert difference([torch.tensor([3.0, 4.0]), torch.zeros(2)], exact) == 0
    # a difference of 5 where the values are 5 long
    assert difference([torch.zeros(2), torch.zeros(2)], exact) == 1.0


class Layers(nn.Module):
    """A layer that 8 bits take and one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(32, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x))


def test_dense_int8_layers_compute_what_they_replace() -> None:
    torch.manual_seed(0)
    model, x = Layers(), torch.randn(2, 20, 32)
    exact = model(x)
    assert eight_bits.in_eight_bits(model, (x,), torch.int8) == 1
    assert isinstance(model.wide, eight_bits.EightBitLinear)
    assert isinstance(model.narrow, nn.Linear)  # 3 is no multiple of 16
    # of 127 steps the rounding of both operands is below 1 %; 32 of them add up to less still
    assert difference([model(x)], [exact]) < 0.02


def test_few_rows_stay_as_they_are_as_torchs_product_takes_more_than_16() -> None:
    model = Layers()
    assert eight_bits.in_eight_bits(model, (torch.randn(16, 32),), torch.int8) == 0


def test_dense_mode_is_measured_at_what_the_2_to_4_weight_was() -> None:
    layer = nn.Linear(64, 64, bias=False).half()
    layer.weight.data.view(-1, 4)[:, :2] = 0
    model = nn.Sequential(SparseLinear.of(layer))

    class Store:
        found: dict = {}

        def get(self, problem: Any) -> Any:
            self.found[problem] = [Trial(Choice("sparse24", 3), Timing(1.0, 1.0, 1.0))]
            return self.found[problem]

    sparse24.tune(
        model[0].weight, [16, 64], timer=lambda calls: Timing(1.0, 1.0, 1.0), store=Store()
    )
    x = torch.randn(5, 64).half()
    before = model(x)
    Store.found.clear()
    assert in_dense_mode(model, store=Store()) == 1
    assert [(p.tokens, p.sparse) for p in Store.found] == [(16, False), (64, False)]
    assert not model[0].weight.sparse
    torch.testing.assert_close(model(x), before)
    assert in_dense_mode(model, store=Store()) == 0  # nothing is 2:4 any more


@pytest.mark.gpu
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_small_network_is_measured_on_a_gpu(candidate, tmp_path) -> None:
    given = Tools(
        torch.device("cuda", 0), torch.half, meter.measured, sparse24.Graphs, "h100", tmp_path
    )
    row = measured_row(Planned("minilm_l6", 8, False), candidate, given)
    found = row["found"][candidate]
    assert "reason" not in found
    assert found["low_us"] <= found["median_us"] <= found["high_us"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert row["error"] < (0.05 if row["precision"] == "fp16" else 0.3)
