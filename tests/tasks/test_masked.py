"""BERT's pretraining: the heads read the hidden word pieces alone, and nothing else changes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import ModelOutput

from workbench import dag
from workbench.data.language import IGNORED, stack, stack_hidden
from workbench.data.source import DataError
from workbench.models import bert
from workbench.tasks import open_task
from workbench.tasks.language_model import Masked

SMALL = {"layers": 2, "hidden": 64, "heads": 2, "feed_forward": 96, "dropout": 0.0}


@pytest.fixture
def task(experiments: Path, tmp_path: Path) -> Masked:
    """Blocks of 31 word pieces of real paragraphs."""
    return open_task(dag.spec_of("bert_large", "2to4", "smoke").phases["pretrain"], 0, tmp_path)


def network(task: Masked) -> nn.Module:
    torch.manual_seed(0)
    return bert.build(**SMALL, **task.shape())


def examples(task: Masked, count: int, first: int = 0) -> list[dict[str, Tensor]]:
    """Blocks in turn, each time with other word pieces hidden."""
    return [task.train[(key % len(task.train), key)] for key in range(first, first + count)]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_loss_and_gradients_are_those_of_all_logits(task: Masked) -> None:
    model, chosen = network(task), examples(task, 8)
    whole = stack(chosen)
    output = model(whole["input_ids"], token_type_ids=whole["token_type_ids"])
    words = output.prediction_logits.flatten(0, 1)
    assert len(words) == 8 * 31
    expected = cross_entropy(words, whole["labels"].flatten(), ignore_index=IGNORED)
    expected = expected + cross_entropy(
        output.seq_relationship_logits, whole["next_sentence_label"]
    )
    loss, _ = task.loss(model, stack_hidden(chosen), None)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    found, wanted = gradients(model, loss), gradients(model, expected)
    assert all(gradient.abs().sum() > 0 for gradient in wanted.values())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)  # sums in another order


def test_every_hidden_word_piece_is_asked_for_once(task: Masked) -> None:
    chosen = examples(task, 8)
    batch, labels = stack_hidden(chosen), stack(chosen)["labels"].flatten()
    positions = batch["positions"]
    assert len(positions.unique()) == len(positions)
    assert torch.equal(batch["labels"], labels[positions])
    hidden = positions[batch["labels"] != IGNORED]
    assert hidden.tolist() == (labels != IGNORED).nonzero().flatten().tolist()
    assert 0 < len(hidden) < len(positions)


def test_large_batches_have_one_shape_and_small_ones_a_few(task: Masked) -> None:
    # 64 x 31 = 1,984, of which 13.5 % are hidden, 269 +- 15; a sixth, rounded up, is 331
    large = [stack_hidden(examples(task, 64, first)) for first in range(0, 320, 64)]
    assert {len(batch["positions"]) for batch in large} == {331}
    small = [stack_hidden(examples(task, 4, first)) for first in range(0, 320, 4)]
    assert {len(batch["positions"]) for batch in small} == {21, 42}  # sixths of 4 x 31


def test_a_batch_of_which_most_is_hidden_is_taken_whole() -> None:
    hidden = {"input_ids": torch.arange(7), "labels": torch.arange(7)}
    batch = stack_hidden([hidden])  # parts of 2, of which 4 hold 7
    assert batch["positions"].tolist() == batch["labels"].tolist() == list(range(7))


def test_a_batch_without_a_hidden_word_piece_is_refused(task: Masked) -> None:
    nothing = [
        example | {"labels": torch.full_like(example["labels"], IGNORED)}
        for example in examples(task, 2)
    ]
    with pytest.raises(DataError, match="none of the 62 word pieces of a batch of 2 is hidden"):
        stack_hidden(nothing)


class Noting(nn.Module):
    """Knows nothing of words, and keeps what it was asked."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.asked = vocabulary, []

    def forward(self, **asked: Any) -> ModelOutput:
        self.asked.append(asked)
        words = torch.zeros(len(asked["positions"]), self.vocabulary)
        follows = torch.zeros(len(asked["input_ids"]), 2)
        return ModelOutput(prediction_logits=words, seq_relationship_logits=follows)


def test_an_idle_network_is_judged_by_its_hidden_word_pieces(task: Masked) -> None:
    idle = Noting(task.shape()["vocabulary"])
    metrics = task.evaluate(idle, torch.device("cpu"))
    assert metrics["masked_loss"] == pytest.approx(math.log(idle.vocabulary), rel=1e-6)
    assert metrics["next_sentence_loss"] == pytest.approx(math.log(2), rel=1e-6)
    rows = sum(len(asked["positions"]) for asked in idle.asked)
    assert rows < 0.4 * 31 * len(task.held_out)


def test_calibration_sees_the_words_of_all_positions(task: Masked) -> None:
    model, seen = network(task).eval(), []
    model.cls.predictions.decoder.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape)
    )
    batch = stack_hidden(examples(task, 4))
    assert task.run(model, batch, None) is None
    task.loss(model, batch, None)
    assert seen == [(4, 31, 64), (len(batch["positions"]), 64)]
