"""Derived data: kept once, the same bits as made anew, and never in the way."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.data import derived as room
from workbench.data.derived import derived
from workbench.data.language import (
    PIECES,
    read_bytes,
    read_paragraphs,
    stream_of,
    word_stream,
)
from workbench.data.questions import WINDOWS, read_questions, read_windows, windows_of, word_pieces
from workbench.data.source import Source, open_source

NOWHERE = Path("nowhere")
MADE_OF = {"numbers": 1}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    room._not_kept.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def make():
    """A maker of 0, 1, 2 that counts its calls."""

    def numbers() -> dict[str, np.ndarray]:
        numbers.calls += 1
        return {"numbers": np.arange(3, dtype=np.int32)}

    numbers.calls = 0
    return numbers


def test_what_was_kept_is_read_and_not_made_again(kept: Path, make) -> None:
    first, second = (derived(MADE_OF, make)["numbers"] for _ in range(2))
    assert make.calls == 1
    assert first.dtype == second.dtype and first.tolist() == second.tolist() == [0, 1, 2]
    assert [path.suffix for path in kept.iterdir()] == [".safetensors"]  # no half file is left


def test_another_version_or_file_is_made_of_its_own(kept: Path, make) -> None:
    for made_of in (MADE_OF, {"numbers": 2}, {"numbers": 1, "text": "sha256"}):
        derived(made_of, make)
    assert make.calls == 3


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "of another"])
def test_a_damaged_file_is_told_and_made_again(kept: Path, make, capsys, damage: str) -> None:
    derived(MADE_OF, make)
    path = next(kept.iterdir())
    content = path.read_bytes()
    if damage == "of another":
        derived({"numbers": 2}, make)
        content = next(p for p in kept.iterdir() if p != path).read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(
        {"cut": content[:-1], "emptied": b"", "flipped": flipped, "of another": content}[damage]
    )
    before = make.calls
    assert derived(MADE_OF, make)["numbers"].tolist() == [0, 1, 2]
    assert make.calls == before + 1
    assert f"{path}: damaged (" in capsys.readouterr().out
    derived(MADE_OF, make)
    assert make.calls == before + 1  # whole again
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_told_once(kept: Path, make, capsys) -> None:
    kept.write_text("a file where the folder should be")
    for _ in range(2):
        assert derived(MADE_OF, make)["numbers"].tolist() == [0, 1, 2]
    assert make.calls == 2
    printed = capsys.readouterr().out
    assert printed.count("derived data is not kept (") == 1
    assert "WORKBENCH_CACHE" in printed


def text(name: str) -> Source:
    """A shipped text with the shipped vocabulary."""
    found = open_source(name, NOWHERE)
    files = found.entry["files"] | {"vocabulary": "squad_small/vocab.txt"}
    return replace(found, entry=found.entry | {"files": files})


@pytest.mark.parametrize("name", ["squad_text_small", "enwik8_small"])
@pytest.mark.parametrize("role", ["train", "held_out"])
def test_word_pieces_are_the_same_bits_from_the_cache(kept: Path, name: str, role: str) -> None:
    source = text(name)
    tokenizer = word_pieces(source)
    anew = stream_of(read_paragraphs(source, role, 5_000), tokenizer)
    for _ in range(2):  # made, then read
        found = word_stream(source, role, 5_000, tokenizer)
        assert found.dtype == anew.dtype and np.array_equal(found, anew)


def test_splits_and_limits_are_kept_apart(kept: Path) -> None:
    source = text("squad_text_small")
    tokenizer = word_pieces(source)
    cases = [("train", 5_000), ("train", 9_000), ("held_out", 5_000)]
    found = {word_stream(source, *case, tokenizer).tobytes() for case in cases}
    assert len(found) == len(list(kept.iterdir())) == 3


def test_bytes_are_unpacked_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source("enwik8_small", NOWHERE)
    first = read_bytes(source)
    monkeypatch.setattr("workbench.data.language.lzma.decompress", None)  # would fail if called
    second = read_bytes(source)
    assert all(first[role].tobytes() == second[role].tobytes() for role in first)


def test_windows_are_the_same_bits_from_the_cache(kept: Path) -> None:
    source = open_source("squad_small", NOWHERE)
    rows = read_questions(source, "train", 20)
    anew = windows_of(rows, word_pieces(source), 48, 16)
    for _ in range(2):  # made, then read
        found = read_windows(source, "train", rows, word_pieces(source), 48, 16)
        assert found.keys() == anew.keys()
        for name in anew:
            assert found[name].dtype == anew[name].dtype and np.array_equal(found[name], anew[name])
    read_windows(source, "train", rows[:10], word_pieces(source), 48, 16)
    read_windows(source, "train", rows, word_pieces(source), 64, 16)
    assert len(list(kept.iterdir())) == 3


@pytest.mark.parametrize("network", ["bert_large", "transformer_xl"])
def test_a_task_is_the_same_from_the_cache(kept: Path, work_of, network: str) -> None:
    work = work_of(network, "dense", "dense")

    def told() -> list:
        found = []
        for phase in work.spec.phases:
            task = work.task(phase)
            drawn = [next(iter(task.training_batches(0, 1))), task.held_out[(0, 0)]]
            found.append([task.shape(), task.digests(), task.chance(), str(drawn)])
        return found

    cold = told()
    made = sorted(path.stat().st_mtime_ns for path in kept.iterdir())
    assert told() == cold
    assert made and made == sorted(path.stat().st_mtime_ns for path in kept.iterdir())


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def test_derived_numbers_change_with_their_version_alone() -> None:
    # of version 1 of both, by tokenizers 0.23.3; whoever changes a number raises its version
    source = text("squad_text_small")
    ids = word_stream(source, "held_out", 5_000, word_pieces(source))
    assert (PIECES, digest(ids)) == (1, "65fbe5c667640049")
    source = open_source("squad_small", NOWHERE)
    rows = read_questions(source, "held_out", 20)
    found = windows_of(rows, word_pieces(source), 48, 16)
    assert (WINDOWS, digest(found["pieces"], found["windows"])) == (1, "a21e01c249442f21")
