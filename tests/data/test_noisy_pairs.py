"""Targets of which words are missing: how many, which stay, and none to miss."""

import torch

from workbench.data import noisy_pairs
from workbench.data.pairs import BEGIN, END


def test_a_part_keeps_the_ends_and_the_order_and_misses_a_word() -> None:
    target = torch.tensor([BEGIN, *range(10, 20), END])
    sizes = []
    for seed in range(400):
        part = noisy_pairs.random_delete(target, seed).tolist()
        assert part[0] == BEGIN and part[-1] == END
        assert part[1:-1] == sorted(part[1:-1])
        sizes.append(len(part) - 2)
    # floor(10 u) words stay, u uniform in [0, 1): 0 to 9, each 40 times, within 4 sigma of 6
    counts = [sizes.count(size) for size in range(10)]
    assert sum(counts) == 400 and all(16 <= count <= 64 for count in counts)


def test_a_sentence_without_words_stays_as_it_is() -> None:
    assert noisy_pairs.random_delete(torch.tensor([BEGIN, END]), 0).tolist() == [BEGIN, END]
