"""Data: order as a function of the seed, checks at the door, examples as the papers have them."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from workbench import resolve
from workbench.data.boxes import open_boxes
from workbench.data.images import open_images
from workbench.data.language import (
    IGNORED,
    MaskedBlocks,
    Segments,
    byte_codes,
    read_bytes,
    read_paragraphs,
    stream_of,
)
from workbench.data.loader import Shares, Steps, shuffled
from workbench.data.pairs import BEGIN, END, Pairs, read_pairs, short, train_tokenizer
from workbench.data.questions import Questions, read_questions, windows_of, word_pieces
from workbench.data.source import DataError, open_source

NOWHERE = Path("nowhere")
PACK = Path(os.environ.get("WORKBENCH_DATA", resolve.ROOT.parent / "shared/data"))


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own() -> None:
    order = shuffled(12, 3, seed=1)
    first = [index for step in range(4) for index in order(step)]
    second = [index for step in range(4, 8) for index in order(step)]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert shuffled(12, 3, seed=1)(5) == order(5)
    assert [shuffled(12, 3, seed=2)(step) for step in range(4)] != [order(s) for s in range(4)]


def test_sentences_of_similar_length_share_a_batch() -> None:
    lengths = list(range(100))
    order = shuffled(100, 10, seed=0, lengths=lengths)
    drawn = [order(step) for step in range(10)]
    assert sorted(sum(drawn, [])) == lengths
    assert all(max(batch) - min(batch) == 9 for batch in drawn)


def test_processes_share_a_batch_and_resuming_changes_no_draw() -> None:
    order = shuffled(16, 8, seed=3)
    alone = list(Steps(order, 3, 0, 4, Shares()))
    halves = [list(Steps(order, 3, 0, 4, Shares((rank,), 2))) for rank in (0, 1)]
    for step, batch in enumerate(alone):
        assert sorted(halves[0][step] + halves[1][step]) == sorted(batch)
    assert list(Steps(order, 3, 2, 4, Shares())) == alone[2:]


def test_an_altered_file_is_named(experiments: Path) -> None:
    path = experiments / "data/caltech10/train.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="caltech10/train.parquet is not the file of the catalog"):
        open_images(open_source("caltech10", NOWHERE), "train", 32)


def test_absent_data_says_what_to_fetch_and_where_to_put_it() -> None:
    with pytest.raises(DataError, match="nowhere/imagenet/train is absent; download ILSVRC2012"):
        open_images(open_source("imagenet", NOWHERE), "train", 224)


def test_every_catalog_entry_states_licence_and_source() -> None:
    for name, entry in resolve.catalog().items():
        assert entry["licence"] and entry["obtain"], name
        assert entry["place"] != "shipped" or set(entry["sha256"]) == set(entry["files"]), name


def test_an_image_is_augmented_by_its_key_alone() -> None:
    images = open_images(open_source("caltech10", NOWHERE), "train", 32)
    before = torch.get_rng_state()
    again = torch.equal(images[(5, 1)][0], images[(5, 1)][0])
    other = torch.equal(images[(5, 1)][0], images[(5, 2)][0])
    assert again and not other
    assert images[(5, 1)][0].shape == (3, 32, 32)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_replaces_its_share_of_training_labels_alike_in_every_run() -> None:
    source = open_source("caltech10", NOWHERE)
    clean = open_images(source, "train", 8)
    noisy, again = (open_images(source, "train", 8, label_noise=0.5) for _ in range(2))
    labels = [noisy[(index, 0)][1] for index in range(200)]
    assert labels == [again[(index, 1)][1] for index in range(200)]
    wrong = sum(a != b for a, b in zip(labels, clean.read.labels[:200], strict=True))
    # half are drawn again, a tenth of those right: 90 of 200, three standard deviations are 21
    assert abs(wrong - 90) < 21
    assert set(labels) == set(range(10))


def test_boxes_lie_inside_their_image_and_flip_with_it() -> None:
    boxes = open_boxes(open_source("bccd_small", NOWHERE), "train", masks=False)
    widths = set()
    for key in range(8):
        image, target = boxes[(0, key)]
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        assert target["boxes"][:, 2].max() <= image.shape[2]
        widths.add(float(target["boxes"][0, 0]))
    assert len(widths) == 2  # flipped or not
    assert Counter(boxes.label_of.values()) == Counter([1, 2, 3])


def test_masks_lie_in_their_boxes_and_flip_with_them() -> None:
    nuclei = open_boxes(open_source("nuclei_small", NOWHERE), "train", masks=True)
    widths = set()
    for key in range(8):
        image, target = nuclei[(0, key)]
        found = masks_to_boxes(target["masks"])
        found[:, 2:] += 1  # the last pixel belongs to the box
        assert torch.equal(found, target["boxes"])
        assert target["masks"].shape[1:] == image.shape[1:]
        widths.add(float(target["boxes"][0, 0]))
    assert len(widths) == 2  # flipped or not


def test_bytes_are_split_90_5_5() -> None:
    split = read_bytes(open_source("enwik8_small", NOWHERE))
    assert [len(part) for part in split.values()] == [3_600_000, 200_000, 200_000]


@pytest.mark.skipif(not (PACK / "enwik8").exists(), reason="no enwik8: set WORKBENCH_DATA")
def test_enwik8_is_split_as_is_customary() -> None:
    split = read_bytes(open_source("enwik8", PACK))
    # of its 10^8 bytes
    assert [len(part) for part in split.values()] == [90_000_000, 5_000_000, 5_000_000]


def test_unseen_bytes_share_one_symbol() -> None:
    codes, symbols = byte_codes(np.array([97, 98], np.uint8), np.array([99, 100], np.uint8))
    assert symbols == 3
    assert codes[[97, 98, 99, 100]].tolist() == [0, 1, 2, 2]


def test_segments_follow_each_other_in_their_stream() -> None:
    segments = Segments(np.arange(100), streams=2, length=8)
    for position in range(segments.segments - 1):
        now = [segments[(index, 0)] for index in segments.order(position)]
        then = [segments[(index, 0)] for index in segments.order(position + 1)]
        for a, b in zip(now, then, strict=True):
            assert a["y"][-1] == b["x"][0]
            assert torch.equal(a["x"][1:], a["y"][:-1])
    assert segments[(0, 0)]["first"] and not segments[(1, 0)]["first"]
    with pytest.raises(DataError, match="do not hold 20 streams of 8"):
        Segments(np.arange(100), streams=20, length=8)


def test_fifteen_percent_are_hidden_and_80_10_10_of_those_masked_random_kept() -> None:
    source = open_source("squad_text_small", NOWHERE)
    tokenizer = word_pieces(source)
    tokens = stream_of(read_paragraphs(source, "train", 200_000), tokenizer)
    blocks = MaskedBlocks(tokens, tokenizer, 64)
    mask = tokenizer.token_to_id("[MASK]")
    words = chosen = masked = kept = 0
    for index in range(400):
        example = blocks[(index, index)]
        asked = example["labels"] != IGNORED
        words += 60  # 64 without [CLS] and two [SEP]: 61, halves of 30
        chosen += int(asked.sum())
        masked += int((example["input_ids"][asked] == mask).sum())
        kept += int((example["input_ids"][asked] == example["labels"][asked]).sum())
    # 24,000 draws: three standard deviations are 0.7 points, of 3,600 some 2 and 1.5
    assert abs(chosen / words - 0.15) < 0.007
    assert abs(masked / chosen - 0.8) < 0.02
    assert abs(kept / chosen - 0.1) < 0.016


def test_windows_hold_every_answer_and_offsets_point_at_it() -> None:
    source = open_source("squad_small", NOWHERE)
    rows = read_questions(source, "train", 60)
    windows = windows_of(rows, word_pieces(source), length=48, stride=16)
    questions = Questions(rows, windows, length=48)
    found = set()
    for window in range(len(questions)):
        example = questions[(window, 0)]
        number, offsets = questions.passage(window)
        start, end = int(example["start_positions"]), int(example["end_positions"])
        if (start, end) != (0, 0):
            text = rows[number]["context"][offsets[start][0] : offsets[end][1]]
            assert rows[number]["answers"]["text"][0] in text
            found.add(number)
    assert len(found) >= 58  # a window boundary may cut an answer in two


def test_pairs_begin_and_end_and_decode_back() -> None:
    english, german = read_pairs(open_source("tatoeba_small", NOWHERE), "train", 2000)
    tokenizer = train_tokenizer(english + german, 512)
    assert tokenizer.to_str() == train_tokenizer(english + german, 512).to_str()
    pairs = Pairs(english, german, tokenizer, 32)
    source, target = pairs[(7, 0)]
    assert target[0] == BEGIN and target[-1] == END and source[-1] == END
    assert tokenizer.decode(target[1:-1].tolist()) == german[7]


def test_short_pairs_are_those_with_few_tokens_on_both_sides(monkeypatch) -> None:
    monkeypatch.setattr("workbench.data.pairs.CHUNK", 2)  # three chunks, the last not full
    tokenizer = train_tokenizer(["a b c d e"], 64)
    # as many tokens as letters, BEGIN and END besides
    english = ["a b c d", "a b", "a", "a b c", "a b c"]
    german = ["a", "a b c d", "b", "b c d", "a b c d"]
    # of at most 5 tokens: "a" with "b", and "a b c" with "b c d"
    assert short(english, german, tokenizer, 5) == (["a", "a b c"], ["b", "b c d"])
    assert short(english, german, tokenizer, 6) == (english, german)
    with pytest.raises(DataError, match="no pair has at most 2 tokens"):
        short(english, german, tokenizer, 2)
