"""Storage: kept magnitude and bytes of every pattern by hand."""

import pytest
import torch
from torch import nn

from workbench.sparsity import Masks, SparsityError, find_masks, kept_magnitude, storage


def linear(weight: torch.Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def test_kept_magnitude_is_the_share_of_the_sum() -> None:
    layer = linear(torch.tensor([[1.0, -4.0, 3.0, 2.0]]))
    masks = find_masks(layer, {"kind": "nm", "keep": 2, "of": 4})
    assert kept_magnitude(layer, masks) == pytest.approx(0.7)  # (4 + 3) / 10


def test_nothing_masked_keeps_all_in_two_bytes_a_weight() -> None:
    layer = nn.Linear(8, 4)
    masks = Masks({}, {"kind": "none"}, "c4")
    assert kept_magnitude(layer, masks) == 1.0
    assert storage(layer, masks) == {"values_bytes": 72, "metadata_bytes": 0, "bytes": 72}


@pytest.mark.parametrize(
    ("pattern", "values", "metadata"),
    [
        # 64 x 64 weights: half are kept at 2 bytes, with 2 bits each (12.5 %, slide 13)
        ({"kind": "nm", "keep": 2, "of": 4}, 4096, 512),
        ({"kind": "nm", "keep": 1, "of": 8}, 1024, 192),  # 512 values of 3 bits
        # one bit for each of four blocks
        ({"kind": "block", "rows": 32, "columns": 32, "density": 0.5}, 4096, 1),
        # CSR: 2 bytes of column for each value (100 %), 65 row pointers of 4 bytes
        ({"kind": "unstructured", "density": 0.5}, 4096, 4096 + 260),
        ({"kind": "unstructured", "density": 0.25}, 2048, 2048 + 260),
    ],
)
def test_bytes_are_values_and_what_says_where_they_lie(pattern, values, metadata) -> None:
    layer = linear(torch.randn(64, 64, generator=torch.manual_seed(0)))
    found = storage(layer, find_masks(layer, pattern))
    assert (found["values_bytes"], found["metadata_bytes"]) == (values, metadata)
    assert found["bytes"] == values + metadata


def test_a_pattern_without_a_format_is_refused() -> None:
    layer = linear(torch.ones(4, 4))
    masks = Masks({"weight": torch.ones(4, 4, dtype=torch.bool)}, {"kind": "rows"}, "c4")
    with pytest.raises(SparsityError, match="storage of pattern rows is not defined; known: nm"):
        storage(layer, masks)
