import torch
from torch import nn

from workbench.sparsity import is_nm, layer_sparsity, prune, summary


def test_a_group_with_three_non_zeros_is_not_two_of_four():
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 0, 0, 3]])
    assert is_nm(weight, 2, 4)
    assert not is_nm(weight, 1, 4)
    weight[0, 1] = 1
    assert not is_nm(weight, 2, 4)


def test_groups_that_straddle_rows_do_not_count():
    assert not is_nm(torch.zeros(4, 6), 2, 4)


def test_rows_state_each_layer_and_its_two_of_four_validity():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    prune(model, {"kind": "nm", "keep": 2, "of": 4})
    first, second = layer_sparsity(model)
    assert (first["density"], first["is_2to4"]) == (1.0, False)
    assert second == {
        "layer": "1.weight",
        "shape": (8, 8, 1, 1),
        "weights": 64,
        "nonzero": 32,
        "density": 0.5,
        "is_2to4": True,
    }


def test_compression_to_two_of_four_takes_nine_sixteenths():
    model = nn.Linear(64, 64)
    assert summary(model)["compressed_bytes"] == summary(model)["dense_bytes"] == 2 * (4096 + 64)
    prune(model, {"kind": "nm", "keep": 2, "of": 4})
    # by hand: 2048 values x 2 bytes + 2048 x 2 bits + 64 biases x 2 bytes
    assert summary(model) == {
        "parameters": 4160,
        "weights": 4096,
        "nonzero": 2048,
        "density": 0.5,
        "weights_2to4": 4096,
        "dense_bytes": 8320,
        "compressed_bytes": 4096 + 512 + 128,
    }
