"""The fairseq Transformer: size, masks, cached decoding and beam search."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.models import scaling, transformer

PADDING, BEGIN, END = 0, 1, 2


def tiny(vocabulary: int = 20) -> transformer.Transformer:
    torch.manual_seed(0)
    model = transformer.build(
        layers=2, hidden=64, feed_forward=128, vocabulary=vocabulary, padding=PADDING, dropout=0.0
    )
    return model.eval()


@pytest.fixture(scope="module")
def reverser() -> transformer.Transformer:
    """A network half way to reversing its source: varied, unsure, and it knows ends."""
    model = tiny().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(60):
        source, target = reversals(32, seed=step)
        begin = torch.full([32, 1], BEGIN)
        logits = model(source, torch.cat([begin, target[:, :-1]], dim=1))
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 2.0, "of ln 17 = 2.8 at chance"
    return model.eval()


def reversals(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sources of 2 to 6 tokens, padded on the right, and their reversals with END."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, 20, (rows, 6), generator=generator)
    lengths = torch.randint(2, 7, (rows, 1), generator=generator)
    place = torch.arange(7)
    source = words.masked_fill(place[:6] >= lengths, PADDING)
    back = words.gather(1, (lengths - 1 - place).clamp(min=0, max=5))
    target = back.masked_fill(place >= lengths, PADDING).masked_fill(place == lengths, END)
    return source, target


def tokens(rows: int, length: int, vocabulary: int = 20) -> Tensor:
    return torch.randint(3, vocabulary, (rows, length), generator=torch.manual_seed(1))


def log_probability(model: nn.Module, source: Tensor, target: list[int]) -> float:
    """Of target and END after one source row."""
    target_in = torch.tensor([[BEGIN, *target]])
    scores = model(source[None], target_in)[0].log_softmax(-1).detach()
    wanted = [*target, END]
    return sum(float(scores[i, token]) for i, token in enumerate(wanted))


def test_the_big_network_has_the_size_of_fairseqs() -> None:
    with torch.device("meta"):
        model = transformer.build(vocabulary=32768, padding=1)
    linears = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    tied = linears.pop("output_projection")
    assert sum(p.numel() for p in model.parameters()) == 209_911_808  # networks.csv, row 30
    assert len(linears) == 96  # networks.csv, row 30
    assert sum(m.weight.numel() for m in linears.values()) == 176_160_768
    assert model.encoder[0].attention.heads == 16
    assert tied.weight is model.embedding.weight and tied.bias is None


def test_initial_weights_have_fairseqs_spread() -> None:
    torch.manual_seed(0)
    model = transformer.build(layers=1, hidden=256, feed_forward=512, vocabulary=999, padding=7)
    layer = model.encoder[0]
    assert torch.equal(model.embedding.weight[7], torch.zeros(256))
    assert float(model.embedding.weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    # Xavier: variance gain^2 * 2 / (in + out), with gain^2 = 1/2 for the query.
    assert float(layer.attention.query.weight.detach().std()) == pytest.approx(
        (1 / 512) ** 0.5, rel=0.02
    )
    assert float(layer.attention.out.weight.detach().std()) == pytest.approx(
        (2 / 512) ** 0.5, rel=0.02
    )
    assert float(layer.feed_forward.up.weight.detach().std()) == pytest.approx(
        (2 / 768) ** 0.5, rel=0.02
    )
    assert not layer.feed_forward.up.bias.any() and not layer.attention.out.bias.any()


def test_positions_follow_fairseqs_formula() -> None:
    table = transformer.sinusoids(torch.tensor([0, 5]), 8)
    # By hand: frequencies 10000^(-i/3) for i = 0..3, sines first.
    angles = [5 * 10000 ** (-i / 3) for i in range(4)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert table[0].tolist() == [0.0] * 4 + [1.0] * 4
    torch.testing.assert_close(table[1], torch.tensor(expected))


def test_a_later_target_token_does_not_change_earlier_logits() -> None:
    model, source, target = tiny(), tokens(2, 5), tokens(2, 6)
    changed = target.clone()
    changed[:, 4] = 3 + (changed[:, 4] - 2) % 17
    before, after = model(source, target), model(source, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("sides", [(0, 3), (3, 0), (2, 1)])
def test_padding_in_the_source_does_not_change_outputs(sides: tuple[int, int]) -> None:
    model, source, target = tiny(), tokens(2, 5), tokens(2, 6)
    padded = functional.pad(source, sides, value=PADDING)
    torch.testing.assert_close(model(padded, target), model(source, target))


def test_cached_decoding_gives_the_logits_of_a_full_pass() -> None:
    model, source, target = tiny(), tokens(3, 5), tokens(3, 6)
    state = model.start(source)
    steps = [model.decode(target[:, i : i + 1], state) for i in range(target.shape[1])]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(source, target))


def test_a_beam_of_one_is_stepwise_argmax(reverser: transformer.Transformer) -> None:
    model, source = reverser, reversals(24, seed=99)[0]
    found = transformer.generate(
        model, source, begin=BEGIN, end=END, beam=1, length_penalty=0.6, max_length=8
    )
    for row, target in zip(source, found, strict=True):
        greedy = [BEGIN]
        while len(greedy) <= 8:
            logits = model(row[None], torch.tensor([greedy]))[0, -1]
            logits[PADDING] = -math.inf
            greedy.append(int(logits.argmax()))
            if greedy[-1] == END:
                break
        assert target == [token for token in greedy[1:] if token != END]
    assert len({len(target) for target in found}) >= 3  # else nothing here tests the end


def test_a_wider_beam_scores_at_least_as_well_as_greedy_search(
    reverser: transformer.Transformer,
) -> None:
    model, source = reverser, reversals(24, seed=99)[0]
    scores = {}
    for beam in (1, 4):
        found = transformer.generate(
            model, source, begin=BEGIN, end=END, beam=beam, length_penalty=0.0, max_length=8
        )
        pairs = zip(source, found, strict=True)
        scores[beam] = [log_probability(model, row, target) for row, target in pairs]
    # Not a law of beam search, which may drop the greedy path, but true of these 24 rows.
    assert all(wide >= greedy - 1e-4 for wide, greedy in zip(scores[4], scores[1], strict=True))
    assert sum(scores[4]) > sum(scores[1])


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_beam_that_holds_every_target_finds_the_best_one(penalty: float) -> None:
    model, source = tiny(vocabulary=5), tokens(4, 5, vocabulary=5)
    # 3 tokens besides padding and end: 1 + 3 + 9 + 27 = 40 targets, so a beam of 41 never fills.
    found = transformer.generate(
        model, source, begin=BEGIN, end=END, beam=41, length_penalty=penalty, max_length=3
    )
    targets = [list(t) for n in range(4) for t in itertools.product([1, 3, 4], repeat=n)]
    assert len(targets) == 40
    for row, target in zip(source, found, strict=True):
        scores = [log_probability(model, row, t) / (len(t) + 1) ** penalty for t in targets]
        assert target == targets[scores.index(max(scores))]


def plain_beam_search(model: nn.Module, row: Tensor, beam: int, max_length: int) -> list[int]:
    """Fairseq's rules on lists: one row, no cache, length penalty 1."""
    running, ended = [(0.0, [])], []
    for length in range(1, max_length + 2):
        grown = []
        for score, target in running:
            logits = model(row[None], torch.tensor([[BEGIN, *target]]))[0, -1].detach()
            scores = logits.log_softmax(-1).tolist()
            allowed = [END] if length > max_length else range(1, 20)
            grown += [(score + scores[token], [*target, token]) for token in allowed]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beam]
        ended += [(s / length, t[:-1]) for s, t in grown[:beam] if t[-1] == END]
        running = [(s, t) for s, t in grown if t[-1] != END][:beam]
        if len(ended) >= beam:
            break
    return max(ended, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("beam", [2, 4])
def test_beam_search_follows_fairseqs_rules(reverser: transformer.Transformer, beam: int) -> None:
    source = reversals(12, seed=98)[0]
    found = transformer.generate(
        reverser, source, begin=BEGIN, end=END, beam=beam, length_penalty=1.0, max_length=5
    )
    assert found == [plain_beam_search(reverser, row, beam, 5) for row in source]


def test_a_row_is_translated_alike_alone_and_in_a_batch(reverser: transformer.Transformer) -> None:
    source = reversals(24, seed=99)[0]

    def translate(rows: Tensor) -> list[list[int]]:
        return transformer.generate(
            reverser, rows, begin=BEGIN, end=END, beam=3, length_penalty=0.6, max_length=12
        )

    assert translate(source) == [translate(row[None])[0] for row in source]


def test_generate_refuses_a_model_in_training_mode() -> None:
    with pytest.raises(ValueError, match="eval"):
        transformer.generate(
            tiny().train(), tokens(1, 2), begin=1, end=2, beam=1, length_penalty=1.0, max_length=3
        )


def test_non_finite_logits_are_an_error_and_not_an_empty_translation() -> None:
    model = tiny()
    with torch.no_grad():
        model.embedding.weight[5] = math.nan
    with pytest.raises(FloatingPointError):
        transformer.generate(
            model, tokens(1, 2), begin=1, end=2, beam=2, length_penalty=1.0, max_length=3
        )


def test_every_weight_gets_a_gradient_in_training() -> None:
    model = tiny().train()
    model(tokens(2, 5), tokens(2, 4)).log_softmax(-1)[..., 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("width", "hidden", "heads"), [(0.01, 32, 1), (0.125, 128, 2), (0.2, 224, 2), (0.5, 512, 8)]
)
def test_width_rounds_hidden_up_and_heads_divide_it(width: float, hidden: int, heads: int) -> None:
    # 0.2 * 1024 = 204.8 -> 224 = 3.5 heads of 64; 3 does not divide 224, 2 does.
    with torch.device("meta"):
        model = transformer.build(vocabulary=100, padding=0, width=width, depth=0.25)
    assert model.hidden == hidden and model.encoder[0].attention.heads == heads
    assert len(model.encoder) == len(model.decoder) == 2  # 6 * 0.25 = 1.5, half up


@pytest.mark.parametrize("factors", [{"width": 0.0}, {"depth": -1.0}, {"width": math.nan}])
def test_width_and_depth_must_be_above_zero(factors: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(factors))):
        transformer.build(vocabulary=10, padding=0, **factors)


def test_width_one_leaves_odd_sizes_alone_and_float_noise_adds_nothing() -> None:
    assert scaling.channels(100, 1.0) == 100
    assert scaling.channels(320, 0.1) == 32
    assert scaling.channels(100, 2.0) == 224
    assert [scaling.layers(n, 0.25) for n in (1, 6, 12)] == [1, 2, 3]
