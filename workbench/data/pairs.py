"""Sentence pairs for translation, under one joint byte-pair vocabulary."""

from itertools import compress
from typing import Any

import pyarrow.parquet as parquet
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from workbench.data.loader import Item
from workbench.data.source import DataError, Source, hub, some

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PADDING, BEGIN, END, UNKNOWN = range(4)
CHUNK = 10_000  # sentences encoded at a time, so that millions of encodings are not held at once


class Pairs(Dataset):
    """(source ids, target ids) pairs; a target begins with BEGIN and ends with END."""

    def __init__(self, sources: list[str], targets: list[str], tokenizer: Tokenizer, longest: int):
        """Sentences are encoded when asked for and cut at `longest` tokens."""
        self.sources, self.targets = sources, targets
        self.tokenizer, self.longest = tokenizer, longest

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.sources)

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, torch.Tensor]:
        """One pair; the key is not used, nothing is random."""
        source, target = (self.encode(side[item[0]]) for side in (self.sources, self.targets))
        return torch.tensor([*source, END]), torch.tensor([BEGIN, *target, END])

    def encode(self, sentence: str) -> list[int]:
        """The sentence's ids without BEGIN and END."""
        return self.tokenizer.encode(sentence).ids[: self.longest - 1]


def read_pairs(source: Source, role: str, limit: int | None = None) -> tuple[list[str], list[str]]:
    """English and German sentences of a split."""
    if source.entry["place"] == "hub":
        rows = [row["translation"] for row in hub(source, role)]
        english, german = [row["en"] for row in rows], [row["de"] for row in rows]
    else:
        table = parquet.read_table(source.file(role), columns=["en", "de"])
        english, german = table["en"].to_pylist(), table["de"].to_pylist()
    return some(source, role, english)[:limit], german[:limit]


def train_tokenizer(sentences: list[str], vocabulary: int) -> Tokenizer:
    """A joint byte-pair tokenizer with `vocabulary` entries, learned from the sentences."""
    if vocabulary <= len(SPECIAL):
        raise DataError(
            f"data.vocabulary: {vocabulary} entries hold no word beside {', '.join(SPECIAL)}; at "
            f"least {len(SPECIAL) + 1} are needed"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def short(
    english: list[str], german: list[str], tokenizer: Tokenizer, longest: int
) -> tuple[list[str], list[str]]:
    """The pairs with at most `longest` tokens on either side, BEGIN and END counted on both."""

    def fits(side: list[str], start: int) -> list[bool]:
        encoded = tokenizer.encode_batch_fast(side[start : start + CHUNK])
        return [len(sentence.ids) + 2 <= longest for sentence in encoded]

    kept = [
        fit
        for start in range(0, len(english), CHUNK)
        for fit in map(all, zip(fits(english, start), fits(german, start), strict=True))
    ]
    if not any(kept):
        raise DataError(
            f"no pair has at most {longest} tokens a side; give data.train_sequence more"
        )
    return list(compress(english, kept)), list(compress(german, kept))


def collate(pairs: list[Any]) -> dict[str, torch.Tensor]:
    """Sources and targets as padded [batch, length] ids."""
    sources, targets = zip(*pairs, strict=True)
    return {
        "source": pad_sequence(list(sources), batch_first=True, padding_value=PADDING),
        "target": pad_sequence(list(targets), batch_first=True, padding_value=PADDING),
    }
