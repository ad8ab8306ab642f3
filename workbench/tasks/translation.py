"""Translation from English to German: smoothed cross-entropy, BLEU by sacrebleu."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.data.loader import Order, shuffled
from workbench.data.pairs import (
    BEGIN,
    END,
    PADDING,
    Pairs,
    collate,
    read_pairs,
    short,
    train_tokenizer,
)
from workbench.models.beam_search import generate
from workbench.sections import Phase
from workbench.tasks import base
from workbench.tasks.base import moved

VOCABULARY = 32768


class Task(base.Task):
    """Sentence pairs under a joint vocabulary learned from the training split."""

    metric, higher_is_better = "bleu", True
    why_no_graph = "sentences are padded to the longest of their batch"
    pairs: type[Pairs] = Pairs  # how a sentence pair becomes an example

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Read the pairs and learn the vocabulary."""
        super().__init__(phase, seed, root)
        english, german = read_pairs(self.source, "train", phase.data.limit)
        self.tokenizer = train_tokenizer(english + german, phase.data.vocabulary or VOCABULARY)
        if phase.data.train_sequence:
            english, german = short(english, german, self.tokenizer, phase.data.train_sequence)
        longest = phase.data.sequence or 256
        self.train = self.pairs(english, german, self.tokenizer, longest)
        self.held_out = self.pairs(*read_pairs(self.source, "held_out"), self.tokenizer, longest)
        self.longest = longest

    @property
    def collate(self) -> Any:
        """Sentences are padded to the longest of their batch."""
        return collate

    def order(self) -> Order:
        """Sentences of similar length share a batch."""
        lengths = [len(sentence) for sentence in self.train.sources]
        return shuffled(len(self.train), self.phase.train.batch, self.seed, lengths)

    def digests(self) -> dict[str, str]:
        """The vocabulary's."""
        return {"tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()}

    @staticmethod
    def shape_for(vocabulary: int) -> dict[str, Any]:
        """The vocabulary, up to a multiple of 8 as fairseq pads its own, and its padding."""
        return {"vocabulary": -(-vocabulary // 8) * 8, "padding": PADDING}

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The vocabulary that the spec asks for."""
        return cls.shape_for(phase.data.vocabulary or VOCABULARY)

    def shape(self) -> dict[str, Any]:
        """The vocabulary as it was learned; a small text may have fewer pieces than asked for."""
        return self.shape_for(self.tokenizer.get_vocab_size())

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """Cross-entropy per target token."""
        return self._loss(model, batch, self.phase.train.label_smoothing), None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """BLEU of beam search, and the unsmoothed loss per target token."""
        judged = self.phase.eval
        translations: list[str] = []
        loss, batches = 0.0, 0
        for batch in self.held_out_batches():
            batch = moved(batch, device)
            loss += float(self._loss(model, batch, 0.0))
            batches += 1
            found = generate(
                model,
                batch["source"],
                begin=BEGIN,
                end=END,
                beam=judged.beam,
                length_penalty=judged.length_penalty,
                length_norm=judged.length_norm,
                coverage_penalty=judged.coverage_penalty,
                max_length=min(self.longest, 2 * batch["source"].shape[1] + 10),
            )
            translations += self.tokenizer.decode_batch(found)
        return {"bleu": self.bleu(translations), "loss": loss / batches}

    def bleu(self, translations: list[str]) -> float:
        """BLEU of translations of the first held-out sentences."""
        references = self.held_out.targets[: len(translations)]
        return sacrebleu.corpus_bleu(translations, [references]).score

    def chance(self) -> float:
        """BLEU of always answering with the most frequent German sentence."""
        judged = self.held_out.targets[: self.phase.eval.limit]
        favourite = Counter(self.train.targets).most_common(1)[0][0]
        return self.bleu([favourite] * len(judged))

    def _loss(self, model: nn.Module, batch: Any, smoothing: float) -> Tensor:
        logits = model(batch["source"], batch["target"][:, :-1])
        return cross_entropy(
            logits.flatten(0, 1).float(),
            batch["target"][:, 1:].flatten(),
            ignore_index=PADDING,
            label_smoothing=smoothing,
        )
