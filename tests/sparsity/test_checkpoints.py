"""Checkpoints as the other tools write them: their buffers, their names, their zeros."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workbench import cli
from workbench.sparsity import (
    Masks,
    SparsityError,
    prune,
    read_checkpoint,
    save_compressed,
    verify_file,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))


def asp(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """The state dict of a model under ASP: bool buffers `__weight_mma_mask`, weights zeroed."""
    for name, mask in masks.items():
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path).register_buffer(f"__{leaf}_mma_mask", mask)
    return model.state_dict()


def model_optimizer(model: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    """Buffers `_weight_mask` beside weights that keep their pruned values."""
    for name, mask in masks.items():
        module = model.get_submodule(name.rpartition(".")[0])
        module.register_buffer("_weight_mask", mask)
        with torch.no_grad():
            module.weight += 1.0
    return model.state_dict()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("nested", [False, True])
def test_masks_of_asp_are_read_and_its_buffers_are_left_behind(suffix, nested, tmp_path):
    model = network()
    masks = prune(model)
    state = asp(model, masks)
    path = tmp_path / f"asp.{suffix}"
    if suffix == "pth":
        torch.save({"epoch": 3, "model": state} if nested else state, path)
    else:
        save_file(state, path)
    found = read_checkpoint(path)
    assert found.form == "apex ASP"
    assert found.masks.digest() == masks.digest()
    fresh = network()
    fresh.load_state_dict(found.tensors)  # strict: a plain model takes it
    found.masks.verify(fresh)
    assert "apex ASP; 2 weights" in verify_file(path)


def test_attention_masks_of_asp_belong_to_their_own_projections():
    model = nn.MultiheadAttention(16, 2)
    masks = prune(model)
    found = read_checkpoint(asp(model, masks)).masks
    assert list(found) == ["in_proj_weight", "out_proj.weight"]
    assert found.digest() == masks.digest()


def test_masks_of_model_optimizer_are_read_and_applied():
    model = network()
    masks = prune(model)
    found = read_checkpoint({"model_state_dict": model_optimizer(model, masks), "step": 1})
    assert (found.form, found.masks.digest()) == ("Model Optimizer", masks.digest())
    fresh = network()
    fresh.load_state_dict(found.tensors)
    with pytest.raises(SparsityError, match="outside the mask"):
        found.masks.verify(fresh)  # it keeps the pruned values
    found.masks.apply(fresh)
    found.masks.verify(fresh)


def test_a_zero_filled_checkpoint_gives_the_masks_of_its_zeros():
    model = network()
    masks = prune(model)
    found = read_checkpoint(model.state_dict())
    assert found.form == "zeros"
    assert found.masks.digest() == masks.digest()


def test_zeros_of_a_transposed_convolution_are_read_along_its_input_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(8, 8, 2), nn.ConvTranspose2d(16, 8, 2, groups=2))
    masks = prune(model, rule="c4+")
    for found in (
        read_checkpoint(model.state_dict()),
        read_checkpoint(model.state_dict(), model),
    ):
        assert {name: mask.tolist() for name, mask in found.masks.items()} == {
            name: mask.tolist() for name, mask in masks.items()
        }
        found.masks.verify(model)


def test_a_group_with_more_zeros_than_needed_keeps_its_lowest_indices():
    weight = torch.tensor([[0.0, 0, 0, 5, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0, 3, 4]])
    mask = read_checkpoint({"w": weight}).masks["w"]
    assert mask.tolist() == [
        [True, False, False, True, True, True, False, False],
        [True, True, False, False, False, False, True, True],
    ]


def test_a_set_up_that_never_pruned_and_a_broken_mask_are_refused():
    model = network()
    whole = Masks({"3.weight": torch.ones(4, 32, dtype=torch.bool)}, {}, "asp")
    with pytest.raises(SparsityError, match="mask of 3.weight keeps everything.*compute_sparse"):
        read_checkpoint(asp(model, whole))
    model = network()
    masks = prune(model)
    mask = masks["3.weight"].clone()
    mask[2, 4:8] = True
    state = asp(model, Masks({"3.weight": mask}, {}, "asp"))
    with pytest.raises(SparsityError, match=r"mask of 3.weight: 1 of 32 groups .*\[2, 1\]"):
        read_checkpoint(state)
    orphan = {"3.__weight_mma_mask": masks["3.weight"], "other": torch.ones(2)}
    with pytest.raises(SparsityError, match="a mask for 3.weight, which the checkpoint lacks"):
        read_checkpoint(orphan)


def test_a_checkpoint_that_lost_its_pattern_is_refused_by_layer_and_group(tmp_path):
    model = network()
    masks = prune(model)
    masks.save(tmp_path / "masks")
    path = tmp_path / "model.safetensors"
    state = model.state_dict()
    save_file(state, path)
    assert masks.digest() in verify_file(path)
    assert "zero outside 2 masks" in verify_file(path, masks)
    position = (~masks["3.weight"][1, 8:12]).nonzero()[0].item()
    state["3.weight"][1, 8 + position] = 1.0
    save_file(state, path)
    with pytest.raises(
        SparsityError, match=r"^3.weight: 1 of 32 groups do not keep 2 of 4.*\[1, 2\]"
    ):
        verify_file(path)
    with pytest.raises(SparsityError, match=r"3.weight: 1 weights outside the mask .* \[1, "):
        verify_file(path, masks)


def test_a_dense_checkpoint_a_directory_of_nothing_and_a_pickle_are_refused(tmp_path):
    save_file(network().state_dict(), tmp_path / "dense")
    with pytest.raises(SparsityError, match="no weight of 9 tensors is 2:4"):
        verify_file(tmp_path / "dense")
    with pytest.raises(SparsityError, match="absent: no such file"):
        verify_file(tmp_path / "absent")
    torch.save(network(), tmp_path / "pickle")
    with pytest.raises(SparsityError, match="pickle: neither .* save the state dict alone"):
        verify_file(tmp_path / "pickle")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(SparsityError, match="text: neither"):
        verify_file(tmp_path / "text")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(SparsityError, match="list: holds a list"):
        verify_file(tmp_path / "list")


def test_verify_is_a_command_for_every_kind_of_file(tmp_path, capsys):
    model = network()
    masks = prune(model)
    masks.save(tmp_path / "masks")
    save_compressed(model.state_dict(), masks, tmp_path / "compressed")
    save_file(asp(model, masks), tmp_path / "asp")
    for name, form in (("masks", "masks"), ("compressed", "compressed 2:4"), ("asp", "apex ASP")):
        assert cli.run(["verify", str(tmp_path / name)]) == 0
        told = capsys.readouterr().out
        assert f"{form}; 2 weights" in told and masks.digest() in told
    arguments = ["verify", str(tmp_path / "asp"), "--masks", str(tmp_path / "masks")]
    assert cli.run(arguments) == 0
    save_file(network().state_dict(), tmp_path / "dense")
    assert cli.run(["verify", str(tmp_path / "dense")]) == 1
    assert "workbench verify:" in capsys.readouterr().err


def test_integers_are_verified_too(tmp_path):
    model = network()
    masks = prune(model)
    integers = {n: (model.get_parameter(n) * 127).round().to(torch.int8) for n in masks}
    save_file(integers, tmp_path / "int8")
    assert "2 weights of pattern" in verify_file(tmp_path / "int8", None)
    assert "zero outside 2 masks" in verify_file(tmp_path / "int8", masks)
