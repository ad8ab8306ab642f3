"""Sentence pairs with a target of which words are missing, as fairseq's translation_lev makes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from workbench.data import pairs
from workbench.data.loader import Item
from workbench.data.pairs import BEGIN, PADDING, Pairs
from workbench.seeds import seed_for


class NoisyPairs(Pairs):
    """(source ids, target ids, ids of a part of the target) triples."""

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor, Tensor]:
        """One triple; key and index decide which words are missing, so a held-out one is fixed."""
        source, target = super().__getitem__(item)
        index, key = item
        return source, target, random_delete(target, seed_for(key, "noise", index))


def random_delete(target: Tensor, seed: int) -> Tensor:
    """The target [length] without some of its words: all numbers from 1 to all are as likely.

    The first and the last token, its ends, always stay.
    """
    generator = torch.Generator().manual_seed(seed)
    words = len(target) - 2
    count = int(words * float(torch.rand([], generator=generator)))
    stay = torch.zeros(len(target), dtype=torch.bool)
    stay[1 + torch.randperm(words, generator=generator)[:count]] = True
    stay[[0, -1]] = True
    return target[stay]


def collate(triples: list[Any]) -> dict[str, Tensor]:
    """Source, target and part as padded [batch, length] ids, all begun by BEGIN."""
    sources, targets, parts = zip(*triples, strict=True)
    batch = pairs.collate(list(zip(sources, targets, strict=True)))
    return {
        "source": pad(batch["source"], (1, 0), value=BEGIN),
        "target": batch["target"],
        "part": pad_sequence(list(parts), batch_first=True, padding_value=PADDING),
    }
