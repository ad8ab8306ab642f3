"""Extractive question answering: start and end of the answer, SQuAD's F1 and exact match."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.functional.text import squad

from workbench.data.questions import (
    Questions,
    collate,
    read_questions,
    read_windows,
    word_pieces,
)
from workbench.sections import Phase
from workbench.tasks import base
from workbench.tasks.base import moved

LONGEST_ANSWER = 30  # word pieces, as run_squad.py of google-research/bert


class Task(base.Task):
    """Questions on passages longer than the network reads, in sliding windows."""

    metric, higher_is_better = "f1", True
    why_no_graph = "windows are padded to the longest of their batch"

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Encode the questions in windows of `sequence` word pieces, `stride` apart."""
        super().__init__(phase, seed, root)
        data = phase.data
        rows = read_questions(self.source, "train", data.limit)
        judged = read_questions(self.source, "held_out", phase.eval.limit)
        tokenizer = word_pieces(self.source)
        length, stride = data.sequence or 384, data.stride or 128
        self.digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        cut = (tokenizer, length, stride)
        self.train, self.held_out = (
            Questions(split, read_windows(self.source, role, split, *cut), length)
            for role, split in (("train", rows), ("held_out", judged))
        )

    @property
    def collate(self) -> Any:
        """Windows are padded to the longest of their batch."""
        return collate

    def digests(self) -> dict[str, str]:
        """The vocabulary's."""
        return {"tokenizer": self.digest}

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The head and the size of the vocabulary."""
        return {"head": "question_answering", "vocabulary": entry["vocabulary"], "padding": 0}

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """The mean cross-entropy of the two ends of the answer."""
        start, end = self._logits(model, batch)
        losses = (
            cross_entropy(start, batch["start_positions"]),
            cross_entropy(end, batch["end_positions"]),
        )
        return sum(losses) / 2, None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """F1 and exact match in percent over questions; every window votes."""
        best: dict[int, tuple[float, str]] = {}
        size = self.phase.eval.batch
        for begin in range(0, len(self.held_out), size):
            numbers = range(begin, min(begin + size, len(self.held_out)))
            batch = moved(collate([self.held_out[(n, 0)] for n in numbers]), device)
            for window, start, end in zip(numbers, *self._logits(model, batch), strict=True):
                question, offsets = self.held_out.passage(window)
                score, answer = self._best_span(question, offsets, start.cpu(), end.cpu())
                if question not in best or score > best[question][0]:
                    best[question] = (score, answer)
        return self._score({number: answer for number, (_, answer) in best.items()})

    def chance(self) -> float:
        """F1 of answering with the whole passage, the best constant answer there is."""
        rows = self.held_out.rows
        return self._score({number: row["context"] for number, row in enumerate(rows)})["f1"]

    def _logits(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask")}
        output = model(**inputs)
        return output.start_logits.float(), output.end_logits.float()

    def _best_span(
        self, question: int, offsets: list[Any], start: Tensor, end: Tensor
    ) -> tuple[float, str]:
        inside = torch.tensor([offset is not None for offset in offsets])
        length = len(inside)
        scores = start[:length, None] + end[None, :length]
        reach = torch.ones(length, length).triu() - torch.ones(length, length).triu(LONGEST_ANSWER)
        allowed = reach.bool() & inside[:, None] & inside[None, :]
        scores = scores.masked_fill(~allowed, float("-inf"))
        first, last = divmod(int(scores.argmax()), length)
        text = self.held_out.rows[question]["context"]
        span = text[offsets[first][0] : offsets[last][1]] if allowed.any() else ""
        return float(scores.max()), span

    def _score(self, answers: dict[int, str]) -> dict[str, float]:
        predicted = [{"id": str(n), "prediction_text": text} for n, text in answers.items()]
        expected = [
            {"id": str(number), "answers": self.held_out.rows[number]["answers"]}
            for number in answers
        ]
        return {name: float(value) for name, value in _renamed(squad(predicted, expected)).items()}


def _renamed(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"f1": scores["f1"], "exact_match": scores["exact_match"]}
