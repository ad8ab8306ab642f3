"""Edits: fairseq's tie rule by hand and against its walk, shortest by brute force, applied."""

import itertools

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from workbench.models import edits

PADDING, BEGIN, END, PLACEHOLDER = range(4)
A, B, C = 4, 5, 6


def aligned(source: list[int], target: list[int]) -> tuple[list[int], list[int]]:
    """Where tokens are kept and matched, one pair alone."""
    found = edits.align(torch.tensor([source]), torch.tensor([target]), PADDING)
    return tuple(each[0].nonzero().flatten().tolist() for each in found)


def libnat(source: list[int], target: list[int]) -> tuple[list[int], list[int]]:
    """The same by the table and the walk back of fairseq's clib/libnat/edit_dist.cpp, on lists."""
    cost = [[i + j for j in range(len(target) + 1)] for i in range(len(source) + 1)]
    for i, j in itertools.product(range(1, len(source) + 1), range(1, len(target) + 1)):
        substitution = 0 if source[i - 1] == target[j - 1] else 2
        beside = min(cost[i - 1][j], cost[i][j - 1]) + 1
        cost[i][j] = min(beside, cost[i - 1][j - 1] + substitution)
    kept, matched, i, j = [], [], len(source), len(target)
    while i or j:
        if j > 0 and cost[i][j - 1] < cost[i][j]:
            j -= 1
        elif i > 0 and cost[i - 1][j] < cost[i][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            kept.insert(0, i)
            matched.insert(0, j)
    return kept, matched


def sentences(count: int, seed: int) -> list[list[int]]:
    """Sentences of 0 to 7 words out of three, so that ties abound, between their ends."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 8, [count], generator=generator).tolist()
    words = [torch.randint(A, C + 1, [length], generator=generator).tolist() for length in lengths]
    return [[BEGIN, *each, END] for each in words]


def padded(rows: list[list[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, PADDING)


def test_ties_are_broken_as_libnat_does() -> None:
    # By hand. Walking back, an insertion is preferred: of two equal words the first is matched.
    assert aligned([BEGIN, A, END], [BEGIN, A, A, END]) == ([0, 1, 2], [0, 1, 3])
    # Then a deletion: of two equal words the first is kept.
    assert aligned([BEGIN, A, A, END], [BEGIN, A, END]) == ([0, 1, 3], [0, 1, 2])
    # A swap keeps one word. Cost at [A B | B A] is 2: inserting A last is on a shortest way, so B
    # is matched, and A before it is deleted.
    assert aligned([BEGIN, A, B, END], [BEGIN, B, A, END]) == ([0, 2, 3], [0, 1, 3])
    # Nothing shared but the ends: no substitution.
    assert aligned([BEGIN, A, END], [BEGIN, B, C, END]) == ([0, 2], [0, 3])
    assert aligned([BEGIN, END], [BEGIN, END]) == ([0, 1], [0, 1])


def test_every_pair_of_a_padded_batch_is_aligned_as_by_libnat() -> None:
    sources, targets = sentences(300, seed=0), sentences(300, seed=1)
    kept, matched = edits.align(padded(sources), padded(targets), PADDING)
    for row, pair in enumerate(zip(sources, targets, strict=True)):
        found = kept[row].nonzero().flatten().tolist(), matched[row].nonzero().flatten().tolist()
        assert found == libnat(*pair), pair


def test_as_many_words_stay_as_in_the_longest_common_subsequence() -> None:
    def subsequences(words: list[int]) -> set[tuple[int, ...]]:
        each = range(len(words) + 1)
        return {part for size in each for part in itertools.combinations(words, size)}

    for source, target in zip(sentences(60, seed=2), sentences(60, seed=3), strict=True):
        kept, matched = aligned(source, target)
        assert [source[i] for i in kept] == [target[j] for j in matched]
        assert len(kept) == max(map(len, subsequences(source) & subsequences(target)))


def test_insertions_are_counted_per_slot() -> None:
    target = padded([[BEGIN, A, B, A, C, END], [BEGIN, A, END]])
    part = padded([[BEGIN, A, C, END], [BEGIN, END]])
    counts, missing = edits.insertions(part, target, PADDING)
    # By hand: the part's A is the target's first (libnat's tie), so B A lack between it and C.
    assert counts.tolist() == [[0, 2, 0], [1, 0, 0]]
    assert missing.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]


def test_a_slot_holds_255_insertions_at_most() -> None:
    target = torch.tensor([[BEGIN, *[A] * 300, END]])
    counts, missing = edits.insertions(torch.tensor([[BEGIN, END]]), target, PADDING)
    assert counts.tolist() == [[255]] and int(missing.sum()) == 300


class Writer:
    """Writes the given words and keeps what it was shown."""

    def __init__(self, words: list[int]):
        self.written, self.shown = words, []

    def insertions(self, tokens: Tensor) -> Tensor:
        self.shown.append(tokens)
        return torch.zeros(len(tokens), tokens.shape[1] - 1, 256)

    def words(self, tokens: Tensor, where: Tensor) -> Tensor:
        self.shown.append(tokens.masked_fill(~where & (tokens == PLACEHOLDER), PADDING))
        return torch.eye(8)[self.written]

    def deletions(self, tokens: Tensor) -> Tensor:
        self.shown.append(tokens)
        return torch.zeros(*tokens.shape, 2)


def test_the_three_decisions_follow_from_each_other() -> None:
    target = padded([[BEGIN, A, B, C, END], [BEGIN, C, END]])
    part = padded([[BEGIN, B, END], [BEGIN, C, END]])
    writer = Writer([A, B])  # right, then wrong: C is wanted
    made = edits.decide(writer, part, target, PADDING, PLACEHOLDER)
    assert made["mask_ins"].target.tolist() == [1, 1, 0, 0]
    assert made["word_ins"].target.tolist() == [A, C]
    shown = [each.tolist() for each in writer.shown]
    masked = [[BEGIN, PLACEHOLDER, B, PLACEHOLDER, END], [BEGIN, C, END, PADDING, PADDING]]
    written = [[BEGIN, A, B, B, END], [BEGIN, C, END, PADDING, PADDING]]
    assert shown == [part.tolist(), masked, written]
    # of the two B the first stays; padding is not judged
    assert made["word_del"].target.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert [len(each.logits) for each in made.values()] == [4, 2, 8]


def test_a_predicted_padding_counts_as_an_unknown_word() -> None:
    logits = torch.eye(8)[[A, PADDING]]
    assert edits.likeliest(logits, PADDING, PLACEHOLDER).tolist() == [A, PLACEHOLDER]


def test_deleting_closes_the_gaps_and_inserting_opens_them() -> None:
    tokens = padded([[BEGIN, A, B, C, END], [BEGIN, C, END]])
    gone = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    left = edits.delete(tokens, gone, PADDING)
    assert left.tolist() == [[BEGIN, B, END], [BEGIN, C, END]]
    counts = torch.tensor([[1, 0, 2, 0], [0, 1, 9, 9]])  # after padding nothing is inserted
    grown = edits.insert(tokens, counts, PADDING, PLACEHOLDER)
    assert grown.tolist() == [
        [BEGIN, PLACEHOLDER, A, B, PLACEHOLDER, PLACEHOLDER, C, END],
        [BEGIN, C, PLACEHOLDER, END, PADDING, PADDING, PADDING, PADDING],
    ]


def test_inserting_what_was_counted_and_writing_it_gives_the_target() -> None:
    target = padded(sentences(200, seed=4))
    chosen = torch.rand(target.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    part = edits.delete(target, chosen & (target >= A), PADDING)
    counts, missing = edits.insertions(part, target, PADDING)
    grown = edits.insert(part, counts, PADDING, PLACEHOLDER)
    assert torch.equal(grown, target.masked_fill(missing, PLACEHOLDER))
    assert torch.equal(grown.masked_scatter(grown == PLACEHOLDER, target[missing]), target)
