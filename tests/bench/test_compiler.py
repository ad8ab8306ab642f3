"""The compiler as an opponent: what it is asked, and what it tells of its work."""

from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn
from torch._inductor.utils import fresh_cache

from workbench.bench import compiler
from workbench.models import bert


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """The compiler's own, set back afterwards."""
    names = "freezing", "autotune_num_choices_displayed", "max_autotune_report_choices_stats"
    with inductor.patch({name: getattr(inductor, name) for name in names}):
        yield


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What torch.compile is called with; nothing is compiled."""
    found = []
    monkeypatch.setattr(torch, "compile", lambda model, **given: found.append(given) or model)
    return found


def test_descent_asks_for_all_that_torchs_mode_of_that_name_does(asked) -> None:
    compiler.compiled(nn.Identity(), autotune=True, descent=True)
    mode = torch._inductor.list_mode_options("max-autotune-no-cudagraphs")
    assert asked == [{"options": mode, "dynamic": False}]
    assert inductor.freezing


def test_without_descent_products_are_tuned_all_the_same(asked) -> None:
    compiler.compiled(nn.Identity(), autotune=True)
    assert asked[0]["options"] == {"max_autotune": True, "coordinate_descent_tuning": False}


def test_what_was_compiled_is_told_with_the_parts_that_take_a_second(monkeypatch) -> None:
    monkeypatch.setattr(
        compiler,
        "counters",
        {
            "aten_mm_info": {"aten.addmm_128_3072_1024": 24},
            "inductor": dict.fromkeys(
                ("select_algorithm_autotune", "coordesc_tuning_bench", "fxgraph_cache_hit"), 4
            ),
        },
    )
    times = {"short": [0.3, 0.3], "long": [1.0, 2.04], "longer": [9.0]}
    monkeypatch.setattr(compiler, "compilation_time_metrics", times)
    assert compiler.did() == {
        "products": {"aten.addmm_128_3072_1024": 24},
        "benchmarked": 4,
        "descent_steps": 4,
        "graphs_from_cache": 4,
        "seconds": {"longer": 9.0, "long": 3.0},
    }


def test_all_of_bert_but_what_makes_its_mask_is_compiled() -> None:
    model = bert.build(layers=1, hidden=64, heads=1, feed_forward=64, head="question_answering")
    found = compiler.parts(model.eval())
    assert {type(part).__name__ for part in found} == {"BertEmbeddings", "BertEncoder", "Linear"}
    weights = [weight for part in found for weight in part.parameters()]
    assert len(weights) == len(list(model.parameters()))
    assert compiler.parts(found[0]) == [found[0]]
    assert not compiler.is_compiled(model)
    assert compiler.is_compiled(compiler.compiled(model, autotune=False))


@pytest.mark.slow
def test_of_equal_products_one_is_benchmarked() -> None:
    """The measured claim of the counters: three layers of one size, one benchmark of it."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x)) + x
            return x

    model, x = Layers().eval().requires_grad_(False), torch.randn(32, 64)
    with fresh_cache(), torch.no_grad():
        wanted = model(x)
        found = compiler.compiled(model, autotune=True)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert compiler.did()["benchmarked"] == 1
