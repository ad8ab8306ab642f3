"""Translation by edits: the three losses of fairseq's nat_loss in bits, BLEU by refinement."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.data.loader import held_out_loader
from workbench.data.noisy_pairs import NoisyPairs, collate
from workbench.data.pairs import BEGIN, END, PADDING, UNKNOWN
from workbench.models.edits import MOST_INSERTED, Decisions, Editor, decide
from workbench.models.refinement import refine
from workbench.sections import Phase
from workbench.tasks import translation
from workbench.tasks.base import moved

INSERTION_SMOOTHING = 0.01  # of mask_ins, whatever the words' (fairseq levenshtein_transformer.py)
ROUNDS = 10  # fairseq --iter-decode-max-iter 9, counted from 0
CHANCE_PAIRS = 4000  # training pairs from which the best constant decisions are estimated

Sums = dict[str, tuple[Tensor, int]]  # nats and number of decisions of each kind


class Task(translation.Task):
    """Sentence pairs, and parts of their targets to be completed; words are written over <unk>."""

    metric, higher_is_better = "loss_bits", False
    pairs = NoisyPairs

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Read the pairs and learn the vocabulary."""
        if phase.eval.beam != 1:
            raise ValueError(
                f"eval.beam is {phase.eval.beam}; edits are decided one by one: give 1 or nothing"
            )
        super().__init__(phase, seed, root)

    @property
    def collate(self) -> Any:
        """Sentences are padded to the longest of their batch."""
        return collate

    @staticmethod
    def shape_for(vocabulary: int) -> dict[str, Any]:
        """The vocabulary with its padding, and its token for a word not yet written."""
        return translation.Task.shape_for(vocabulary) | {"placeholder": UNKNOWN}

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """Nats per insertion, per written word and per deletion, added."""
        sums = self._sums(model(batch["source"], batch["part"], batch["target"]))
        return _total(sums), None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The smoothed loss in bits, its three parts, and BLEU of iterative refinement.

        Means are over all held-out decisions; fairseq's log averages the means of its batches.
        """
        sums: list[Sums] = []
        translations: list[str] = []
        for batch in self.held_out_batches():
            batch = moved(batch, device)
            sums.append(self._sums(model(batch["source"], batch["part"], batch["target"])))
            found = refine(model, batch["source"], begin=BEGIN, end=END, rounds=ROUNDS)
            translations += self.tokenizer.decode_batch(found)
        return _bits(sums) | {"bleu": self.bleu(translations)}

    def chance(self) -> float:
        """Loss in bits of the frequencies of decisions in training, smoothed as the targets are.

        The word it writes is always the most frequent one, and is judged by the deletions of it.
        """
        guess = self._frequent(self._frequent(Constant(self._even())))
        judged = [self._sums(_decided(guess, batch)) for batch in self.held_out_batches()]
        return _bits(judged)["loss_bits"]

    def _sums(self, decisions: dict[str, Decisions]) -> Sums:
        smoothing = self._smoothing()
        return {
            kind: (
                cross_entropy(
                    logits.float(), right, reduction="sum", label_smoothing=smoothing[kind]
                ),
                len(right),
            )
            for kind, (logits, right) in decisions.items()
        }

    def _smoothing(self) -> dict[str, float]:
        words = self.phase.train.label_smoothing
        return {"mask_ins": INSERTION_SMOOTHING, "word_ins": words, "word_del": 0.0}

    def _even(self) -> dict[str, Tensor]:
        kinds = {"mask_ins": MOST_INSERTED + 1, "word_ins": self.shape()["vocabulary"]}
        return {kind: torch.zeros(size) for kind, size in (kinds | {"word_del": 2}).items()}

    def _frequent(self, guess: "Constant") -> "Constant":
        """The best constant decisions where the words are written by `guess`."""
        # one decision is spread over all kinds, so that none is impossible
        counts = {kind: torch.full_like(o, 1 / len(o)) for kind, o in guess.logits.items()}
        batches = held_out_loader(self.train, self.phase.eval.batch, CHANCE_PAIRS, self.collate)
        for batch in batches:
            for kind, decisions in _decided(guess, batch).items():
                counts[kind] += torch.bincount(decisions.target, minlength=len(counts[kind]))
        shares = {kind: seen / seen.sum() for kind, seen in counts.items()}
        smoothing = self._smoothing()
        return Constant(
            {
                kind: torch.lerp(
                    share, torch.full_like(share, 1 / len(share)), smoothing[kind]
                ).log()
                for kind, share in shares.items()
            }
        )


class Constant(Editor):
    """Decides alike everywhere: logits of each kind of decision."""

    def __init__(self, logits: dict[str, Tensor]):
        """`logits` has mask_ins, word_ins and word_del, [kinds] each."""
        self.logits = logits

    def insertions(self, tokens: Tensor) -> Tensor:
        """The logits of mask_ins at each slot."""
        return self.logits["mask_ins"].expand(len(tokens), tokens.shape[1] - 1, -1)

    def words(self, tokens: Tensor, where: Tensor) -> Tensor:
        """The logits of word_ins at each place."""
        return self.logits["word_ins"].expand(int(where.sum()), -1)

    def deletions(self, tokens: Tensor) -> Tensor:
        """The logits of word_del at each token."""
        return self.logits["word_del"].expand(*tokens.shape, -1)


def _decided(guess: Constant, batch: dict[str, Tensor]) -> dict[str, Decisions]:
    return decide(guess, batch["part"], batch["target"], PADDING, UNKNOWN)


def _total(sums: Sums) -> Tensor:
    # a batch of empty sentences has no words to write: 0, as in fairseq
    return sum(nats / max(1, count) for nats, count in sums.values())


def _bits(sums: list[Sums]) -> dict[str, float]:
    """Bits per decision of each kind, and loss_bits, their sum."""
    bits = {}
    for kind in sums[0]:
        nats = sum(float(each[kind][0]) for each in sums)
        count = sum(each[kind][1] for each in sums)
        bits[f"{kind}_bits"] = nats / max(1, count) / math.log(2)
    if not math.isfinite(sum(bits.values())):
        raise FloatingPointError(f"held-out bits are {bits}: the network's logits are not finite")
    return {"loss_bits": sum(bits.values())} | bits
