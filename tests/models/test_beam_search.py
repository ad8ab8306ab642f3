"""Scores of beam search: both length norms and coverage, by hand and against all targets."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from workbench.models import gnmt
from workbench.models.beam_search import generate
from workbench.models.transformer import build as build_transformer

PADDING, BEGIN, END, A, B = range(5)

# target so far -> probability of each next token, and attention to the two source tokens
SCRIPT = {
    (): ({A: 0.6, B: 0.4}, (0.9, 0.1)),
    (A,): ({END: 0.5, B: 0.5}, (0.9, 0.1)),
    (A, B): ({END: 0.9, A: 0.1}, (0.5, 0.9)),
    (B,): ({A: 0.5, B: 0.5}, (0.5, 0.5)),
}
# [A] with END:    p 0.6 x 0.5 = 0.30,       log -1.2040, attention (1.8, 0.2)
# [A, B] with END: p 0.6 x 0.5 x 0.9 = 0.27, log -1.3093, attention (2.3, 1.1)
# [B, A], [B, B]:  p 0.4 x 0.5 = 0.20, never the best


class Scripted:
    """Says what SCRIPT says; after any other target, END."""

    padding = PADDING
    training = False

    class State:
        def __init__(self, rows: int) -> None:
            self.targets: list[tuple[int, ...]] = [()] * rows

        def select(self, rows: Tensor) -> None:
            self.targets = [self.targets[row] for row in rows]

    def start(self, source: Tensor) -> State:
        self.length = source.shape[1]
        return self.State(len(source))

    def decode(self, tokens: Tensor, state: State) -> Tensor:
        return self.both(tokens, state)[0]

    def both(self, tokens: Tensor, state: State) -> tuple[Tensor, Tensor]:
        logits = torch.full([len(tokens), 1, 5], -30.0)
        attention = torch.zeros(len(tokens), 1, self.length)
        for row, token in enumerate(tokens[:, 0].tolist()):
            if token != BEGIN:
                state.targets[row] += (token,)
            chances, seen = SCRIPT.get(state.targets[row], ({END: 1.0}, (0.5, 0.5)))
            for word, chance in chances.items():
                logits[row, 0, word] = math.log(chance)
            attention[row, 0, :2] = torch.tensor(seen)
        return logits, attention


class Attentive(Scripted):
    """The same, and it tells its attention."""

    def decode_with_attention(self, tokens: Tensor, state: Scripted.State) -> tuple:
        return self.both(tokens, state)


def search(model: Scripted, penalty: float, norm: str, coverage: float = 0.0) -> list[list[int]]:
    return generate(
        model,
        torch.tensor([[A, B, PADDING]]),  # padding is never looked at, and costs nothing
        begin=BEGIN,
        end=END,
        beam=8,
        length_penalty=penalty,
        max_length=3,
        length_norm=norm,
        coverage_penalty=coverage,
    )


def test_each_length_norm_ranks_the_scripted_targets_as_by_hand() -> None:
    # fairseq: -1.2040 / 2^0.6 = -0.794, -1.3093 / 3^0.6 = -0.677: the longer wins
    assert search(Scripted(), 0.6, "fairseq") == [[A, B]]
    # gnmt: -1.2040 / (8/6)^0.6 = -1.013, -1.3093 / (9/6)^0.6 = -1.027: the shorter wins
    assert search(Scripted(), 0.6, "gnmt") == [[A]]
    # and at 0.66 still, -0.996 against -1.002; if the begin were not counted (7/6 and 8/6) it
    # would be -1.088 against -1.083; at 0.72 the longer wins, -0.9787 against -0.9778
    assert search(Scripted(), 0.66, "gnmt") == [[A]]
    assert search(Scripted(), 0.72, "gnmt") == [[A, B]]
    assert search(Scripted(), 0.0, "gnmt") == search(Scripted(), 0.0, "fairseq") == [[A]]


def test_a_source_token_that_was_hardly_looked_at_costs_its_log() -> None:
    # [A]: -1.0131 + w (log 1 + log 0.2); [A, B]: -1.0266 + w x 0; even at 0.0135 / 1.609 = 0.0084
    assert search(Attentive(), 0.6, "gnmt", coverage=0.007) == [[A]]
    assert search(Attentive(), 0.6, "gnmt", coverage=0.010) == [[A, B]]


def test_attention_is_asked_for_only_under_a_coverage_penalty() -> None:
    assert not hasattr(Scripted(), "decode_with_attention")
    assert search(Scripted(), 0.6, "gnmt", coverage=0.0) == [[A]]
    with pytest.raises(ValueError, match="Scripted cannot tell its attention"):
        search(Scripted(), 0.6, "gnmt", coverage=0.1)
    transformer = build_transformer(layers=1, hidden=32, vocabulary=9, padding=PADDING).eval()
    with pytest.raises(ValueError, match="set coverage_penalty to 0"):
        search(transformer, 0.6, "gnmt", coverage=0.1)


def test_an_unknown_length_norm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'google'; one of fairseq, gnmt"):
        search(Scripted(), 0.6, "google")


def peaked(vocabulary: int) -> gnmt.GNMT:
    """A random network that is sure of things and looks at few source tokens."""
    torch.manual_seed(3)
    model = gnmt.build(hidden=16, vocabulary=vocabulary, padding=PADDING).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)
        model.attention.scale.fill_(12.0)
        model.classifier.bias[END] += 0.5  # so that targets end
    return model


@torch.no_grad()
def score(
    model: gnmt.GNMT, source: Tensor, target: list[int], penalty: float, weight: float
) -> float:
    """GNMT's score of a whole target, from one full pass."""
    target_in = torch.tensor([[BEGIN, *target]])
    logits, attention = model.decode_with_attention(target_in, model.start(source[None]))
    chances = logits[0].log_softmax(-1)
    total = sum(float(chances[i, token]) for i, token in enumerate([*target, END]))
    paid = attention[0].sum(0)[source != PADDING]
    norm = ((5 + len(target) + 2) / 6) ** penalty
    return total / norm + weight * sum(math.log(min(1.0, p)) for p in paid.tolist())


@pytest.mark.parametrize(("penalty", "weight"), [(0.6, 0.0), (0.6, 0.1), (1.0, 3.0)])
def test_a_beam_that_holds_every_target_finds_the_best_scored(
    penalty: float, weight: float
) -> None:
    model = peaked(vocabulary=5)
    source = torch.randint(A, 5, (12, 5), generator=torch.manual_seed(1))
    source[::2, 3:] = PADDING
    # 3 tokens besides padding and end: 1 + 3 + 9 + 27 = 40 targets, so a beam of 41 never fills
    targets = [list(t) for n in range(4) for t in itertools.product([1, A, B], repeat=n)]
    found = generate(
        model,
        source,
        begin=BEGIN,
        end=END,
        beam=41,
        length_penalty=penalty,
        max_length=3,
        length_norm="gnmt",
        coverage_penalty=weight,
    )
    best = [max(targets, key=lambda t: score(model, row, t, penalty, weight)) for row in source]
    assert found == best
    without = [max(targets, key=lambda t: score(model, row, t, penalty, 0.0)) for row in source]
    assert weight < 1 or best != without  # else coverage decided nothing here


def test_coverage_follows_its_sentence_when_others_are_done() -> None:
    model = peaked(vocabulary=20)
    source = torch.randint(A, 20, (10, 6), generator=torch.manual_seed(2))
    source[::3, 2:] = PADDING

    def translate(rows: Tensor) -> list[list[int]]:
        return generate(
            model,
            rows,
            begin=BEGIN,
            end=END,
            beam=3,
            length_penalty=0.6,
            max_length=9,
            length_norm="gnmt",
            coverage_penalty=1.0,
        )

    together = translate(source)
    assert together == [translate(row[None])[0] for row in source]
    assert len({len(target) for target in together}) >= 3  # else none was done before others
