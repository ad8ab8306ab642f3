import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.sparsity import block, is_nm, nm, transposable, unstructured, unstructured_global


def brute_force(group: list[float], keep: int) -> list[bool]:
    """The first (lowest) index set of largest total magnitude, by trying all of them."""
    order = sorted(range(len(group)), key=lambda i: (-abs(group[i]), i))
    return [i in order[:keep] for i in range(len(group))]


def with_ties(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).float()


@pytest.mark.parametrize(
    ("keep", "of"),
    [(n, m) for m in range(1, 9) for n in range(1, m + 1)] + [(1, 16), (4, 16), (8, 16), (15, 16)],
)
def test_every_group_keeps_its_largest_and_the_lowest_index_among_equals(keep, of):
    weight = with_ties(6, 3 * of)
    expected = [brute_force(group, keep) for group in weight.view(-1, of).tolist()]
    assert nm(weight, keep, of).view(-1, of).tolist() == expected


def test_every_group_of_four_keeps_its_two_largest_for_all_value_orders():
    groups = torch.tensor(list(itertools.product([-2.0, 0.0, 1.0, 2.0], repeat=4)))
    expected = [brute_force(group, 2) for group in groups.tolist()]
    assert nm(groups, 2, 4).tolist() == expected


def test_all_equal_and_all_zero_groups_keep_the_first_two():
    weight = torch.tensor([[1.0, -1, 1, -1, 0, -0.0, 0, 0]])
    assert nm(weight, 2, 4).tolist() == [[True, True, False, False] * 2]


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 3)])
def test_conv_groups_run_along_input_channels_at_one_kernel_position(kernel):
    weight = with_ties(5, 8, *kernel)
    rows = weight.movedim(1, -1)  # [out, *kernel, in]
    expected = nm(rows.reshape(-1, 8), 2, 4).view(rows.shape).movedim(-1, 1)
    assert torch.equal(nm(weight, 2, 4), expected)
    assert is_nm(weight * expected, 2, 4)


def test_grouped_conv_groups_stay_inside_their_conv_group():
    conv = torch.nn.Conv2d(16, 8, 3, groups=2)  # weight [8, 8, 3, 3]
    mask = nm(conv.weight, 2, 4)
    assert mask.shape == (8, 8, 3, 3)
    assert (mask.view(8, 2, 4, 3, 3).sum(2) == 2).all()


@pytest.mark.parametrize(
    "find_mask",
    [
        lambda w: nm(w, 2, 4),
        lambda w: block(w, 4, 4, 0.5),
        lambda w: unstructured(w, 0.5),
    ],
)
def test_channels_last_weights_get_the_same_mask_in_their_own_memory_format(find_mask):
    weight = with_ties(8, 8, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(find_mask(last), find_mask(weight))
    assert find_mask(last).is_contiguous(memory_format=torch.channels_last)


def test_masks_of_layers_larger_than_one_chunk_equal_those_of_their_rows():
    weight = torch.randn(1200, 1024, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nm(weight, 2, 4)[1100:], nm(weight[1100:], 2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_weights_are_ranked_by_their_own_values(dtype):
    weight = with_ties(4, 8)
    assert torch.equal(nm(weight.to(dtype), 2, 4), nm(weight, 2, 4))
    assert torch.equal(unstructured(weight.to(dtype), 0.5), unstructured(weight, 0.5))


def test_blocks_of_largest_l1_magnitude_are_kept_whole():
    weight = torch.zeros(4, 4)
    weight[0, 3] = 5.0  # block (0, 1)
    weight[2:, :2] = -2.0  # block (1, 0): 8
    expected = torch.tensor([[0, 1], [1, 0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(block(weight, 2, 2, 0.5), expected.bool())


def test_conv_blocks_lie_over_out_and_in_at_one_kernel_position():
    weight = torch.zeros(4, 4, 1, 2)
    weight[:2, 2:, 0, 1] = 1.0
    mask = block(weight, 2, 2, 1 / 8)  # 2 x 2 x 2 blocks, one kept
    assert torch.equal(mask, weight.bool())


def test_equal_blocks_keep_the_lowest_index():
    assert block(torch.ones(4, 4), 2, 2, 0.5).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize("density", [0.25, 0.5, 0.3, 1.0])
def test_unstructured_keeps_exactly_the_largest_share(density):
    weight = with_ties(7, 9)
    expected = brute_force(weight.flatten().tolist(), int(density * 63 + 0.5))
    assert unstructured(weight, density).flatten().tolist() == expected


# 90 = 4 x 4 matrices of 0 and 1 whose rows and columns all sum to 2
TRANSPOSABLE = [
    block
    for block in itertools.product([True, False], repeat=16)
    if all(sum(block[4 * i : 4 * i + 4]) == 2 == sum(block[i::4]) for i in range(4))
]


def test_the_exact_transposable_mask_is_the_first_best_of_all_ninety():
    assert len(TRANSPOSABLE) == 90
    weight = with_ties(24, 16)
    mask = transposable(weight)
    for i, j in itertools.product(range(0, 24, 4), range(0, 16, 4)):
        values = weight[i : i + 4, j : j + 4].abs().flatten().tolist()

        def magnitude(block, values=values):
            return sum(value for value, kept in zip(values, block, strict=True) if kept)

        best = max(TRANSPOSABLE, key=magnitude)  # the first of equals, True before False
        assert tuple(mask[i : i + 4, j : j + 4].flatten().tolist()) == best


def test_the_greedy_transposable_mask_takes_what_fits_by_falling_magnitude():
    weight = with_ties(24, 16, seed=3)
    mask = transposable(weight, search="greedy")
    counts = []
    for i, j in itertools.product(range(0, 24, 4), range(0, 16, 4)):
        values = weight[i : i + 4, j : j + 4].abs().flatten().tolist()
        kept: list[int] = []
        for p in sorted(range(16), key=lambda p: (-values[p], p)):
            if sum(q // 4 == p // 4 for q in kept) < 2 and sum(q % 4 == p % 4 for q in kept) < 2:
                kept.append(p)
        assert mask[i : i + 4, j : j + 4].flatten().nonzero().flatten().tolist() == sorted(kept)
        counts.append(len(kept))
    assert set(counts) == {7, 8}


@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 3, 2)])
@pytest.mark.parametrize("search", ["exact", "greedy"])
def test_a_transposable_mask_is_two_of_four_both_ways(shape, search):
    mask = transposable(torch.randn(shape, generator=torch.Generator().manual_seed(0)), search)
    assert is_nm(mask, 2, 4)
    assert is_nm(mask.transpose(0, 1), 2, 4)


def test_exact_keeps_more_than_greedy_and_both_what_was_measured():
    # sparsity.md 3b: on N(0, 1) transposable 2:4 keeps .945 of the magnitude that 2:4 keeps
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))

    def kept(mask):
        return (weight.abs() * mask).sum() / (weight.abs() * nm(weight, 2, 4)).sum()

    exact, greedy = kept(transposable(weight)), kept(transposable(weight, "greedy"))
    assert abs(exact - 0.945) < 0.003
    assert 0.9 < greedy < exact


def test_global_unstructured_ranks_all_weights_together_and_the_first_wins_ties():
    weights = [with_ties(5, 3), with_ties(4, 2, 3, seed=1)]
    together = torch.cat([weight.flatten() for weight in weights])
    expected = brute_force(together.tolist(), 12)  # floor(0.3 x 39 + 0.5)
    masks = unstructured_global(weights, 0.3)
    assert [mask.shape for mask in masks] == [weight.shape for weight in weights]
    assert torch.cat([mask.flatten() for mask in masks]).tolist() == expected


EVERY = {
    "2:4": lambda w: nm(w, 2, 4),
    "1:4": lambda w: nm(w, 1, 4),
    "4:8": lambda w: nm(w, 4, 8),
    "exact": transposable,
    "greedy": lambda w: transposable(w, "greedy"),
    "block": lambda w: block(w, 4, 4, 0.5),
    "unstructured": lambda w: unstructured(w, 0.5),
}
COUNTS = {"2:4": 256, "1:4": 128, "4:8": 256, "exact": 256, "block": 256, "unstructured": 256}


@pytest.mark.parametrize("name", EVERY)
@given(seed=st.integers(0, 2**31), power=st.integers(-20, 20))
def test_masks_ignore_scale_and_sign_and_pruning_again_changes_nothing(name, seed, power):
    weight = torch.randn(8, 16, 2, 2, generator=torch.Generator().manual_seed(seed))
    find_mask = EVERY[name]
    mask = find_mask(weight)
    assert torch.equal(find_mask(weight * 2.0**power), mask)  # exact in binary floating point
    assert torch.equal(find_mask(weight * torch.randn(weight.shape).sign()), mask)
    if name != "greedy":  # which keeps 7 of a block, and room for one of the zeros
        assert torch.equal(find_mask(weight * mask), mask)
        assert mask.sum() == COUNTS[name]  # of 512, untied


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_weight_is_refused_with_its_group(bad):
    weight = torch.ones(4, 8, 3)
    weight[2, 5, 1] = bad
    with pytest.raises(ValueError, match=r"at index \[2, 5, 1\] \(group \[2, 1, 1\]\)"):
        nm(weight, 2, 4)
    with pytest.raises(ValueError, match=r"group \[1, 1, 1\]"):
        block(weight, 2, 4, 0.5)
    with pytest.raises(ValueError, match=r"unstructured: weight is -?(nan|inf)"):
        unstructured(weight, 0.5)
    with pytest.raises(ValueError, match=r"unstructured: weight is -?(nan|inf)"):
        unstructured_global([torch.ones(4, 4), weight], 0.5)
    with pytest.raises(ValueError, match=r"transposable: .*group \[0, 1, 1\]"):
        transposable(weight)


def test_the_largest_finite_halves_are_not_mistaken_for_infinity():
    weight = torch.tensor([[65504.0, -65504.0, 0, 0]], dtype=torch.float16)
    assert nm(weight, 2, 4).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nm(torch.ones(8, 6), 2, 4), r"in / groups is 6 .* multiple of 4 .* pad it to 8"),
        (lambda: block(torch.ones(6, 8), 4, 4, 0.5), r"out is 6 .* multiple of 4"),
        (lambda: nm(torch.ones(8, 8), 5, 4), "keep 5 of 4"),
        (lambda: nm(torch.ones(8, 32), 1, 32), "keep 1 of 32 given; .* <= 16"),
        (lambda: transposable(torch.ones(6, 8)), "transposable: out is 6"),
        (lambda: transposable(torch.ones(8, 8), "best"), "search 'best' given; one of exact"),
        (lambda: nm(torch.ones(8), 2, 4), r"shape \[8\]"),
        (lambda: nm(torch.ones(8, 8, dtype=torch.int8), 2, 4), "torch.int8"),
        (lambda: unstructured(torch.ones(8, 8), 0.0), "density 0.0"),
        (lambda: unstructured(torch.ones(2, 2), 0.1), "keeps nothing"),
        (lambda: block(torch.ones(8, 8), 0, 4, 0.5), "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
