"""Iterative refinement as fairseq's generator does it: delete, insert placeholders, write words."""

import torch
from torch import Tensor

from workbench.models import edits
from workbench.models.levenshtein import Levenshtein, Reading

LONGEST_RATIO, LONGEST_AT_LEAST = 2, 10  # target tokens per source token (fairseq max_ratio)


@torch.no_grad()
def refine(
    network: Levenshtein, source: Tensor, *, begin: int, end: int, rounds: int
) -> list[list[int]]:
    """A target per source row, without begin and end, from an empty one by `rounds` rounds at most.

    A row is done when a round leaves it as it was. fairseq stops inserting at twice the source's
    length (at least 10); here that bounds what one round inserts too, from the left, so that an
    untrained network cannot write thousands of words.
    """
    if network.training:
        raise ValueError("the model is in training mode; call model.eval() before refine")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; it must be at least 1")
    padding = network.padding
    reading = network.start(source)
    lengths = (source != padding).sum(dim=1, keepdim=True)
    longest = (LONGEST_RATIO * lengths).clamp(LONGEST_AT_LEAST, network.positions)
    running = torch.arange(len(source), device=source.device)
    tokens = source.new_tensor([[begin, end]]).repeat(len(source), 1)
    found: list[list[int]] = [[] for _ in source]
    for remaining in reversed(range(rounds)):
        before, tokens = tokens, _round(reading, tokens, longest, begin, end)
        done = _unchanged(before, tokens, padding) | (remaining == 0)
        for row, target in zip(running[done].tolist(), tokens[done].tolist(), strict=True):
            found[row] = [token for token in target if token != padding][1:-1]
        going = (~done).nonzero().squeeze(1)
        if not len(going):
            break
        reading, running = reading.select(going), running[going]
        longest, tokens = longest[going], edits.trimmed(tokens[going], padding)
    return found


def _round(reading: Reading, tokens: Tensor, longest: Tensor, begin: int, end: int) -> Tensor:
    padding, placeholder = reading.network.padding, reading.network.placeholder
    if tokens.shape[1] > 2:  # an empty target has nothing to delete
        deleted = reading.deletions(tokens).argmax(dim=-1).bool()
        tokens = edits.delete(tokens, deleted & (tokens != begin) & (tokens != end), padding)
    counts = reading.insertions(tokens).argmax(dim=-1)
    counts = counts.masked_fill(tokens[:, 1:] == padding, 0)
    room = (longest - (tokens != padding).sum(dim=1, keepdim=True)).clamp(min=0)
    upto = torch.minimum(counts.cumsum(dim=1), room)
    counts = upto.diff(dim=1, prepend=torch.zeros_like(room))
    tokens = edits.insert(tokens, counts, padding, placeholder)
    unwritten = tokens == placeholder
    if not unwritten.any():
        return tokens
    words = edits.likeliest(reading.words(tokens, unwritten), padding, placeholder)
    return tokens.masked_scatter(unwritten, words)


def _unchanged(before: Tensor, after: Tensor, padding: int) -> Tensor:
    width = max(before.shape[1], after.shape[1])
    padded = [
        torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=padding)
        for tokens in (before, after)
    ]
    return (padded[0] == padded[1]).all(dim=1)
