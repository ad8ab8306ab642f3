"""Bad data: empty splits, labels out of range, vocabularies without padding, each named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from workbench import resolve
from workbench.data.boxes import open_boxes
from workbench.data.images import open_images
from workbench.data.language import read_paragraphs
from workbench.data.pairs import read_pairs, train_tokenizer
from workbench.data.questions import read_questions, word_pieces
from workbench.data.source import DataError, Source, open_source

SHIPPED = resolve.EXPERIMENTS / "data"


@pytest.fixture
def changed(tmp_path: Path):
    """A function that gives a shipped source whose files a test has changed."""

    def of(name: str, role: str, change: Any) -> Source:
        entry = {**open_source(name, tmp_path).entry}
        folder = Path(entry["files"][role]).parent
        shutil.copytree(SHIPPED / folder, tmp_path / folder)
        change(tmp_path / entry["files"][role])
        return Source(name, entry["kind"], {**entry, "sha256": {}}, tmp_path)

    return of


def emptied(path: Path) -> None:
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)


def with_column(name: str, values: Any) -> Any:
    def change(path: Path) -> None:
        table = parquet.read_table(path)
        column = arrow.array(values(table[name].to_pylist()), table.schema.field(name).type)
        at = table.column_names.index(name)
        parquet.write_table(table.set_column(at, table.schema.field(name), column), path)

    return change


READERS = [
    ("caltech10", lambda source, role: open_images(source, role, 32)),
    ("tatoeba_small", read_pairs),
    ("squad_small", read_questions),
    ("squad_text_small", read_paragraphs),
]


@pytest.mark.parametrize(("name", "read"), READERS)
@pytest.mark.parametrize("role", ["train", "held_out"])
def test_an_empty_split_is_named(changed, name: str, read: Any, role: str) -> None:
    source = changed(name, role, emptied)
    with pytest.raises(DataError, match=f"data set {name}: the split {role} is empty; at least"):
        read(source, role)


def test_photos_without_a_box_make_an_empty_split(changed) -> None:
    def change(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))

    source = changed("bccd_small", "train_instances", change)
    with pytest.raises(DataError, match="data set bccd_small: the split train is empty"):
        open_boxes(source, "train", masks=False)


def test_labels_outside_the_classes_are_named(changed) -> None:
    change = with_column("label", lambda labels: [10, -1, *labels[2:]])
    source = changed("caltech10", "train", change)
    with pytest.raises(DataError, match="has the labels -1, 10; labels go from 0 to 9, as the cat"):
        open_images(source, "train", 32)


def test_categories_that_are_not_declared_are_named(changed) -> None:
    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        found["annotations"][0]["category_id"] = 77
        path.write_text(json.dumps(found))

    source = changed("bccd_small", "train_instances", change)
    with pytest.raises(DataError, match="boxes of category 77; its categories are "):
        open_boxes(source, "train", masks=False)


def test_a_box_without_extent_is_not_trained_on(changed) -> None:
    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        found["annotations"][0]["bbox"][3] = 0.0
        path.write_text(json.dumps(found))

    first = open_boxes(open_source("bccd_small", Path()), "train", masks=False)[(0, 0)][1]
    source = changed("bccd_small", "train_instances", change)
    assert len(open_boxes(source, "train", masks=False)[(0, 0)][1]["boxes"]) == (
        len(first["boxes"]) - 1
    )


@pytest.mark.parametrize("piece", ["[PAD]", "[MASK]"])
def test_a_vocabulary_without_padding_or_mask_is_refused(changed, piece: str) -> None:
    source = changed(
        "squad_small",
        "vocabulary",
        lambda path: path.write_text(path.read_text().replace(f"{piece}\n", "")),
    )
    with pytest.raises(DataError) as caught:
        word_pieces(source)
    assert f"data set squad_small: vocabulary {source.file('vocabulary')} has no {piece}; it" in (
        str(caught.value)
    )


def test_padding_is_the_first_of_a_vocabulary(changed) -> None:
    def swapped(path: Path) -> None:
        path.write_text(path.read_text().replace("[PAD]\n[UNK]\n", "[UNK]\n[PAD]\n", 1))

    with pytest.raises(DataError, match=r"begins with \[UNK\]; it has to hold \[PAD\]"):
        word_pieces(changed("squad_small", "vocabulary", swapped))


def test_a_vocabulary_of_special_tokens_alone_is_refused() -> None:
    with pytest.raises(DataError, match="data.vocabulary: 4 entries .* at least 5 are needed"):
        train_tokenizer(["a b"], 4)


def test_a_question_without_an_answer_in_its_passage_is_named(changed) -> None:
    def without(answers: list[Any]) -> list[Any]:
        return [{"text": [], "answer_start": []}, *answers[1:]]

    source = changed("squad_small", "train", with_column("answers", without))
    with pytest.raises(DataError, match=r"data set squad_small: train: question \w+ has answers"):
        read_questions(source, "train")
