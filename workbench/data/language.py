"""Running text: byte streams for causal models, masked blocks with a next sentence for BERT."""

import lzma
import re
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import tokenizers
import torch
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from workbench.data.derived import derived
from workbench.data.loader import Item, seeded
from workbench.data.source import DataError, Source, hub, some

IGNORED = -100
PARTS = 6  # of a batch; 15 % are hidden: of 128 blocks of 127 pieces 2,381 +- 45, a sixth is 2,710
PIECES = 1  # version of what `word_stream` makes; raise it when its tokens change


def read_bytes(source: Source, limit: int | None = None) -> dict[str, np.ndarray]:
    """The byte stream split 90/5/5 as enwik8 customarily is, into train, validation, held_out."""
    stream = _unpacked(source)[:limit]
    first, second = len(stream) * 90 // 100, len(stream) * 95 // 100
    return {
        "train": stream[:first],
        "validation": stream[first:second],
        "held_out": stream[second:],
    }


def _unpacked(source: Source) -> np.ndarray:
    path = source.file("train")
    if path.suffix != ".xz":
        return np.frombuffer(path.read_bytes(), dtype=np.uint8)

    def unpack() -> dict[str, np.ndarray]:
        return {"bytes": np.frombuffer(lzma.decompress(path.read_bytes()), dtype=np.uint8)}

    return derived({"unpacked": source.digest("train")}, unpack)["bytes"]


def byte_codes(stream: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, int]:
    """A table from byte to symbol and the number of symbols; unseen bytes share one more."""
    symbols = np.unique(stream)
    unseen = any(len(np.setdiff1d(np.unique(other), symbols)) for other in others)
    codes = np.full(256, len(symbols), dtype=np.int64)
    codes[symbols] = np.arange(len(symbols))
    return codes, len(symbols) + int(unseen)


class Segments(Dataset):
    """`streams` parallel streams of text, each cut into consecutive segments."""

    def __init__(self, tokens: np.ndarray, streams: int, length: int):
        """Item `stream * segments + position` is the segment at a position of a stream."""
        self.segments = (len(tokens) // streams - 1) // length
        if self.segments < 1:
            raise DataError(
                f"{len(tokens)} characters do not hold {streams} streams of {length} "
                "characters; use fewer streams, shorter segments or more text"
            )
        self.rows = torch.from_numpy(
            tokens[: len(tokens) // streams * streams].reshape(streams, -1).copy()
        )
        self.streams, self.length = streams, length

    def __len__(self) -> int:
        """The number of segments of all streams."""
        return self.streams * self.segments

    def __getitem__(self, item: Item) -> dict[str, torch.Tensor]:
        """A segment, the characters that follow it, and whether its stream begins here."""
        stream, position = divmod(item[0], self.segments)
        start = position * self.length
        window = self.rows[stream, start : start + self.length + 1].long()
        return {"x": window[:-1], "y": window[1:], "first": torch.tensor(position == 0)}

    def order(self, step: int) -> list[int]:
        """The same position of every stream, from the beginning again after the last."""
        position = step % self.segments
        return [stream * self.segments + position for stream in range(self.streams)]


class MaskedBlocks(Dataset):
    """BERT's examples: [CLS] A [SEP] B [SEP], B replaced half the time, 15 % of tokens hidden."""

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer, length: int):
        """Blocks of `length` ids from one stream of word pieces."""
        self.length, half = length, (length - 3) // 2
        self.ids = {name: tokenizer.token_to_id(f"[{name}]") for name in ("CLS", "SEP", "MASK")}
        self.special = max(self.ids.values()) + 1
        self.vocabulary = tokenizer.get_vocab_size()
        count = len(tokens) // (2 * half)
        if count < 2:
            raise DataError(
                f"{len(tokens)} word pieces do not hold two blocks of {length}; use a "
                "shorter sequence or more text"
            )
        self.halves = torch.from_numpy(tokens[: count * 2 * half].reshape(count, 2, half).copy())

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.halves)

    def __getitem__(self, item: Item) -> dict[str, torch.Tensor]:
        """One example, hidden tokens and all else random drawn from the key."""
        return seeded(item[1], lambda: self._drawn(item[0]))

    def _drawn(self, index: int) -> dict[str, torch.Tensor]:
        swapped = torch.rand(()) < 0.5
        other = int(torch.randint(len(self.halves), ()))
        first, second = self.halves[index, 0], self.halves[other if swapped else index, 1]
        cls, sep = torch.tensor([self.ids["CLS"]]), torch.tensor([self.ids["SEP"]])
        tokens = torch.cat([cls, first, sep, second, sep]).long()
        kinds = torch.zeros_like(tokens)
        kinds[len(first) + 2 :] = 1
        hidden, labels = self._corrupted(tokens)
        return {
            "input_ids": hidden,
            "token_type_ids": kinds,
            "labels": labels,
            "next_sentence_label": swapped.long(),
        }

    def _corrupted(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        words = (tokens != self.ids["CLS"]) & (tokens != self.ids["SEP"])
        chosen = words & (torch.rand(tokens.shape) < 0.15)
        labels = torch.where(chosen, tokens, IGNORED)
        fate = torch.rand(tokens.shape)  # 80 % [MASK], 10 % a random word, 10 % left alone
        noise = torch.randint(self.special, self.vocabulary, tokens.shape)
        hidden = torch.where(chosen & (fate < 0.8), self.ids["MASK"], tokens)
        return torch.where(chosen & (fate >= 0.9), noise, hidden), labels


class Lengthened(Dataset):
    """Short blocks, and after them longer ones of the same text."""

    def __init__(self, short: MaskedBlocks, longer: MaskedBlocks):
        """Items below the number of short blocks are those, the others the longer ones."""
        self.short, self.longer = short, longer

    def __len__(self) -> int:
        """The number of short blocks: an epoch is counted in those."""
        return len(self.short)

    def __getitem__(self, item: Item) -> dict[str, torch.Tensor]:
        """One block of either length."""
        index, key = item
        above = index - len(self.short)
        return self.short[item] if above < 0 else self.longer[(above, key)]


def read_paragraphs(source: Source, role: str, limit: int | None = None) -> list[str]:
    """Paragraphs of prose of a split, the first `limit` characters of them."""
    if source.entry["place"] == "hub":
        paragraphs = list(hub(source, role)["text"])
    elif source.kind == "bytes":
        paragraphs = _prose(read_bytes(source)[role].tobytes().decode(errors="ignore"), limit)
    else:
        paragraphs = parquet.read_table(source.file(role), columns=["text"])["text"].to_pylist()
    total, kept = 0, []
    for text in paragraphs:
        if limit is not None and total >= limit:
            break
        kept.append(text)
        total += len(text)
    return some(source, role, kept)


def word_stream(source: Source, role: str, limit: int | None, tokenizer: Tokenizer) -> np.ndarray:
    """`stream_of` the paragraphs of a split, made once for files that have a digest."""

    def make() -> dict[str, np.ndarray]:
        return {"ids": stream_of(read_paragraphs(source, role, limit), tokenizer)}

    if source.entry["place"] == "hub":
        return make()["ids"]
    text = "train" if source.kind == "bytes" else role  # one file holds all splits of bytes
    made_of = {
        "word pieces": PIECES,
        "text": source.digest(text),
        "vocabulary": source.digest("vocabulary"),
        "role": role,
        "limit": limit,
        "tokenizers": tokenizers.__version__,
    }
    return derived(made_of, make)["ids"]


def stream_of(paragraphs: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """The word pieces of all paragraphs, one after the other."""
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(paragraphs, add_special_tokens=False)
    return np.concatenate([np.asarray(e.ids, dtype=np.int32) for e in encoded])


def _prose(wikitext: str, limit: int | None) -> list[str]:
    # lines of at least 100 characters that begin with a letter; links keep their visible text
    lines = []
    for line in wikitext[: 4 * limit if limit else None].split("\n"):
        if len(line) >= 100 and (line[0].isalpha() or line[0] == "'"):
            line = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", line)
            lines.append(re.sub(r"'{2,}|\{\{[^}]*\}\}|&lt;.*?&gt;|&quot;", " ", line))
    return lines


def stack(examples: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Examples of equal length as one batch."""
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def stack_hidden(examples: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Masked blocks of equal length as one batch, its labels only those of `positions`.

    `positions` [rows] count through the batch, block after block: first the hidden word pieces,
    then as many others, whose labels [rows] are IGNORED, as make the rows a multiple of a sixth of
    the batch. So batches are of few shapes, and nobody asks the device how many are hidden.
    """
    batch = stack(examples)
    labels = batch.pop("labels").flatten()
    others = labels == IGNORED
    hidden = int((~others).sum())
    if not hidden:
        raise DataError(
            f"none of the {len(labels)} word pieces of a batch of {len(examples)} is hidden, so it "
            "has no loss; use a larger batch or a longer sequence"
        )
    share = -(-len(labels) // PARTS)
    rows = -(-hidden // share) * share
    positions = others.byte().argsort(stable=True)[:rows]
    return batch | {"positions": positions, "labels": labels[positions]}
