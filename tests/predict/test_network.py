"""A network's prediction: Amdahl by hand, what stays dense, verdicts, and the command."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workbench import cli, dag, resolve
from workbench.predict import network, records, text
from workbench.predict.devices import Device, Rate
from workbench.predict.network import Parts, Prediction, of_trace, predict
from workbench.predict.timing import Timetable
from workbench.predict.trace import traced
from workbench.workload import Workload, WorkloadError, workload

CARD = Device(
    title="Card", records="Card", multiprocessors=10, clock_ghz=1.0, memory_tb=1.0,
    memory_share=1.0, l2_tb=4.0, l2_mb=10.0, launch_us=2.0, tile_clocks=1000.0, shared_bytes=128,
    attention_share=0.5, rates={"fp16": Rate(dense=100.0, sparse=200.0)},
)  # fmt: skip
NOWHERE = Path("no such folder")


class Perceptron(nn.Module):
    """Two layers with a GELU between them, and a norm behind."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(64, 128), nn.Linear(128, 64), nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(nn.functional.gelu(self.up(x))) + x)


@pytest.fixture
def work() -> Workload:
    def drawn(batch: int, device: str) -> tuple[Tensor]:
        return (torch.empty(batch, 64, device=device),)

    return Workload("perceptron", "Perceptron", Perceptron().to("meta"), drawn, "rows", "64 wide")


def table(folder: Path, up: dict[str, float], down: dict[str, float]) -> Timetable:
    rows = [
        {"m": m, "n": 1000, "k": k, "dtype": "float16",
         "found": {name: {"median_us": time} for name, time in times.items()}}
        for m, k, times in ((128, 64, up), (64, 128, down))
    ]  # fmt: skip
    told = {"facts": {"device": "Card"}, "rows": rows}
    (folder / "gemm.json").write_text(json.dumps(told))
    return Timetable(CARD, "fp16", records.read(folder, CARD, "fp16"))


def parts(prunable: float, rest: float) -> Parts:
    return Parts(prunable, 0.0, 0.0, rest)


def prediction(work: Workload, dense: Parts, sparse: Parts, layers: tuple = ()) -> Prediction:
    return Prediction(work, CARD, "fp16", 1, layers, dense, dense, dense, sparse)


def test_amdahl_is_as_by_hand(work) -> None:
    found = prediction(work, parts(8.0, 2.0), parts(4.0, 2.0))
    assert found.share == 0.8
    assert found.layer_speedup == 2.0
    assert found.amdahl == pytest.approx(1 / (0.2 + 0.8 / 2))  # 1.67
    assert found.speedup == pytest.approx(10 / 6)


def test_the_talks_sentence_is_its_own_amdahl(work) -> None:
    # "1.8x GEMM performance -> 1.5x network performance": then products are 75 % of the time
    found = prediction(work, parts(75.0, 25.0), parts(75.0 / 1.8, 25.0))
    assert found.amdahl == pytest.approx(1.5)


def test_a_network_is_the_sum_of_its_layers_and_of_what_lies_between(work, tmp_path) -> None:
    times = table(
        tmp_path, {"library": 30.0, "sparse24": 20.0}, {"library": 50.0, "sparse24": 25.0}
    )
    found = of_trace(work, traced(work, 1000), 1000, times)
    assert found.dense.prunable == pytest.approx(0.080)
    assert found.sparse.prunable == pytest.approx(0.045)
    assert found.sources() == {"measured": 1.0, "interpolated": 0.0, "roofline": 0.0}
    # add and norm: 1000 x 64 read twice and written, 2 bytes, by the cache at 4 TB/s; weight and
    # bias of the norm are 2 x 64; 2 us of launch
    between = 2.0 + (3 * 64_000 + 2 * 64) * 2 / 4e6
    # where ours have epilogues the GELU is of the first layer's and the sum of the second's
    assert found.sparse.rest == pytest.approx(between / 1e3)
    # a compiler has it in a kernel of its own: 1000 x 128 read and written
    gelu = 2.0 + 2 * 128_000 * 2 / 4e6
    assert found.compiled.rest == pytest.approx((between + gelu) / 1e3)
    assert found.dense == min(found.dense, found.compiled, key=lambda each: each.total)
    assert found.speedup == pytest.approx(found.dense.total / found.sparse.total)


def test_a_layer_that_is_not_faster_stays_dense_so_that_nothing_gets_slower(work, tmp_path) -> None:
    # 1 % is not enough for a second copy, as sparse24 has it
    slower = {"library": 30.0, "sparse24": 29.8}, {"library": 50.0, "sparse24": 80.0}
    found = of_trace(work, traced(work, 1000), 1000, table(tmp_path, *slower))
    assert not any(layer.sparse for layer in found.layers)
    assert found.speedup == 1.0
    assert found.verdict().startswith("No faster: no layer gains")


@pytest.mark.parametrize(
    ("sparse", "words"), [(5.0, "Faster: 2.00x"), (9.5, "Hardly faster: 1.05x"), (9.9, "No faster")]
)
def test_the_verdict_is_plain(work, tmp_path, sparse, words) -> None:
    times = {"library": 30.0, "sparse24": 20.0}, {"library": 50.0, "sparse24": 25.0}
    layers = of_trace(work, traced(work, 1000), 1000, table(tmp_path, *times)).layers
    found = prediction(work, parts(10.0, 0.0), parts(sparse, 0.0), layers)
    assert found.verdict().startswith(words)


def test_the_text_says_where_times_come_from_and_what_is_assumed(work, tmp_path) -> None:
    times = {"library": 30.0, "sparse24": 20.0}, {"library": 50.0, "sparse24": 25.0}
    found = of_trace(work, traced(work, 1000), 1000, table(tmp_path, *times))
    shown = text.as_text(found)
    row = next(line for line in shown.splitlines() if line.startswith("up "))
    assert " ".join(row.split()) == "up 1 128 x 1000 x 64 30.0 20.0 1.50 2:4 measured"
    assert "Time of products by origin: measured 100%" in shown
    assert "The roofline against 2 measured products" in shown
    assert shown.splitlines()[-1] == found.verdict()
    told = text.as_data(found)
    assert [layer["source"] for layer in told["layers"]] == ["measured", "measured"]
    assert json.loads(json.dumps(told))["speedup"] == pytest.approx(found.speedup)


def test_eight_bits_of_a_card_without_records_are_of_the_roofline() -> None:
    found = predict(workload("bert_large"), 256, "a100", "int8", NOWHERE)
    assert found.sources()["roofline"] == 1.0
    # the talk's table: 1.3x to 1.5x between batches of 1 and 256
    assert 1.3 <= found.speedup <= 1.5


def test_grouped_convolutions_that_stay_dense_give_the_talks_resnext() -> None:
    work = workload("resnext101_32x16d")
    every = predict(work, 256, "a100", "fp16", NOWHERE)
    found = predict(work, 256, "a100", "fp16", NOWHERE, dense_groups=True)
    # the talk's table: 2700 images a second at a batch of 256, and up to 1.3x
    assert 256 / found.sparse.total * 1e3 == pytest.approx(2700, rel=0.1)
    assert 1.0 < found.speedup <= 1.3 < every.speedup
    kept = [layer for layer in found.layers if "several groups" in layer.product.reason]
    assert len(kept) == 33  # 3 + 4 + 23 + 3 blocks, a 3x3 each
    assert not any(layer.sparse for layer in kept)


def test_a_prediction_of_one_batch_more_is_another_line(capsys) -> None:
    assert cli.run(["predict", "resnet20_cifar", "--batch", "1,64"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[2:5]] == ["batch", "1", "64"]
    assert "roofline" in shown


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["resnet5"], "unknown network 'resnet5' (did you mean 'resnet50'?); known: bert_base"),
        (["resnet50", "--device", "h10"], "unknown device 'h10' (did you mean 'h100'?)"),
        (["resnet50", "--precision", "int9"], "precision 'int9': H100 SXM 80GB has rates of fp16"),
        (["resnet50", "--batch", "1,x"], "batch '1,x': batches are whole numbers, as in 1,32,256"),
        (["resnet50", "--batch", "0"], "batch '0': batches are above 0"),
        (["resnet50", "--batch", ""], "give some, as in 1,32,256"),
        (["gnmt"], "gnmt: packs sentences by their lengths"),
    ],
)
def test_what_is_unknown_is_one_line_with_what_is_allowed(given, words, capsys) -> None:
    assert cli.run(["predict", *given]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n for n in resolve.names("networks") if dag.spec_of(n, "2to4", "full").talk]
)
def test_every_network_of_the_talk_is_predicted_or_says_why_not(name) -> None:
    if name == "gnmt":
        with pytest.raises(WorkloadError):
            workload(name)
        return
    found = predict(workload(name), 8, "h100", "fp16", NOWHERE)
    assert 1.0 <= found.speedup < 2.0
    assert found.eager.total > found.dense.total
    assert network.by_shape(found)
