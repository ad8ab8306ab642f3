"""Translation by edits: the three losses by hand, BLEU, chance, bad specs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workbench import dag
from workbench.data.pairs import BEGIN, END, PADDING, UNKNOWN
from workbench.models.edits import Decisions, decide
from workbench.tasks import open_task, translation_by_edits
from workbench.tasks.translation_by_edits import Constant

CPU = torch.device("cpu")


@pytest.fixture
def task(experiments: Path, tmp_path: Path) -> translation_by_edits.Task:
    return open_task(phase(), 0, tmp_path)


def phase():
    return dag.spec_of("levenshtein_transformer", "2to4", "smoke").phases["train"]


class Fixed(nn.Module):
    """A network that decides alike everywhere."""

    def __init__(self, editor: Constant):
        super().__init__()
        self.editor = editor

    def forward(self, source: Tensor, part: Tensor, target: Tensor) -> dict[str, Decisions]:
        return decide(self.editor, part, target, PADDING, UNKNOWN)


def test_a_key_draws_the_same_part_again_and_held_out_parts_are_fixed(task) -> None:
    def part(dataset, index: int, key: int) -> list[int]:
        return dataset[(index, key)][2].tolist()

    torch.manual_seed(1)
    first = [part(task.held_out, index, 0) for index in range(8)]
    torch.manual_seed(2)
    assert [part(task.held_out, index, 0) for index in range(8)] == first
    assert len({tuple(part(task.train, 3, key)) for key in range(20)}) > 1
    # a share of its own for each held-out sentence, though all have the key 0
    shares = {
        len(part(task.held_out, index, 0)) / len(task.held_out[(index, 0)][1]) for index in range(8)
    }
    assert len(shares) > 2


def test_a_source_has_both_ends_as_in_fairseq(task) -> None:
    batch = next(iter(task.training_batches(0, 1)))
    for row in batch["source"].tolist():
        assert row[0] == BEGIN and [token for token in row if token != PADDING][-1] == END


def test_the_loss_adds_three_smoothed_means(task) -> None:
    made = {
        "mask_ins": Decisions(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])),
        "word_ins": Decisions(torch.tensor([[0.0, 3.0]]), torch.tensor([1])),
        "word_del": Decisions(torch.tensor([[0.0, 1.0]]), torch.tensor([0])),
    }
    batch = {"source": None, "part": None, "target": None}
    network = type("Given", (nn.Module,), {"forward": lambda *_: made})()
    # By hand, p(x) = log(1 + e^-x): fairseq's (1 - s) x likelihood - s x mean log probability,
    # s 0.01 of the insertions, 0.1 of the words.
    p = {x: math.log1p(math.exp(-x)) for x in (2, 3, 1, 0)}
    inserted = (0.995 * p[2] + 0.005 * (p[2] + 2) + p[0]) / 2
    written = 0.95 * p[3] + 0.05 * (p[3] + 3)
    deleted = p[1] + 1
    assert float(task.loss(network, batch, None)[0]) == pytest.approx(inserted + written + deleted)


def test_a_batch_of_empty_sentences_has_a_finite_loss(task) -> None:
    empty = torch.tensor([[BEGIN, END]])
    network = Fixed(Constant({"mask_ins": torch.zeros(256), "word_ins": torch.zeros(9)} | ZERO))
    loss, _ = task.loss(network, {"source": empty, "part": empty, "target": empty}, None)
    # one slot of 256 kinds, no word, two deletions of 2 kinds
    assert float(loss) == pytest.approx(math.log(256) + math.log(2))


ZERO = {"word_del": torch.zeros(2)}


def test_bits_of_even_guesses_and_bleu_of_the_reference(task, monkeypatch) -> None:
    sentences = iter(task.held_out.targets)

    def copied(model, source, **_):
        return [task.tokenizer.encode(next(sentences)).ids for _ in source]

    monkeypatch.setattr(translation_by_edits, "refine", copied)
    metrics = task.evaluate(Fixed(Constant(task._even())), CPU)
    vocabulary = task.shape()["vocabulary"]
    # smoothing changes nothing where all kinds are as likely: log2 of their number
    assert metrics["mask_ins_bits"] == pytest.approx(8)
    assert metrics["word_ins_bits"] == pytest.approx(math.log2(vocabulary), abs=1e-4)
    assert metrics["word_del_bits"] == pytest.approx(1)
    assert metrics["loss_bits"] == pytest.approx(9 + math.log2(vocabulary), abs=1e-4)
    assert metrics["bleu"] > 90  # rare signs are unknown to a vocabulary of 512


def test_logits_that_are_not_finite_are_an_error_and_not_a_result(task) -> None:
    broken = Fixed(Constant(task._even() | {"word_del": torch.full([2], math.nan)}))
    batch = next(iter(task.training_batches(0, 1)))
    sums = task._sums(broken(batch["source"], batch["part"], batch["target"]))
    with pytest.raises(FloatingPointError, match="'word_del_bits': nan"):
        translation_by_edits._bits([sums])


def test_the_loss_does_not_depend_on_the_batches_it_is_judged_in(task, tmp_path) -> None:
    wide = phase().model_copy(update={"eval": phase().eval.model_copy(update={"batch": 3})})
    guess = Fixed(task._frequent(Constant(task._even())))
    sums = [
        translation_by_edits._bits(
            [
                each._sums(guess(b["source"], b["part"], b["target"]))
                for b in each.held_out_batches()
            ]
        )
        for each in (task, open_task(wide, 0, tmp_path))
    ]
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_chance_is_the_best_constant_decision(task) -> None:
    chance = task.chance()
    even = 9 + math.log2(task.shape()["vocabulary"])
    assert 1 < chance < even - 3
    guess = task._frequent(task._frequent(Constant(task._even())))
    total = {kind: logits.exp().sum() for kind, logits in guess.logits.items()}
    assert [float(each) for each in total.values()] == pytest.approx([1, 1, 1])
    for kind, logits in guess.logits.items():  # no other constant does better on training pairs
        for shift in (-0.3, 0.3):
            other = logits.clone()
            other[logits.argsort(descending=True)[1]] += shift
            moved = Constant(guess.logits | {kind: other})
            assert trained(task, guess)[f"{kind}_bits"] < trained(task, moved)[f"{kind}_bits"]


def trained(task: translation_by_edits.Task, guess: Constant) -> dict[str, float]:
    """Bits of a constant decision on the first training pairs, as `chance` sees them."""
    batch = task.collate([task.train[(index, 0)] for index in range(len(task.train))])
    made = decide(guess, batch["part"], batch["target"], PADDING, UNKNOWN)
    return translation_by_edits._bits([task._sums(made)])


def test_a_beam_is_refused_by_name(experiments, edit, tmp_path) -> None:
    edit("networks/levenshtein_transformer.yaml", "eval: {batch: 64}", "eval: {beam: 4}")
    with pytest.raises(ValueError, match=r"eval\.beam is 4; edits are decided one by one: give 1"):
        open_task(phase(), 0, tmp_path)


def test_the_metric_has_the_talks_name_and_falls() -> None:
    from workbench.report.wording import decimals_of, metric_title

    task = translation_by_edits.Task
    assert (task.metric, task.higher_is_better) == ("loss_bits", False)
    assert metric_title("train/loss_bits") == "validation loss, bits"
    assert decimals_of("train/loss_bits") == 3
