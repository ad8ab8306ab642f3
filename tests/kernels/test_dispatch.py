"""Dispatch with a clock of our own: what is chosen, kept, explained and written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sparse24
from sparse24 import build, candidates, dispatch, draw, sweeps, trials
from sparse24.algorithms import Algorithms
from sparse24.bench import BenchError, Timing
from sparse24.candidates import Choice
from sparse24.conv_trials import ConvProblem
from sparse24.dispatch import Measured
from sparse24.seam import TYPES, Plan
from sparse24.trials import Problem

OUT, IN = 20, 36


class Clock:
    """A timer that says what it is told of each backend and count of tokens, and counts calls."""

    def __init__(self, times) -> None:
        self.times, self.calls = times, 0

    def __call__(self, calls) -> Timing:
        self.calls += 1
        choice, x, *_ = calls[0].args
        calls[0]()
        found = self.times(choice, x.shape[0])
        if found is None:
            raise RuntimeError("not for this size\nmore")
        return Timing(found, found - 0.5, found + 0.5)


@pytest.fixture
def dense() -> torch.Tensor:
    return draw.weight_2to4(OUT, IN, torch.float16, seed=1)


@pytest.fixture
def store(tmp_path) -> Measured:
    return Measured(tmp_path / "times.json")


def crossing(choice: Choice, tokens: int) -> float | None:
    """Dense for few tokens, ours for many, cuSPARSELt never."""
    return {"dense": 10, "sparse24": 20 if tokens < 64 else 5}.get(choice.backend)


def test_each_size_takes_its_fastest_and_sizes_between_the_nearer(dense, store) -> None:
    w = sparse24.pack(dense)
    dispatch.tune(w, [16, 256], timer=Clock(crossing), store=store)
    # the mean of 16 and 256 in ratio is 64
    names = {tokens: sparse24.backend((tokens, IN), w) for tokens in (1, 16, 64, 65, 256, 5000)}
    assert list(names.values()) == ["dense"] * 3 + ["reference"] * 3
    assert set(w.copies) == {"dense"}
    x = draw.operand(16, IN, torch.float16, seed=2)
    assert torch.equal(sparse24.linear(x, w), torch.nn.functional.linear(x, dense))


def test_another_backend_is_kept_only_where_it_wins(dense, store) -> None:
    w = sparse24.pack(dense)
    dispatch.tune(w, [16], timer=Clock(lambda c, t: {"sparse24": 10, "dense": 9.9}.get(c.backend)),
                  store=store)  # fmt: skip
    assert w.copies == {}
    assert sparse24.backend((16, IN), w) == "reference"


def test_a_tuning_is_for_one_epilogue(dense, store) -> None:
    w = sparse24.pack(dense)
    dispatch.tune(w, [16], bias=True, activation="relu", timer=Clock(crossing), store=store)
    bias = torch.zeros(OUT)
    assert sparse24.backend((16, IN), w, bias, "relu") == "dense"
    assert sparse24.backend((16, IN), w, bias) == "reference"
    assert sparse24.backend((16, IN), w) == "reference"


def test_what_was_measured_is_read_again_and_not_measured_twice(dense, store) -> None:
    clock = Clock(crossing)
    dispatch.tune(sparse24.pack(dense), [16, 256], timer=clock, store=store)
    count = clock.calls
    w = sparse24.pack(dense)
    dispatch.tune(w, [16, 256], timer=clock, store=Measured(store.path))
    assert clock.calls == count
    assert sparse24.backend((16, IN), w) == "dense"
    told = json.loads(store.path.read_text())
    assert set(told["found"]) == {f"20x{t}x36 float16:float16 2:4 bare" for t in (16, 256)}
    assert [path.name for path in store.path.parent.iterdir()] == ["times.json"]


def test_two_processes_keep_each_others_times(dense, store) -> None:
    other = Measured(store.path)
    dispatch.tune(sparse24.pack(dense), [16], timer=Clock(crossing), store=store)
    dispatch.tune(sparse24.pack(dense), [256], timer=Clock(crossing), store=other)
    assert len(Measured(store.path).found) == 2


def test_why_tells_the_choice_with_times(dense, store) -> None:
    w = sparse24.pack(dense)
    assert "reference (plain torch)" in sparse24.why((16, IN), w)
    dispatch.tune(w, [16], timer=Clock(crossing), store=store)
    lines = sparse24.why(torch.zeros(9, IN).half(), w).splitlines()
    assert lines[0] == "20 x 9 x 36 float16: dense, as measured at 16 tokens"
    assert [line.split("  ")[1] for line in lines[1:]] == [
        "dense",
        "reference, the cost model's plan",
    ]
    assert "10.00 us  [9.50, 10.50]" in lines[1]


def test_a_backend_that_cannot_says_why() -> None:
    problem = Problem(16, OUT, IN, 0, 0)
    found = trials.trials(problem, torch.device("cpu"), Clock(crossing))
    last = found[-1]
    assert last.choice.backend == "cusparselt"
    assert last.timing is None
    assert last.reason == "cuSPARSELt takes torch.float16 weights in multiples of 16, not [20, 36]"


@pytest.fixture
def cusparselt(monkeypatch, tmp_path) -> Algorithms:
    """A cuSPARSELt that takes whatever it is given, of which nothing is known."""
    known = Algorithms(tmp_path / "known.json")
    monkeypatch.setattr(trials, "copy_for", lambda backend, weight: weight)
    monkeypatch.setattr(trials, "refuse_cusparselt", lambda weight, out: None)
    monkeypatch.setattr(trials.algorithms, "known", lambda *types: known)
    monkeypatch.setattr(candidates, "_cusparselt", lambda x, *_: x)
    return known


def test_every_algorithm_that_finishes_is_tried_and_no_other(cusparselt) -> None:
    cusparselt.keep({0: "", 1: "", 2: "does not finish", 3: "", 4: "does not finish"})
    tried = []

    def times(choice: Choice, tokens: int) -> float | None:
        if choice.backend == "cusparselt":
            tried.append(choice.number)
            return None if choice.number == 1 else 10.0 - choice.number  # 1: not of this shape
        return 50.0

    found = trials.trials(Problem(16, OUT, IN, 0, 0), torch.device("cpu"), Clock(times))
    assert sorted(set(tried)) == [0, 1, 3]
    assert found[0].choice == Choice("cusparselt", 3)
    assert found[0].reason == "2, 4: does not finish"
    assert sweeps._told(found[0])["left_out"] == "2, 4: does not finish"


def test_a_library_of_which_nothing_finishes_says_so(cusparselt) -> None:
    cusparselt.keep({0: "does not finish", 1: "does not finish"})
    found = trials.trials(Problem(16, OUT, IN, 0, 0), torch.device("cpu"), Clock(crossing))
    assert found[-1].timing is None
    assert found[-1].reason == "no algorithm finishes: 0-1: does not finish"


def test_tiles_are_tried_to_the_last_though_none_of_the_first_fits() -> None:
    tried = []

    def timed(operands, choice: Choice) -> trials.Trial:
        tried.append(Plan.of(choice.number).tile if choice != candidates.OURS else None)
        if tried[-1] is None or tried[-1] == 5:
            return trials.Trial(choice, Timing(1.0, 1.0, 1.0))
        words = "a tile may not reach over" if tried[-1] < 7 else trials.NO_TILE
        return trials.Trial(choice, None, f"sparse24: {words}")

    operands = SimpleNamespace(packed=[SimpleNamespace(backend="sm90")])
    trials._tried(operands, "sparse24", timed, plans=True, prompt=False)
    assert set(tried) == {None, *range(8)}
    # the words are the kernel's
    assert trials.NO_TILE in (build.SOURCES / "sm90_launch.cuh").read_text()


def test_without_a_gpu_measuring_is_a_named_error(dense) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BenchError, match="needs a CUDA GPU, and torch sees none"):
        sparse24.tune(sparse24.pack(dense))


@pytest.mark.parametrize("tokens", [[], [0, 16]])
def test_sizes_to_measure_at_are_needed(dense, store, tokens) -> None:
    with pytest.raises(ValueError, match="give the numbers of rows"):
        dispatch.tune(sparse24.pack(dense), tokens, timer=Clock(crossing), store=store)


def test_a_tuned_weight_compiles_whole(dense, store) -> None:
    torch.compiler.reset()
    w = sparse24.pack(dense)
    dispatch.tune(w, [16, 256], timer=Clock(crossing), store=store)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return sparse24.linear(x, w)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (4, 40, 400):
        x = draw.operand(tokens, IN, torch.float16, seed=2)
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("tokens", [1, 40])
def test_dense_gives_the_result_of_ours(dtype, tokens) -> None:
    dense = draw.weight_2to4(16, 64, dtype, seed=3)
    w, x = sparse24.pack(dense), draw.operand(tokens, 64, dtype, seed=4)
    out = torch.float16 if dtype == torch.int8 else dtype
    scale = torch.rand(16) * 1e-3 if dtype == torch.int8 else None
    residual = torch.randn(tokens, 16).to(out)
    finish = torch.randn(16).to(out), residual, scale, sparse24.seam.TYPES[out], 1, 1.0, 1.0
    found = candidates.run(Choice("dense"), x, w, dense, finish)
    wanted = candidates.ours(x, w, finish)
    eps = torch.finfo(out).eps
    torch.testing.assert_close(found, wanted, rtol=2 * eps, atol=8 * eps)


def of_images(choice: Choice, batch: int) -> float | None:
    """cuDNN for few images, ours for many."""
    return {"dense": 10, "sparse24": 20 if batch < 8 else 5}[choice.backend]


@pytest.fixture
def images() -> tuple[torch.Tensor, sparse24.SparseConvWeight]:
    dense = draw.kernel_2to4((12, 8, 3, 3), torch.float16, seed=1)
    return dense, sparse24.pack_conv2d(dense)


def test_a_convolution_takes_what_was_fastest_for_its_image_and_batch(images, store) -> None:
    dense, w = images
    sizes = [(2, 6, 5), (32, 6, 5), (2, 9, 9)]
    given = {"padding": 1, "bias": True, "activation": "relu"}
    dispatch.tune_conv2d(w, sizes, **given, timer=Clock(of_images), store=store)
    bias, call = torch.zeros(12), {"padding": 1, "activation": "relu"}

    def chosen(*shape: int, **change: object) -> str:
        return sparse24.backend(torch.zeros(*shape).half(), w, bias, **(call | change))

    # the mean of 2 and 32 in ratio is 8
    assert [chosen(n, 8, 6, 5) for n in (1, 8, 9, 64)] == ["dense"] * 2 + ["reference"] * 2
    assert chosen(64, 8, 9, 9) == "dense"  # measured for 2 of them alone
    assert chosen(2, 8, 7, 5) == chosen(2, 8, 6, 5, padding=2) == "reference"  # not measured
    x = torch.randn(2, 8, 6, 5).half()
    wanted = torch.nn.functional.conv2d(x, dense, bias.half(), padding=1).relu()
    assert torch.equal(sparse24.conv2d(x, w, bias, **call), wanted)
    told = sparse24.why(x, w, bias, **call).splitlines()
    assert told[0].endswith("dilation 1x1: dense, as measured at 2 images")
    assert "x is copied first" in told[-1]


def test_a_1x1_convolution_is_measured_as_a_product(store) -> None:
    w = sparse24.pack_conv2d(draw.kernel_2to4((20, 36, 1, 1), torch.float16, seed=1))
    dispatch.tune_conv2d(w, [(2, 2, 4), (4, 8, 8)], timer=Clock(crossing), store=store)
    assert set(store.found) == {f"20x{t}x36 float16:float16 2:4 bare" for t in (16, 256)}
    assert sparse24.backend((1, 36, 4, 4), w) == "dense"
    assert sparse24.backend((4, 36, 8, 8), w) == "reference"
    assert sparse24.backend((4, 36, 8, 8), w, stride=2) == "reference"


def test_a_convolution_that_cudnn_has_not_says_why() -> None:
    geometry = sparse24.geometry.Geometry((3, 3))
    problem = ConvProblem(2, 6, 5, 8, 12, 1, geometry, TYPES[torch.int8], TYPES[torch.int32])
    found = trials.trials(problem, torch.device("cpu"), Clock(of_images))
    assert [trial.choice.backend for trial in found] == ["sparse24", "dense"]
    assert found[1].reason == "torch has no convolution of torch.int8 on CUDA"
    half = problem._replace(element=0, out_type=TYPES[torch.float32])
    found = trials.trials(half, torch.device("cpu"), Clock(of_images))
    assert "without scales" in found[1].reason


@pytest.mark.parametrize("sizes", [[], [(0, 6, 5)]])
def test_images_to_measure_at_are_needed(images, store, sizes) -> None:
    with pytest.raises(ValueError, match=r"give \(batch, height, width\)"):
        dispatch.tune_conv2d(images[1], sizes, timer=Clock(of_images), store=store)


def test_a_library_whose_call_keeps_the_cpu_is_not_searched(monkeypatch) -> None:
    operands = SimpleNamespace(
        calls=lambda _: [None], weight=None, problem=Problem(16, OUT, IN, 0, 0)
    )
    known = Algorithms(Path("not written"))
    known.verdicts = {3: "", 4: "does not finish"}
    monkeypatch.setattr(trials, "refuse_cusparselt", lambda *_: None)
    monkeypatch.setattr(trials, "_known", lambda _: known)

    def timed(_, choice: Choice) -> trials.Trial:
        return trials.Trial(choice, Timing(1.0, 1.0, 1.0))

    def found(host_us: float, prompt: bool) -> trials.Trial:
        monkeypatch.setattr(trials.bench, "host_us", lambda _, count: host_us)
        (only,) = trials._algorithms(operands, timed, prompt)
        return only

    assert found(10_000.0, prompt=True)[1:] == (
        None,
        "a call keeps the CPU 10 ms, as torch makes a plan in each",
    )
    assert found(10_000.0, prompt=False).choice.number == 3
    assert found(100.0, prompt=True).choice.number == 3


def test_a_default_that_the_library_refuses_leaves_the_others_to_be_searched(monkeypatch) -> None:
    def refused(call, count: int) -> float:
        raise RuntimeError("no such algorithm at this size")

    monkeypatch.setattr(trials.bench, "host_us", refused)
    operands = SimpleNamespace(calls=lambda _: [None])
    assert trials._host_ms(operands) == 0.0
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(BenchError, match="torch sees none"):
            trials._host_ms(operands)
