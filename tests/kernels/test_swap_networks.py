"""swap in a precision: BERT and the ResNet family keep their numbers, layer by layer and whole."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import sparse24
from sparse24.bench import Timing
from sparse24.dispatch import Measured
from sparse24.encoder import Encoder
from tests.kernels.networks import RESNETS, apart, bert, resnet
from workbench import sparsity

# A rounding errs by at most 2^-11 (fp16) or 2^-8 (bf16), in the mean square by 0.41 of that.
# Weights and results of a block are some eight, sqrt(8) * 0.41 = 1.2; of a network some 32, 2.3.
UNIT = {"fp16": 2**-11, "bf16": 2**-8}
BLOCK = {precision: 2 * unit for precision, unit in UNIT.items()}
WHOLE = {precision: 4 * unit for precision, unit in UNIT.items()}


def run(model: nn.Module, inputs: Tensor | dict) -> Tensor:
    with torch.no_grad():
        if isinstance(inputs, dict):
            found = model(**inputs)
            return next(iter(found.values()))
        return model(inputs.to(next(model.parameters()).dtype))


def calls(model: nn.Module, names: list[str], inputs: Tensor | dict) -> dict[str, tuple]:
    """The first argument and the result of modules, by name."""
    seen = {}

    def note(name: str):
        def noted(_: nn.Module, given: tuple, result: Tensor) -> None:
            seen[name] = given[0], result

        return noted

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    run(model, inputs)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("network", RESNETS)
def test_every_block_of_a_resnet_keeps_its_numbers(network: str, precision: str) -> None:
    model, images = resnet(network)
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(len(getattr(model, f"layer{i}")))]
    seen, wanted = calls(model, blocks, images), run(model, images)
    table = sparse24.swap(model, precision=precision)
    assert [row.name for row in table if not row.swapped] == ["conv1"]
    dtype = model.fc.dtype
    for name, (x, result) in seen.items():
        with torch.no_grad():
            found = model.get_submodule(name)(x.to(dtype))
        assert found.dtype == dtype
        assert apart(found, result) < BLOCK[precision], name
    assert apart(run(model, images), wanted) < WHOLE[precision]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_layer_of_a_bert_keeps_its_numbers(precision: str) -> None:
    model, tokens = bert()
    count = len(model.bert.encoder.layer)
    names = [f"bert.encoder.layer.{i}" for i in range(count)]
    seen, wanted = calls(model, names, tokens), run(model, tokens)
    table = sparse24.swap(model, precision=precision)
    (encoder,) = model.bert.encoder.layer
    assert isinstance(encoder, Encoder)
    assert len(encoder.layers) == count
    for layer, (x, result) in zip(encoder.layers, seen.values(), strict=True):
        with torch.no_grad():
            found, rounded = layer(x.to(model.dtype), None, None, None)
        assert rounded is None
        assert apart(found, result) < BLOCK[precision]
    assert apart(run(model, tokens), wanted) < WHOLE[precision]
    told = {row.name.removeprefix("bert.encoder.layer."): row.reason for row in table}
    assert told["0.attention.self.{query,key,value}"] == "2:4, not measured"
    assert told["0.intermediate.dense"] == "2:4, not measured; gelu fused"
    assert told["1.attention.output.dense"] == told["1.output.dense"]
    assert told["1.output.dense"] == "2:4, not measured; residual fused"
    assert all(row.swapped for row in table)


def test_padding_is_masked_as_before_and_without_it_there_is_no_mask() -> None:
    model, tokens = bert()
    mask = torch.ones(tokens["input_ids"].shape, dtype=torch.long)
    mask[1, 15:] = 0
    padded, wanted = run(model, tokens | {"attention_mask": mask}), run(model, tokens)
    shown = mask[1].bool()
    assert apart(padded[1, shown], wanted[1, shown]) > 10 * WHOLE["fp16"]
    sparse24.swap(model, precision="fp16")
    found = run(model, tokens | {"attention_mask": mask})
    assert apart(found[1, shown], padded[1, shown]) < WHOLE["fp16"]
    given = []
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda _, args: given.append(args[1]))
    run(model, tokens)
    assert given == [None]


def test_the_pretraining_head_is_swapped_too_but_not_its_tied_decoder() -> None:
    model, tokens = bert("masked_language_model")
    wanted = run(model, tokens)
    table = {row.name: row for row in sparse24.swap(model, precision="fp16")}
    assert table["cls.predictions.transform.dense"].swapped
    assert "is also that of" in table["cls.predictions.decoder"].reason
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert apart(run(model, tokens), wanted) < WHOLE["fp16"]


@pytest.mark.parametrize("network", ["resnet50", "bert_large"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_compiled_whole_a_swapped_network_gives_the_same_bits(network, precision) -> None:
    model, inputs = bert() if network == "bert_large" else resnet(network)
    sparse24.swap(model, precision=precision, example=inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(compiled, inputs), run(model, inputs))


def other(**changes: object) -> BertModel:
    torch.manual_seed(0)
    config = {
        "vocab_size": 32,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = BertModel(BertConfig(**config | changes)).eval()
    sparsity.prune(model)
    return model


@pytest.mark.parametrize(
    ("activation", "name"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"),
                             ("relu", "relu"), ("gelu", "gelu")],
)  # fmt: skip
def test_the_activation_of_the_config_is_fused(activation: str, name: str) -> None:
    model, tokens = other(hidden_act=activation), {"input_ids": torch.randint(1, 32, (2, 9))}
    wanted = run(model, tokens)
    table = sparse24.swap(model, precision="fp16")
    assert table[2].reason == f"2:4, not measured; {name} fused"
    assert apart(run(model, tokens), wanted) < WHOLE["fp16"]


def broken(model: BertModel) -> None:
    model.encoder.layer[0].intermediate.dense.weight.data[0, :4] = 1


@pytest.mark.parametrize(
    ("changes", "spoil", "reason"),
    [
        ({"hidden_act": "silu"}, None, "SiLUActivation, is none of relu and the GELUs"),
        ({"is_decoder": True}, None, "it is a decoder"),
        ({"chunk_size_feed_forward": 4}, None, "runs in chunks"),
        ({}, lambda model: model.train(), "it trains, with dropout"),
        ({}, broken, "layer.0.intermediate.dense: row 0, group 0"),
        (
            {},
            lambda model: model.encoder.layer[0].register_forward_hook(lambda *_: None),
            "hooks are on it",
        ),
        (
            {},
            lambda model: setattr(model.config, "_attn_implementation", "flash_attention_2"),
            r"its attention is flash_attention_2: call model.set_attn_implementation\('sdpa'\)",
        ),
    ],
)
def test_an_encoder_that_cannot_be_fused_stays_with_the_reason(changes, spoil, reason) -> None:
    model = other(**changes)
    if spoil is not None:
        spoil(model)
    table = sparse24.swap(model, precision="fp16")
    row = table[0]
    assert (row.name, row.swapped) == ("encoder.layer", False)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(row.reason)
    assert type(model.encoder.layer[0]).__name__ == "BertLayer"
    query = model.encoder.layer[0].attention.self.query
    assert isinstance(query, sparse24.SparseLinear)  # by itself, as any other Linear


def test_what_the_encoder_does_not_have_is_refused_at_the_call() -> None:
    model = other()
    tokens = torch.randint(1, 32, (2, 9))
    sparse24.swap(model, precision="fp16")
    with pytest.raises(TypeError, match="asked for output_hidden_states, which it does not have"):
        model(tokens, output_hidden_states=True)
    with pytest.raises(RuntimeError, match="has no dropout: call model.eval()"):
        model.train()(tokens)


def test_the_products_of_an_encoder_are_measured_with_what_is_fused(tmp_path) -> None:
    model, seen = other(), []

    def timer(given) -> Timing:
        choice, x, w, _, finish = given[0].args
        bias, residual, _, _, activation, *_ = finish
        seen.append((choice.backend, len(x), w.out_features, residual is not None, activation))
        ours = 20.0 if w.out_features == 64 else 5.0
        time = {"sparse24": ours, "dense": 10.0, "cusparselt": 30.0}[choice.backend]
        return Timing(time, time, time)

    given = {"timer": timer, "store": Measured(tmp_path / "times.json")}
    tokens = torch.randint(1, 32, (2, 9))
    table = sparse24.swap(model, measure=True, example=tokens, precision="fp16", **given)
    ours = {(tokens, *rest) for backend, tokens, *rest in seen if backend == "sparse24"}
    # 18 rows; query, key and value, out: 3 * 32 and 32, up to 64 with GELU (3 of seam.py), down
    encoder = {(18, 96, False, 0), (18, 32, True, 0), (18, 64, False, 3)}
    assert ours == encoder | {(2, 32, False, 0)}  # and the pooler, of the first tokens
    assert [row.swapped for row in table] == [True, True, False, True, True]
    assert table[2].reason == "2:4, but dense is the fastest at every size measured; gelu fused"
    assert table[0].reason == "2:4; tokens: 18: sparse24 2.00x"
    assert set(model.encoder.layer[0].layers[0].up.weight.copies) == {"dense"}


def test_wrong_precisions_and_scales_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="precision is 'fp8'; allowed are 'fp16', 'bf16', 'int8'"):
        sparse24.swap(model, precision="fp8")
    with pytest.raises(ValueError, match="scales are of precision 'int8', not of 'fp16'"):
        sparse24.swap(model, precision="fp16", scales={"0": 1.0})
    with pytest.raises(ValueError, match="needs scales .* or an example to calibrate on"):
        sparse24.swap(model, precision="int8")
    with pytest.raises(ValueError, match="no module '1'"):
        sparse24.swap(model, precision="int8", scales={"1": 1.0})


def test_a_copied_network_and_one_loaded_from_a_state_dict_are_the_same() -> None:
    model, tokens = bert()
    sparse24.swap(model, precision="int8", example=tokens)
    again = copy.deepcopy(model)
    for buffer in again.buffers():
        if buffer.dtype is torch.uint8:
            buffer.zero_()
    for layer in again.bert.encoder.layer[0].layers:
        layer.up.emit(None)
    assert not torch.equal(run(again, tokens), run(model, tokens))
    again.load_state_dict(model.state_dict())
    assert torch.equal(run(again, tokens), run(model, tokens))
