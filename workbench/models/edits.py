"""Edits between two sentences: who is kept, what to insert and delete, and carrying it out."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

MOST_INSERTED = 255  # placeholders at one slot: the largest of 256 decisions (fairseq)


class Decisions(NamedTuple):
    """Logits [n, kinds] of n decisions, and the right ones [n]."""

    logits: Tensor
    target: Tensor


class Editor(Protocol):
    """What decides on the edits of targets [rows, length], padded on the right."""

    def insertions(self, tokens: Tensor) -> Tensor:
        """Logits [rows, length - 1, 256] of how many tokens to insert after each but the last."""

    def words(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Logits [n, vocabulary] of the words at the n places that are True in where."""

    def deletions(self, tokens: Tensor) -> Tensor:
        """Logits [rows, length, 2], the second that the token be deleted."""


def align(source: Tensor, target: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Which tokens of source [n, S] stay, and which of target [n, T] they become, as bools.

    Insertions and deletions cost 1 and there is no substitution, so as many stay as the longest
    common subsequence has. Among the shortest ways it is the one of fairseq's libnat, which walks
    back from the ends: insert if that is on a shortest way, else delete if that is, else keep.
    """
    real = (source != padding).unsqueeze(2) & (target != padding).unsqueeze(1)
    equal = ((source.unsqueeze(2) == target.unsqueeze(1)) & real).int()
    # common[i][:, j]: the longest subsequence shared by i source and j target tokens
    common = [equal.new_zeros(len(target), target.shape[1] + 1)]
    for i in range(source.shape[1]):
        row = common[-1].clone()
        row[:, 1:] = torch.maximum(row[:, 1:], common[-1][:, :-1] + equal[:, i])
        common.append(row.cummax(dim=1).values)
    kept = torch.zeros_like(source, dtype=torch.bool)
    matched = torch.zeros_like(target, dtype=torch.bool)
    column = torch.full_like(target[:, :1], target.shape[1])
    for i in range(source.shape[1], 0, -1):
        length = common[i].gather(1, column)
        column = (common[i] < length).sum(dim=1, keepdim=True)  # past all that can be inserted
        stays = common[i - 1].gather(1, column) < length
        kept[:, i - 1 : i] = stays
        column -= stays.long()
        matched |= stays & (column == torch.arange(target.shape[1], device=target.device))
    return kept, matched


def insertions(part: Tensor, target: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """How many tokens `part`, a subsequence of target, lacks after each of its tokens but the last.

    Gives counts [n, length of part - 1], at most 255, and which of target's tokens [n, T] these
    are.
    """
    _, matched = align(part, target, padding)
    missing = (target != padding) & ~matched
    slot = (matched.cumsum(dim=1) - 1).clamp(0, part.shape[1] - 1)
    counts = torch.zeros_like(part).scatter_add(1, slot, missing.to(part.dtype))
    return counts[:, :-1].clamp(max=MOST_INSERTED), missing


def decide(
    editor: Editor, part: Tensor, target: Tensor, padding: int, placeholder: int
) -> dict[str, Decisions]:
    """The three kinds of decision that turn part into target, as fairseq's model trains them.

    How many tokens to insert into part (mask_ins), which words they are (word_ins), and which of
    the editor's own words, the likeliest at each such place, to delete again (word_del).
    """
    counts, missing = insertions(part, target, padding)
    slots = part[:, 1:] != padding
    inserted = editor.insertions(part)
    words = editor.words(target.masked_fill(missing, placeholder), missing)
    written = target.masked_scatter(missing, likeliest(words, padding, placeholder))
    deleted = ~align(written, target, padding)[0]
    real = target != padding
    return {
        "mask_ins": Decisions(inserted[slots], counts[slots]),
        "word_ins": Decisions(words, target[missing]),
        "word_del": Decisions(editor.deletions(written)[real], deleted[real].long()),
    }


def likeliest(words: Tensor, padding: int, placeholder: int) -> Tensor:
    """The likeliest word of each of the logits [n, vocabulary]; padding counts as unknown."""
    best = words.argmax(dim=-1)
    return best.masked_fill(best == padding, placeholder)


def delete(tokens: Tensor, where: Tensor, padding: int) -> Tensor:
    """The tokens [rows, length] without those where it is True; padding is on the right."""
    gone = where | (tokens == padding)
    order = gone.int().argsort(dim=1, stable=True)
    return trimmed(tokens.masked_fill(gone, padding).gather(1, order), padding)


def insert(tokens: Tensor, counts: Tensor, padding: int, placeholder: int) -> Tensor:
    """The tokens [rows, length] with counts [rows, length - 1] placeholders after each."""
    real = tokens != padding
    counts = counts.masked_fill(~real[:, 1:], 0)
    lengths = real.sum(dim=1, keepdim=True) + counts.sum(dim=1, keepdim=True)
    width = int(lengths.max())
    places = torch.arange(width, device=tokens.device)
    grown = torch.where(places < lengths, placeholder, padding).to(tokens.dtype)
    moved = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens).clone()
    moved[:, 1:] += counts.cumsum(dim=1)
    # padding lies beyond the row's end: it goes to one more column, which is cut off
    moved = moved.masked_fill(~real, width)
    grown = torch.cat([grown, grown[:, :1]], dim=1).scatter(1, moved, tokens)
    return grown[:, :width]


def trimmed(tokens: Tensor, padding: int) -> Tensor:
    """The tokens without the columns that are padding in every row."""
    return tokens[:, : int((tokens != padding).sum(dim=1).max())]
