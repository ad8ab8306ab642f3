"""Questions on passages as SQuAD has them: word pieces, sliding windows, answers as spans."""

from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import tokenizers
import torch
from tokenizers import BertWordPieceTokenizer, Encoding
from torch.utils.data import Dataset

from workbench.data.derived import derived
from workbench.data.loader import Item
from workbench.data.source import DataError, Source, hub, some

LONGEST_QUESTION = 64  # word pieces, as run_squad.py of google-research/bert
SHORTEST_QUESTION = 12
PADDING = 0
WINDOWS = 1  # version of what `windows_of` makes; raise it when its numbers change
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

    def __init__(self, rows: list[dict[str, Any]], windows: dict[str, np.ndarray], length: int):
        """Rows as `read_questions` gives them, and their windows of at most `length` pieces."""
        self.rows, self.length = rows, length
        self.pieces, self.windows = windows["pieces"], windows["windows"]

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.windows)

    def __getitem__(self, item: Item) -> dict[str, torch.Tensor]:
        """One window padded to the length, and the span of its first answer (0, 0 if outside)."""
        _, begin, stop, start, end = self.windows[item[0]].tolist()
        count = stop - begin
        padded = torch.full((3, self.length), PADDING)
        padded[:2, :count] = torch.from_numpy(self.pieces[begin:stop, :2].T)
        padded[2, :count] = 1
        return {
            "input_ids": padded[0],
            "token_type_ids": padded[1],
            "attention_mask": padded[2],
            "start_positions": torch.tensor(start),
            "end_positions": torch.tensor(end),
            "window": torch.tensor(item[0]),
        }

    def passage(self, window: int) -> tuple[int, list[tuple[int, int] | None]]:
        """The question's number and, per word piece, its characters in the passage, or None."""
        number, begin, stop, _, _ = self.windows[window].tolist()
        offsets = self.pieces[begin:stop, 2:].tolist()
        return number, [(first, last) if first >= 0 else None for first, last in offsets]


def windows_of(
    rows: list[dict[str, Any]], tokenizer: BertWordPieceTokenizer, length: int, stride: int
) -> dict[str, np.ndarray]:
    """The windows of all questions as int32 tables; length and stride in word pieces.

    `pieces` [pieces, 4]: id, segment, first and last character in the passage (-1 outside it).
    `windows` [windows, 5]: question, first piece and the one after the last, answer's ends.
    """
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
    pieces, windows, count = [], [], 0
    for number, first in enumerate(tokenizer.encode_batch(list(zip(asked, passages, strict=True)))):
        for window in [first, *first.overflowing]:
            pieces.append(_pieces(window))
            windows.append((number, count, count + len(window), *_span(rows[number], window)))
            count += len(window)
    return {"pieces": np.concatenate(pieces), "windows": np.array(windows, np.int32)}


def read_windows(
    source: Source,
    role: str,
    rows: list[dict[str, Any]],
    tokenizer: BertWordPieceTokenizer,
    length: int,
    stride: int,
) -> dict[str, np.ndarray]:
    """`windows_of` the first questions of a split, made once for files that have a digest."""

    def make() -> dict[str, np.ndarray]:
        return windows_of(rows, tokenizer, length, stride)

    if source.entry["place"] == "hub":
        return make()
    made_of = {
        "windows": WINDOWS,
        "questions": source.digest(role),
        "count": len(rows),
        "vocabulary": source.digest("vocabulary"),
        "length": length,
        "stride": stride,
        "tokenizers": tokenizers.__version__,
    }
    return derived(made_of, make)


def _pieces(window: Encoding) -> np.ndarray:
    inside = np.array([sequence == 1 for sequence in window.sequence_ids])
    offsets = np.where(inside[:, None], np.array(window.offsets), -1)
    return np.column_stack([window.ids, window.type_ids, offsets]).astype(np.int32)


def _span(row: dict[str, Any], window: Encoding) -> tuple[int, int]:
    answer = row["answers"]
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
