"""Questions on passages as SQuAD has them: word pieces, sliding windows, answers as spans."""

from typing import Any

import pyarrow.parquet as parquet
import torch
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import Dataset

from workbench.data.loader import Item
from workbench.data.source import DataError, Source, hub, some

LONGEST_QUESTION = 64  # word pieces, as run_squad.py of google-research/bert
SHORTEST_QUESTION = 12
PADDING = 0
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(source: Source) -> BertWordPieceTokenizer:
    """BERT's uncased tokenizer over the vocabulary file of the source."""
    path = source.file("vocabulary")
    pieces = path.read_text().split("\n")
    lacking = [piece for piece in SPECIAL if piece not in pieces]
    if lacking or pieces[PADDING] != SPECIAL[0]:
        raise DataError(
            f"data set {source.name}: vocabulary {path} "
            + (f"has no {', '.join(lacking)}" if lacking else f"begins with {pieces[0]}")
            + f"; it has to hold {', '.join(SPECIAL)}, each on a line of its own, [PAD] first"
        )
    return BertWordPieceTokenizer(str(path), lowercase=True)


class Questions(Dataset):
    """Windows [CLS] question [SEP] passage [SEP] over each passage, with the answer's span."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        tokenizer: BertWordPieceTokenizer,
        length: int,
        stride: int,
    ):
        """Rows hold question, context and answers {text, answer_start}; lengths in word pieces."""
        self.rows, self.length = rows, length
        room = length - 3 - stride  # for the question, beside [CLS], two [SEP] and one stride
        if room < SHORTEST_QUESTION:
            raise DataError(
                f"sequence {length} and stride {stride} leave {room} word pieces for a question; "
                f"at least {SHORTEST_QUESTION} are needed: lengthen sequence or lessen stride"
            )
        asked = _cut(tokenizer, [row["question"] for row in rows], min(LONGEST_QUESTION, room - 1))
        tokenizer.enable_truncation(length, stride=stride, strategy="only_second")
        tokenizer.no_padding()
        passages = [row["context"] for row in rows]
        encoded = tokenizer.encode_batch(list(zip(asked, passages, strict=True)))
        self.windows = [
            (number, window)
            for number, first in enumerate(encoded)
            for window in [first, *first.overflowing]
        ]

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.windows)

    def __getitem__(self, item: Item) -> dict[str, torch.Tensor]:
        """One window padded to the length, and the span of its first answer (0, 0 if outside)."""
        number, window = self.windows[item[0]]
        start, end = self._span(number, window)
        padding = self.length - len(window.ids)
        mask = torch.tensor([1] * len(window.ids) + [0] * padding)
        return {
            "input_ids": torch.tensor(window.ids + [PADDING] * padding),
            "token_type_ids": torch.tensor(window.type_ids + [0] * padding),
            "attention_mask": mask,
            "start_positions": torch.tensor(start),
            "end_positions": torch.tensor(end),
            "window": torch.tensor(item[0]),
        }

    def passage(self, window: int) -> tuple[int, list[tuple[int, int] | None]]:
        """The question's number and, per word piece, its characters in the passage, or None."""
        number, encoding = self.windows[window]
        offsets = [
            offset if sequence == 1 else None
            for offset, sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)
        ]
        return number, offsets

    def _span(self, number: int, window: Any) -> tuple[int, int]:
        answer = self.rows[number]["answers"]
        first = answer["answer_start"][0]
        last = first + len(answer["text"][0]) - 1
        start = window.char_to_token(first, 1)
        end = window.char_to_token(last, 1)
        return (0, 0) if start is None or end is None else (start, end)


def _cut(tokenizer: BertWordPieceTokenizer, questions: list[str], longest: int) -> list[str]:
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(questions, add_special_tokens=False)
    return [
        text[: pieces.offsets[longest - 1][1]] if len(pieces.ids) > longest else text
        for text, pieces in zip(questions, encoded, strict=True)
    ]


def collate(windows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Windows as one batch, cut after the longest of them."""
    longest = max(int(window["attention_mask"].sum()) for window in windows)
    whole = {name: torch.stack([window[name] for window in windows]) for name in windows[0]}
    return {name: value[:, :longest] if value.ndim > 1 else value for name, value in whole.items()}


def read_questions(source: Source, role: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The questions of a split."""
    if source.entry["place"] == "hub":
        rows = hub(source, role)
        found = [rows[index] for index in range(min(limit or len(rows), len(rows)))]
    else:
        columns = ["id", "question", "context", "answers"]
        table = parquet.read_table(source.file(role), columns=columns)
        found = table.slice(0, limit or len(table)).to_pylist()
    for row in found:
        starts = row["answers"]["answer_start"]
        if not starts or not 0 <= starts[0] < len(row["context"]):
            raise DataError(
                f"data set {source.name}: {role}: question {row['id']} has answers at {starts}; "
                f"each needs one, at a character from 0 to {len(row['context']) - 1} of its passage"
            )
    return some(source, role, found)
