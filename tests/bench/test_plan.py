"""The plan of the benchmark of networks: what is measured, in which order, and what is refused."""

import pytest

from sparse24.bench import BenchError
from workbench import cli, dag, resolve
from workbench.bench.candidates import CANDIDATES
from workbench.bench.plan import plan, planned
from workbench.resolve import SpecError


def test_the_plan_has_the_talks_batches_and_every_other_network_that_swaps() -> None:
    for name in ("bert_large", "resnext101_32x16d"):
        assert {p.batch for p in plan([name])} == {1, 8, 32, 64, 128, 256}
    names = {p.network for p in plan()}
    assert names <= set(resolve.names("networks"))

    def architecture(name: str) -> str:
        spec = dag.spec_of(name, "2to4", "full")
        phase = spec.phases[spec.last_phase]
        size = phase.data.image_size
        return f"{spec.model_of(spec.last_phase).model_dump()} {phase.task} {size}"

    talk = [n for n in resolve.names("networks") if dag.spec_of(n, "2to4", "full").talk]
    assert len(talk) == 34
    left = {architecture(name) for name in talk} - {architecture(name) for name in names}
    # whose input's values decide its shapes
    assert left == {architecture("gnmt")}


def test_keys_are_networks_batches_and_candidates_what_matters_most_first() -> None:
    keys = planned(["bert_large"], "fp16", [8])
    assert keys == [
        ("bert_large", 8, "sparse24 fp16"),
        ("bert_large", 8, "sparse24 compiled fp16"),
        ("bert_large", 8, "compiled fp16"),
        ("bert_large", 8, "eager fp16"),
        ("bert_large", 8, "sparse24 dense fp16"),
        ("bert_large", 8, "compiled descent fp16"),
    ]
    assert len(planned(["bert_large"], "", [])) == 6 * len(CANDIDATES)


def test_batches_and_candidates_come_in_the_order_in_which_they_are_named() -> None:
    assert planned(["bert_large"], "", [256, 1, 256], "eager fp16,sparse24 int8") == [
        ("bert_large", 256, "eager fp16"),
        ("bert_large", 256, "sparse24 int8"),
        ("bert_large", 1, "eager fp16"),
        ("bert_large", 1, "sparse24 int8"),
    ]
    of_both = planned(["resnext101_32x16d", "bert_large"], "int8", [64, 8], "compiled fp8")
    assert [key[:2] for key in of_both] == [
        ("bert_large", 64),  # networks in the plan's order
        ("resnext101_32x16d", 64),
        ("bert_large", 8),
        ("resnext101_32x16d", 8),
    ]


def test_what_takes_long_is_left_out_where_the_plan_tunes_nothing_at_length() -> None:
    assert {name for *_, name in planned(["sweep"], "", [])} == {
        name for name in CANDIDATES if name != "compiled descent fp16"
    }


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((["bert"], "", []), BenchError, "network.csv has no group 'bert'; known: bert_large"),
        (([], "fp32", []), SpecError, r"precision 'fp32'.*known: fp16, int8"),
        ((["bert_large"], "", [3]), SpecError, "batch 3: network.csv has 1, 8, 32, 64, 128, 256"),
        (
            ([], "", [], "eager fp8"),
            SpecError,
            "candidate 'eager fp8'.*known: sparse24 fp16, sp",
        ),
        (
            ([], "int8", [], "eager fp16"),
            SpecError,
            "is of fp16, and asked for is int8",
        ),
    ],
)
def test_what_the_plan_lacks_is_told_with_what_it_has(given, error, words) -> None:
    with pytest.raises(error, match=words):
        planned(*given)


def test_the_command_refuses_before_it_looks_for_a_gpu(capsys) -> None:
    assert cli.run(["bench", "network", "--batch", "3"]) == 1
    assert "batch 3: network.csv has" in capsys.readouterr().err
