"""The Levenshtein Transformer: size, start, what sees what, refinement, pruning and INT8."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench import quant, sparsity
from workbench.compression import Quantize
from workbench.models import edits, levenshtein
from workbench.models.refinement import refine

PADDING, BEGIN, END, PLACEHOLDER = range(4)
WORDS = 20


def tiny(**sizes) -> levenshtein.Levenshtein:
    torch.manual_seed(0)
    chosen = {"layers": 2, "hidden": 64, "feed_forward": 128, "vocabulary": WORDS, "dropout": 0.0}
    tokens = {"padding": PADDING, "placeholder": PLACEHOLDER}
    return levenshtein.build(**(chosen | tokens | sizes)).eval()


def sentences(rows: int, words: int, seed: int = 1) -> Tensor:
    drawn = torch.randint(4, WORDS, (rows, words), generator=torch.Generator().manual_seed(seed))
    return functional.pad(functional.pad(drawn, (1, 0), value=BEGIN), (0, 1), value=END)


def part_of(target: Tensor) -> Tensor:
    """The target without every other word."""
    odd = torch.arange(target.shape[1]) % 2 == 1
    return edits.delete(target, odd & (target > PLACEHOLDER), PADDING)


def padded(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, True, PADDING)


# five sentences of 1 to 5 words and what they become, longer ones before shorter
SOURCES = padded([sentences(1, words, seed=words)[0] for words in (5, 4, 3, 2, 1)])
TARGETS = padded([sentences(1, words, seed=10 + words)[0] for words in (1, 2, 3, 4, 5)])


@pytest.fixture(scope="module")
def learned() -> levenshtein.Levenshtein:
    """A network that knows five translations by heart."""
    model = tiny(layers=1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    source, target = SOURCES.repeat(6, 1), TARGETS.repeat(6, 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        share = torch.rand(len(target), 1, generator=generator)
        gone = torch.rand(target.shape, generator=generator) < share
        part = edits.delete(target, gone & (target > PLACEHOLDER), PADDING)
        made = model(source, part, target)
        loss = sum(functional.cross_entropy(*each) for each in made.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_the_base_network_has_the_size_of_fairseqs() -> None:
    with torch.device("meta"):
        model = levenshtein.build(vocabulary=40_000, padding=PADDING, placeholder=PLACEHOLDER)
    linears = [
        layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "output_projection"
    ]
    # networks.csv, row 31; the positions are 1024, fairseq's padding row and the one before it
    assert sum(p.numel() for p in model.parameters()) == 65_932_288
    assert (len(linears), sum(linears)) == (96, 44_040_192)
    assert model.target_positions.weight.shape == (1026, 512)
    assert model.embed_mask_ins.weight.shape == (256, 1024)
    assert model.embed_word_del.weight.shape == (2, 512)
    assert model.encoder[0].attention.heads == 8


def test_initial_weights_are_those_of_bert() -> None:
    model = tiny(hidden=256, feed_forward=512)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert set(parameter.unique().tolist()) == {float(name.endswith("weight"))}
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            spread = float(parameter.detach().std())
            assert spread == pytest.approx(0.02, rel=0.1), name
    for table in (model.source_positions, model.target_positions):
        assert not table.weight[1].any()  # fairseq's padding row


def test_the_linear_layers_are_pruned_and_the_embeddings_are_not() -> None:
    with torch.device("meta"):
        model = levenshtein.build(vocabulary=40_000, padding=PADDING, placeholder=PLACEHOLDER)
    layers = sparsity.explain(model)
    chosen = [layer for layer in layers if layer.eligible]
    assert len(chosen) == 96  # 6 x 6 of the encoder, 6 x 10 of the decoder
    assert [layer.reason for layer in layers if not layer.eligible] == [
        "tied to embedding.weight (Embedding)"
    ]
    assert not any("embed_" in layer.name or "positions" in layer.name for layer in chosen)


def test_int8_takes_the_pruned_layers_and_changes_little(
    learned: levenshtein.Levenshtein,
) -> None:
    with torch.no_grad(), quant.Observing(learned, Quantize(calibrator="max")) as seen:
        exact = learned(SOURCES, part_of(TARGETS), TARGETS)
    quantized = quant.quantize(learned, seen.ranges())
    assert len(quantized.layers) == 6 + 10
    with torch.no_grad(), quant.Simulated(learned, quantized):
        rounded = learned(SOURCES, part_of(TARGETS), TARGETS)
        translated = refine(learned, SOURCES, begin=BEGIN, end=END, rounds=10)
    for kind in exact:
        off = (exact[kind].logits - rounded[kind].logits).norm() / exact[kind].logits.norm()
        assert 0 < float(off) < 0.1, kind
    assert translated == refine(learned, SOURCES, begin=BEGIN, end=END, rounds=10)


def test_every_target_token_sees_every_other() -> None:
    model, target = tiny(), sentences(2, 4)
    changed = target.clone()
    changed[:, 3] = 4 + (changed[:, 3] - 3) % (WORDS - 4)
    before, after = (model.start(target).deletions(tokens) for tokens in (target, changed))
    assert (before - after).abs().amax(dim=2).min() > 0


@pytest.mark.parametrize("sides", [(0, 3), (3, 0)])
def test_padding_of_the_source_does_not_change_decisions(sides: tuple[int, int]) -> None:
    model, source, target = tiny(), sentences(2, 5), sentences(2, 4, seed=2)
    plain = model(source, part_of(target), target)
    moved = model(functional.pad(source, sides, value=PADDING), part_of(target), target)
    for kind in plain:
        torch.testing.assert_close(moved[kind].logits, plain[kind].logits)


def test_padding_of_the_target_does_not_change_decisions() -> None:
    model, source, target = tiny(), sentences(2, 5), sentences(2, 4, seed=2)
    plain = model(source, part_of(target), target)
    longer = [functional.pad(each, (0, 3), value=PADDING) for each in (part_of(target), target)]
    padded = model(source, *longer)
    for kind in plain:
        torch.testing.assert_close(padded[kind].logits, plain[kind].logits)
        assert torch.equal(padded[kind].target, plain[kind].target)


def test_every_weight_gets_a_gradient_in_training() -> None:
    model = tiny().train()
    made = model(sentences(2, 5), part_of(sentences(2, 4)), sentences(2, 4))
    sum(functional.cross_entropy(*each) for each in made.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_refinement_writes_what_the_network_has_learned(
    learned: levenshtein.Levenshtein,
) -> None:
    found = refine(learned, SOURCES, begin=BEGIN, end=END, rounds=10)
    assert found == [[word for word in row if word > PLACEHOLDER] for row in TARGETS.tolist()]


def test_a_row_is_refined_alike_alone_and_in_a_batch(learned: levenshtein.Levenshtein) -> None:
    unknown = [sentences(1, words, seed=99)[0] for words in (3, 1, 6)]
    rows = [*unknown, *(row[row != PADDING] for row in SOURCES)]
    for rounds in (1, 2, 6):
        together = refine(learned, padded(rows), begin=BEGIN, end=END, rounds=rounds)
        alone = [refine(learned, row[None], begin=BEGIN, end=END, rounds=rounds) for row in rows]
        assert together == [found for [found] in alone]


class Scripted(nn.Module):
    """A network that says what each round is to do: the number of words, the word, deletions."""

    padding, placeholder, positions = PADDING, PLACEHOLDER, 1024

    def __init__(self, rounds: list[tuple[int, int, list[int]]]):
        super().__init__()
        self.rounds = iter(rounds)
        self.seen: list[list[list[int]]] = []
        self.eval()

    def start(self, source: Tensor) -> "Scripted":
        self.next = next(self.rounds)
        return self

    def select(self, rows: Tensor) -> "Scripted":
        self.next = next(self.rounds)
        return self

    def deletions(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens.tolist())
        return torch.eye(2)[torch.isin(tokens, torch.tensor(self.next[2])).long()]

    def insertions(self, tokens: Tensor) -> Tensor:
        counts = torch.zeros(len(tokens), tokens.shape[1] - 1, dtype=torch.long)
        counts[:, 0] = self.next[0]
        return torch.eye(256)[counts]

    def words(self, tokens: Tensor, where: Tensor) -> Tensor:
        return torch.eye(WORDS)[[self.next[1]] * int(where.sum())]

    @property
    def network(self) -> "Scripted":
        return self


def refined(script: list[tuple[int, int, list[int]]], rounds: int = 10) -> list[list[int]]:
    return refine(Scripted(script), sentences(1, 3), begin=BEGIN, end=END, rounds=rounds)


def test_a_round_deletes_then_inserts_then_writes_and_no_change_ends_it() -> None:
    # two 7s; the 7s out and one 8 in; nothing deleted and nothing in: done
    assert refined([(2, 7, []), (1, 8, [7]), (0, 0, [])]) == [[8]]
    # the ends are never deleted
    assert refined([(1, 7, []), (0, 0, [BEGIN, END])]) == [[7]]
    # as many out as in of the same word is no change either
    assert refined([(1, 7, []), (1, 7, [7])]) == [[7]]


def test_the_last_round_ends_what_still_changes() -> None:
    assert refined([(1, 7, []), (1, 8, []), (1, 9, [])], rounds=3) == [[9, 8, 7]]


def test_a_target_is_at_most_twice_as_long_as_its_source() -> None:
    # 5 source tokens with their ends: 2 x 5 = 10 target tokens with theirs, so 8 words
    assert refined([(200, 7, []), (3, 8, [])]) == [[7] * 8]


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"padding is 20; it must be a token of 0\.\.19"):
        tiny(padding=20)
    with pytest.raises(ValueError, match="placeholder is -1; it must be a token"):
        tiny(placeholder=-1)
    with pytest.raises(ValueError, match="placeholder and padding are both 0"):
        tiny(placeholder=PADDING)
    with pytest.raises(ValueError, match="positions is 1; "):
        tiny(positions=1)
    model = tiny(positions=6)
    long, short = sentences(1, 5), sentences(1, 4)
    for source, target in ((long, short), (short, long)):
        with pytest.raises(ValueError, match="7 tokens is longer than the 6 learned positions; lo"):
            model(source, part_of(target), target)
    with pytest.raises(ValueError, match="eval"):
        refine(tiny().train(), short, begin=BEGIN, end=END, rounds=1)
    with pytest.raises(ValueError, match="rounds is 0"):
        refine(tiny(), short, begin=BEGIN, end=END, rounds=0)


@pytest.mark.parametrize(
    ("width", "hidden", "heads"), [(0.01, 32, 1), (0.125, 64, 1), (0.5, 256, 4)]
)
def test_width_rounds_hidden_up_and_heads_divide_it(width: float, hidden: int, heads: int) -> None:
    with torch.device("meta"):
        model = levenshtein.build(
            vocabulary=99, padding=PADDING, placeholder=PLACEHOLDER, width=width, depth=0.25
        )
    assert model.embed_mask_ins.weight.shape == (256, 2 * hidden)
    assert model.decoder[0].attention.heads == heads
    assert len(model.encoder) == len(model.decoder) == 2  # 6 x 0.25 = 1.5, half up
