"""The benchmark without a GPU: its shapes, its rotation, its refusal; with one, its clock."""

from pathlib import Path

import pytest
import torch

from sparse24 import bench, gemms
from sparse24.seam import TYPES

SHAPES = Path(__file__).resolve().parents[2] / "experiments" / "bench" / "gemm.csv"


def test_the_shapes_are_those_of_the_issue() -> None:
    found = gemms.shapes_of(SHAPES, ["talk"])
    # the talk's table of BERT-Large's GEMMs
    assert found == [
        (1024, 8192, 1024),
        (1024, 16384, 1024),
        (4096, 8192, 1024),
        (4096, 16384, 1024),
    ]
    squares = gemms.shapes_of(SHAPES, ["square"])
    assert squares == [(n, n, n) for n in (512, 1024, 2048, 4096, 8192, 16384)]
    tokens = {n for _, n, _ in gemms.shapes_of(SHAPES, ["tokens"])}
    assert (min(tokens), max(tokens)) == (1, 65536)
    every = gemms.shapes_of(SHAPES, [])
    assert len(every) == len(set(every))


def test_an_unknown_group_is_refused_with_the_known() -> None:
    with pytest.raises(bench.BenchError, match="no group 'cube'; known: talk, bert_large"):
        gemms.shapes_of(SHAPES, ["cube"])


@pytest.mark.parametrize("size", [1000, 3 * 2**20, 2**30])
def test_operands_rotate_through_more_than_the_cache(size) -> None:
    sets = bench.sets_to_rotate(size)
    assert sets >= 2
    assert sets == bench.MOST_SETS or (sets - 1) * size >= bench.ROTATE_BYTES


@pytest.mark.parametrize("dtype", gemms.DTYPES)
def test_each_backend_is_asked_for_the_same_result(dtype) -> None:
    asked = gemms.problems(64, 128, 256, dtype)
    problem, backends = asked["same result"]
    assert (problem.out_features, problem.tokens, problem.in_features) == (64, 128, 256)
    assert problem.out_type == TYPES[torch.float16]
    assert set(backends) == {"sparse24", "cusparselt", "dense"}
    assert problem.bias == (dtype == "float16")
    assert problem.scale == (dtype == "int8")
    assert not asked["dense mode"][0].sparse


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
