"""Language modelling: characters in order (bits per character), or masked word pieces."""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.data.language import (
    IGNORED,
    Lengthened,
    MaskedBlocks,
    Segments,
    byte_codes,
    read_bytes,
    stack,
    stack_hidden,
    word_stream,
)
from workbench.data.loader import Order, shuffled
from workbench.data.questions import word_pieces
from workbench.durations import steps
from workbench.sections import Phase
from workbench.tasks import base
from workbench.tasks.base import moved


class Causal(base.Task):
    """The next character, with the memory of the segments before."""

    metric, higher_is_better = "bits_per_character", False
    why_no_graph = "the memory of a step is an input of the next"

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Cut the byte stream into the streams of a batch."""
        super().__init__(phase, seed, root)
        split = read_bytes(self.source, phase.data.limit)
        codes, self.symbols = byte_codes(split["train"], split["held_out"])
        self.counts = np.bincount(codes[split["train"]], minlength=self.symbols)
        judged = codes[split["held_out"]][: phase.eval.limit]
        self.length = phase.data.sequence or 512
        self.train = Segments(codes[split["train"]], phase.train.batch, self.length)
        self.held_out = Segments(judged, phase.eval.batch, phase.eval.sequence or self.length)
        self.judged = judged

    @property
    def collate(self) -> Any:
        """Segments of equal length."""
        return stack

    def order(self) -> Order:
        """Streams are read in order, or memory would be of another text."""
        return self.train.order

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The number of different characters."""
        return {"vocabulary": entry["symbols"]}

    def shape(self) -> dict[str, Any]:
        """The number of different characters; a limit may leave fewer than the catalog says."""
        return {"vocabulary": self.symbols}

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """Nats per character; the carry is the model's memory."""
        memory = None if bool(batch["first"].any()) else carry
        logits, memory = model(batch["x"], memory, self.length)
        return cross_entropy(logits.flatten(0, 1).float(), batch["y"].flatten()), memory

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Bits per character with the spec's segments, memory and distances."""
        loss, count, memory = 0.0, 0, None
        judged = self.phase.eval
        reach = judged.memory or self.length
        held_out = self.held_out
        with changed(model, clamp=judged.clamp, same_length=judged.same_length):
            for position in range(held_out.segments):
                items = [held_out[(index, 0)] for index in held_out.order(position)]
                batch = moved(stack(items), device)
                logits, memory = model(batch["x"], memory, reach)
                loss += float(cross_entropy(logits.flatten(0, 1).float(), batch["y"].flatten()))
                count += 1
        return {"bits_per_character": loss / count / math.log(2)}

    def chance(self) -> float:
        """Bits per character under the training text's character frequencies."""
        share = (self.counts + 1) / (self.counts.sum() + len(self.counts))
        return float(-np.log2(share[self.judged]).mean())


@contextmanager
def changed(model: nn.Module, **wanted: int | bool | None) -> Iterator[None]:
    """The model with the wanted attributes, those that are given, and as it was afterwards."""
    before = {name: getattr(model, name) for name, value in wanted.items() if value}
    for name in before:
        setattr(model, name, wanted[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


class Masked(base.Task):
    """Hidden word pieces and whether one half follows the other, as BERT is pretrained."""

    metric, higher_is_better = "masked_loss", False
    why_no_graph = None

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Turn paragraphs into blocks of word pieces."""
        super().__init__(phase, seed, root)
        data = phase.data
        self.tokenizer = word_pieces(self.source)
        self.length = data.sequence or 128
        limits = {"train": data.limit, "held_out": phase.eval.limit}
        blocks = [word_stream(self.source, *split, self.tokenizer) for split in limits.items()]
        self.counts = np.bincount(blocks[0], minlength=self.tokenizer.get_vocab_size())
        self.train, self.held_out = (MaskedBlocks(b, self.tokenizer, self.length) for b in blocks)
        if data.longer:
            longer = MaskedBlocks(blocks[0], self.tokenizer, data.longer.sequence)
            self.train = Lengthened(self.train, longer)

    @property
    def collate(self) -> Any:
        """Blocks of equal length, and where their hidden word pieces are."""
        return stack_hidden

    def order(self) -> Order:
        """Short blocks, from `longer.after` on the longer ones."""
        longer, train = self.phase.data.longer, self.phase.train
        if not longer:
            return super().order()
        first = super().order()
        then = shuffled(len(self.train.longer), train.batch, self.seed)
        change = steps(
            longer.after, self.steps_per_epoch, steps(train.length, self.steps_per_epoch)
        )

        def order(step: int) -> list[int]:
            if step < change:
                return first(step)
            return [len(self.train.short) + index for index in then(step - change)]

        return order

    def digests(self) -> dict[str, str]:
        """The vocabulary's."""
        return {"tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()}

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The head and the size of the vocabulary."""
        return {"head": "masked_language_model", "vocabulary": entry["vocabulary"], "padding": 0}

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """Nats per hidden word piece plus nats per next-sentence decision."""
        hidden, follows = self._losses(model, batch)
        return hidden + follows, None

    def run(self, model: nn.Module, batch: Any, carry: Any) -> Any:
        """One pass that asks for the words of all positions, as users of the network do."""
        model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Both losses; limits were applied to the text itself."""
        hidden, follows, count = 0.0, 0.0, 0
        size = self.phase.eval.batch
        for start in range(0, len(self.held_out), size):
            stop = min(start + size, len(self.held_out))
            items = [self.held_out[(index, index)] for index in range(start, stop)]
            losses = self._losses(model, moved(stack_hidden(items), device))
            hidden += float(losses[0]) * len(items)
            follows += float(losses[1]) * len(items)
            count += len(items)
        return {"masked_loss": hidden / count, "next_sentence_loss": follows / count}

    def chance(self) -> float:
        """Nats per hidden word piece under the training text's frequencies."""
        share = (self.counts + 1) / (self.counts.sum() + len(self.counts))
        return float(-np.log(share[self.held_out.halves.numpy()]).mean())

    def _losses(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        asked = {name: batch[name] for name in ("input_ids", "token_type_ids", "positions")}
        output = model(**asked)
        hidden = cross_entropy(
            output.prediction_logits.float(), batch["labels"], ignore_index=IGNORED
        )
        follows = cross_entropy(
            output.seq_relationship_logits.float(), batch["next_sentence_label"]
        )
        return hidden, follows
