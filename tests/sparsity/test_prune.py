import pytest
import torch
from torch import nn

from workbench.sparsity import (
    Masks,
    as_text,
    explain,
    is_nm,
    prune,
    prune_trained_model,
    totals,
)

TWO_OF_FOUR = {"kind": "nm", "keep": 2, "of": 4}


class Tied(nn.Module):
    """BERT in small: the decoder is the word embedding."""

    def __init__(self, decoder_first: bool = False):
        super().__init__()
        if decoder_first:
            self.decoder = nn.Linear(16, 32, bias=False)
        self.embedding = nn.Embedding(32, 16)
        self.encoder = nn.Linear(16, 16)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.encoder.weight
        if not decoder_first:
            self.decoder = nn.Linear(16, 32, bias=False)
        self.decoder.weight = self.embedding.weight


class MyLinear(nn.Linear):
    pass


def zoo() -> nn.ModuleDict:
    frozen = nn.Linear(16, 16)
    frozen.weight.requires_grad = False
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 16, 3),
            "conv": nn.Conv2d(16, 16, 3),
            "grouped": nn.Conv2d(32, 32, 3, groups=2),
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "conv1d": nn.Conv1d(16, 16, 3),
            "conv3d": nn.Conv3d(16, 16, 3),
            "subclass": MyLinear(16, 16),
            "narrow": nn.Linear(24, 16),
            "twelve": nn.Linear(16, 12),
            "frozen": frozen,
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)),
            "attention": nn.MultiheadAttention(16, 2),
            "transposed": nn.ConvTranspose2d(16, 16, 3),
            "embedding": nn.Embedding(16, 16),
            "norm": nn.LayerNorm(16),
        }
    )


def test_every_weight_over_input_channels_is_listed_with_its_reason():
    reasons = {layer.name: layer.reason for layer in explain(zoo())}
    assert reasons == {
        "stem.weight": "first layer: 3 input channels per group, not a multiple of 4",
        "conv.weight": "",
        "grouped.weight": "",
        "depthwise.weight": "depthwise: 1 input channel per group",
        "conv1d.weight": "",
        "conv3d.weight": "",
        "subclass.weight": "",
        "narrow.weight": "",
        "twelve.weight": "",
        "frozen.weight": "frozen (requires_grad is False)",
        "normed.weight": "computed from other parameters (parametrization)",
        "attention.in_proj_weight": "",
        "attention.out_proj.weight": "",
        "transposed.weight": "transposed convolution: only rule c4+ prunes it",
    }


def test_the_asp_rule_adds_multiples_of_sixteen_and_eight():
    reasons = {layer.name: layer.reason for layer in explain(zoo(), "asp")}
    assert reasons["narrow.weight"] == "24 input channels per group, not a multiple of 16"
    assert reasons["twelve.weight"] == "12 output channels, not a multiple of 8"
    assert reasons["grouped.weight"] == ""


def test_what_kernels_need_and_what_padding_would_cost_are_told():
    told = {layer.name: (layer.kernel, layer.remedy) for layer in explain(zoo())}
    assert told["conv.weight"] == ("", "")
    assert told["narrow.weight"] == (
        "24 input channels, not a multiple of 16",
        "pad input channels 24 -> 32: +33.3% FLOPs",  # 32 / 24
    )
    assert told["twelve.weight"] == (
        "12 output channels, not a multiple of 8",
        "pad output channels 12 -> 16: +33.3% FLOPs",
    )
    assert told["depthwise.weight"] == ("depthwise: nothing to leave out of 1 input channel", "")
    assert told["frozen.weight"] == ("", "let it train: requires_grad_(True)")
    (shuffle,) = explain(nn.Conv2d(58, 58, 1))
    # 64 x 64 / (58 x 58) = 1.2176
    assert shuffle.remedy == ("pad input channels 58 -> 64, output channels 58 -> 64: +21.8% FLOPs")


def test_a_padded_layer_is_eligible_and_fits_the_kernels():
    (padded,) = explain(nn.Conv2d(64, 64, 1), "asp")
    assert padded.eligible and not padded.kernel and not padded.remedy


def test_totals_count_weights_and_layers_by_reason():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1), nn.ReLU())
    model.append(nn.Conv2d(16, 8, 1))
    counted = totals(model, explain(model))
    assert counted == {
        "parameters": 24 + 64 + 128 + 128 + 8 + 8 + 16 + 8,
        "weights": 24 + 64 + 128 + 128,
        "eligible": 64 + 128 + 128,
        "eligible_and_runnable": 128,  # 8 input channels are half of what kernels take
        "dense_because": {"first layer: 3 input channels per group, not a multiple of 4": 1},
    }
    text = as_text(model, explain(model))
    assert "0.weight" in text and "first layer" in text and "320 of 344 weights" in text


@pytest.mark.parametrize("decoder_first", [False, True])
@pytest.mark.parametrize("rule", ["c4", "asp"])
def test_a_weight_tied_to_an_embedding_stays_dense_and_a_shared_linear_is_listed_once(
    decoder_first, rule
):
    reasons = {layer.name: layer.reason for layer in explain(Tied(decoder_first), rule)}
    assert reasons == {
        "decoder.weight": "tied to embedding.weight (Embedding)",
        "encoder.weight": "",
    }


def test_pruning_leaves_the_tied_embedding_whole():
    model = Tied()
    prune(model, TWO_OF_FOUR)
    assert model.embedding.weight.count_nonzero() == 32 * 16


# sparsity.md 3.1: the eligible and skipped counts of ASP's rule, on meta tensors
@pytest.mark.parametrize(
    ("name", "eligible", "skipped"),
    [
        ("resnet50", 53, 1),
        ("resnext50_32x4d", 46, 8),
        ("mobilenet_v2", 33, 20),
        ("vit_b_16", 49, 1),
    ],
)
def test_the_asp_rule_counts_what_asp_counts(name, eligible, skipped):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        layers = explain(models.get_model(name), "asp")
    assert sum(layer.eligible for layer in layers) == eligible
    assert sum(not layer.eligible for layer in layers) == skipped


def test_resnet50_skips_only_its_first_conv_and_prunes_its_head():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        layers = explain(models.resnet50(), "asp")
    assert [layer.name for layer in layers if not layer.eligible] == ["conv1.weight"]
    assert layers[-1].name == "fc.weight"


def test_a_callable_rule_decides_and_its_name_is_kept():
    def no_heads(name, module, weight):
        return "head" if weight.shape[0] == 12 else ""

    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 12))
    masks = prune(model, TWO_OF_FOUR, no_heads)
    assert list(masks) == ["0.weight"]
    assert masks.rule.endswith("no_heads")


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown rule: apex.*known: c4, c4\\+, asp"):
        explain(nn.Linear(4, 4), "apex")


def test_keep_dense_takes_any_name_of_a_tied_weight_and_refuses_unknown_names():
    layers = explain(Tied(), keep_dense=["again.weight"])
    assert {layer.name: layer.reason for layer in layers}["encoder.weight"] == (
        "kept dense by request"
    )
    with pytest.raises(ValueError, match="encodr.weight.*nearest.*'encoder.weight'"):
        explain(Tied(), keep_dense=["encodr.weight"])
    with pytest.raises(TypeError, match="list of names"):
        explain(Tied(), keep_dense="encoder.weight")


def test_lazy_layers_are_listed_as_not_initialized():
    (layer,) = explain(nn.LazyLinear(8))
    assert layer.reason.startswith("not initialized")


def test_pruning_twice_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].weight[:, 1:4] = 0  # groups with fewer than two non-zeros
    for pattern in (
        TWO_OF_FOUR,
        {"kind": "block", "rows": 2, "columns": 2, "density": 0.5},
        {"kind": "unstructured", "density": 0.25},
    ):
        first = prune(model, pattern)
        weights = [parameter.clone() for parameter in model.parameters()]
        second = prune(model, pattern)
        assert first.digest() == second.digest()
        assert all(map(torch.equal, weights, model.parameters()))


def test_pruned_weights_are_two_of_four_and_kept_weights_are_untouched():
    model = nn.Conv2d(8, 8, 3)
    before = model.weight.detach().clone()
    masks = prune(model, TWO_OF_FOUR)
    assert is_nm(model.weight, 2, 4)
    assert masks.density() == 0.5
    assert torch.equal(model.weight, before.where(masks["weight"], torch.tensor(0.0)))


def test_kind_none_gives_empty_masks_and_changes_nothing():
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    masks = prune(model, {"kind": "none"})
    assert (len(masks), masks.density(), masks.pattern) == (0, 1.0, {"kind": "none"})
    assert torch.equal(model.weight, before)
    masks.verify(model)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            {"kind": "2:4"},
            "unknown pattern kind: 2:4.*known: nm, transposable, block, unstructured",
        ),
        ({"keep": 2, "of": 4}, "has no kind; one of nm, transposable, block"),
        ({"kind": "nm", "keep": 2}, "lacks of; kind nm needs keep, of"),
        ({"kind": "nm", "keep": 2, "of": 4, "dim": 1}, "unknown key of pattern nm: dim"),
        ({"kind": "unstructured", "density": 2}, "0.weight: unstructured: density 2 given"),
    ],
)
def test_a_wrong_pattern_is_refused_with_what_is_allowed(pattern, message):
    with pytest.raises(ValueError, match=message):
        prune(nn.Sequential(nn.Linear(8, 8)), pattern)


def test_a_refused_weight_leaves_the_model_as_it_was_and_all_are_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(12, 8), nn.Linear(4, 8))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"(?s)1\.weight: nm: .*2\.weight: nm: "):
        prune(model, {"kind": "nm", "keep": 4, "of": 8})
    assert all(map(torch.equal, before, model.parameters()))


def test_a_nan_is_refused_with_the_layer_name():
    model = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[3, 6] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight: nm: weight is nan at index \[3, 6\]"):
        prune(model, TWO_OF_FOUR)


def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons():
    with pytest.raises(ValueError, match="0.weight: first layer: 3 input channels"):
        prune(nn.Sequential(nn.Linear(3, 8)), TWO_OF_FOUR)


def test_pruning_and_training_leave_the_random_state_alone():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.get_rng_state()
    masks = prune_trained_model(model, optimizer)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    masks.verify(model)
    assert isinstance(masks, Masks)
    assert torch.equal(torch.get_rng_state(), state)
