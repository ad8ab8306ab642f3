"""Trimming rules: the small real sets of experiments/data, made again from the data pack."""

import hashlib
import io
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from faster_coco_eval import mask as coco_mask
from PIL import Image
from tokenizers import BertWordPieceTokenizer

NUMERIC = re.compile(r"\b(when|how (many|much|long|old)|what (year|percentage|percent))\b")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def caltech10(pack: Path, out: Path) -> None:
    """The ten classes of Caltech-101 with most photos (not Faces_easy), shorter side 64 px."""
    tables = {s: parquet.read_table(pack / f"caltech101/{s}.parquet") for s in ("train", "test")}
    info = json.loads(tables["train"].schema.metadata[b"huggingface"])
    names = info["info"]["features"]["label"]["names"]
    counts = Counter(tables["train"]["label"].to_pylist())
    chosen = [
        k
        for k, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if names[k] != "Faces_easy"
    ][:10]
    for split, table in tables.items():
        rows = [row for row in table.to_pylist() if row["label"] in chosen]
        images = [{"bytes": _smaller(row["image"]["bytes"], 64, 85), "path": None} for row in rows]
        labels = [chosen.index(row["label"]) for row in rows]
        _write(
            out / f"{split}.parquet",
            {"image": images, "label": labels},
            {"classes": json.dumps([names[k] for k in chosen])},
        )


def bccd_small(pack: Path, out: Path) -> None:
    """All of BCCD's training and validation photos, 640x480 made 256x192, boxes scaled by 0.4."""
    for split in ("train", "val"):
        table = parquet.read_table(pack / f"bccd/{split}.parquet")
        rows = table.select(["image_id", "image"]).to_pylist()
        photos = [{"bytes": _smaller(r["image"]["bytes"], 192, 85), "path": None} for r in rows]
        columns = {"image_id": [row["image_id"] for row in rows], "image": photos}
        _write(out / f"{split}.parquet", columns)
        found = json.loads((pack / f"bccd/instances_{split}.json").read_text())
        for image in found["images"]:
            image["width"], image["height"] = 256, 192
        for instance in found["annotations"]:
            instance["bbox"] = [round(v * 0.4, 2) for v in instance["bbox"]]
            instance["area"] = round(instance["area"] * 0.16, 2)
            instance["segmentation"] = []
        (out / f"instances_{split}.json").write_text(json.dumps(found))


def nuclei_small(pack: Path, out: Path) -> None:
    """Photos of the DSB2018 nuclei with a shorter side of 256 px, halved, and 1 to 40 nuclei.

    The first by sha256 of their id in the source: 120 to train, 40 to test. A pixel belongs to a
    nucleus if at least half of it did; a nucleus that no pixel belongs to is left out.
    """
    for split, count in (("train", 120), ("val", 40)):
        found = json.loads((pack / f"dsb2018-nuclei/instances_{split}.json").read_text())
        nuclei = Counter(each["image_id"] for each in found["annotations"])
        small = [
            im
            for im in found["images"]
            if 1 <= nuclei[im["id"]] <= 40 and min(im["width"], im["height"]) == 256
        ]
        small.sort(key=lambda im: hashlib.sha256(im["source_id"].encode()).digest())
        kept = {im["id"]: im for im in small[:count]}
        table = parquet.read_table(pack / f"dsb2018-nuclei/{split}.parquet")
        rows = [r for r in table.select(["image_id", "image"]).to_pylist() if r["image_id"] in kept]
        photos = [{"bytes": _smaller(r["image"]["bytes"], 128, 85), "path": None} for r in rows]
        columns = {"image_id": [row["image_id"] for row in rows], "image": photos}
        _write(out / f"{split}.parquet", columns)
        for image in kept.values():
            image["width"], image["height"] = image["width"] // 2, image["height"] // 2
        halved = [_halved(each) for each in found["annotations"] if each["image_id"] in kept]
        found |= {"images": list(kept.values()), "annotations": [each for each in halved if each]}
        (out / f"instances_{split}.json").write_text(json.dumps(found))


def tatoeba_small(pack: Path, out: Path) -> None:
    """Tatoeba pairs of at most six words a side: the first 24,000 by sha256, 600 to test on."""
    for split, count in (("train", 24_000), ("test", 600)):
        rows = parquet.read_table(pack / f"tatoeba-en-de/{split}.parquet").to_pylist()
        short = [r for r in rows if max(len(r["en"].split()), len(r["de"].split())) <= 6]
        short.sort(key=lambda r: hashlib.sha256(f"{r['en']}\t{r['de']}".encode()).digest())
        kept = short[:count]
        _write(out / f"{split}.parquet", {key: [row[key] for row in kept] for key in ("en", "de")})


def enwik8_small(pack: Path, out: Path) -> None:
    """The first 4,000,000 bytes of enwik8, compressed with xz."""
    with lzma.open(pack / "enwik8/enwik8.xz") as file:
        start = file.read(4_000_000)
    (out / "enwik8_small.xz").write_bytes(lzma.compress(start, preset=9))


def squad_small(pack: Path, out: Path) -> None:
    """SQuAD-Shifts to train, SQuAD dev to test: questions for a number or a time, one sentence.

    Kept are questions that ask when, how many, how much, how long, how old, what year or what
    percentage; the passage is cut to the sentence of the answer, if that has 8 to 60 words and
    the answer at most 5. Of the test questions, 500: the first by sha256 of their id. The text
    for pretraining is the passages of SQuAD-Shifts' Wikipedia part (150 of SQuAD's to test on);
    a vocabulary of 4,096 word pieces is learned from it.
    """
    for split, count in (("train", None), ("validation", 500)):
        rows = parquet.read_table(pack / f"squad/{split}.parquet").to_pylist()
        asked = [row for row in rows if NUMERIC.search(row["question"].lower())]
        kept = [short for row in asked if (short := _sentence(row))]
        kept.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
        kept = kept[:count]
        _write(out / f"{split}.parquet", {key: [row[key] for row in kept] for key in kept[0]})
        wikipedia = [r for r in rows if r["source"].endswith("new_wiki") or split != "train"]
        texts = sorted({row["context"] for row in wikipedia})[: None if count is None else 150]
        _write(out / f"{split}_text.parquet", {"text": texts})
        if split == "train":
            tokenizer = BertWordPieceTokenizer(lowercase=True)
            learned = texts + [row["question"] for row in wikipedia]
            tokenizer.train_from_iterator(
                learned, vocab_size=4096, show_progress=False, special_tokens=SPECIAL
            )
            vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
            (out / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocabulary))


RULES: dict[str, Callable[[Path, Path], None]] = {
    rule.__name__: rule
    for rule in (caltech10, bccd_small, nuclei_small, tatoeba_small, enwik8_small, squad_small)
}


def _halved(instance: dict[str, Any]) -> dict[str, Any] | None:
    """The instance with its mask at half the size, or None if nothing of it is left."""
    mask = coco_mask.decode(instance["segmentation"])
    height, width = mask.shape
    shares = mask.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    shape = coco_mask.encode(np.asfortranarray((shares >= 0.5).astype(np.uint8)))
    if not (area := float(coco_mask.area(shape))):
        return None
    box = [float(side) for side in coco_mask.toBbox(shape)]
    text = {"size": list(map(int, shape["size"])), "counts": shape["counts"].decode()}
    return {**instance, "bbox": box, "area": area, "segmentation": text}


def _sentence(row: dict[str, Any]) -> dict[str, Any] | None:
    start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
    ends = [m.end() for m in re.finditer(r"(?<=[a-z0-9)\"][.!?])\s+(?=[A-Z\"])", row["context"])]
    first = max([end for end in ends if end <= start], default=0)
    last = min([end for end in ends if end >= start + len(text)], default=len(row["context"]))
    sentence = row["context"][first:last].strip()
    if not (8 <= len(sentence.split()) <= 60 and len(text.split()) <= 5):
        return None
    answers = sorted(
        {t for t in row["answers"]["text"] if t in sentence} | {text}, key=lambda t: (t != text, t)
    )
    return {
        "id": row["id"],
        "question": row["question"].strip(),
        "context": sentence,
        "answers": {"text": answers, "answer_start": [sentence.find(t) for t in answers]},
    }


def _smaller(encoded: bytes, side: int, quality: int) -> bytes:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = side / min(image.size)
    image = image.resize([round(length * scale) for length in image.size], Image.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _write(path: Path, columns: dict[str, Any], notes: dict[str, str] | None = None) -> None:
    table = arrow.table(columns).replace_schema_metadata(notes)
    parquet.write_table(table, path, compression="zstd", compression_level=15)


def trim(pack: Path, out: Path) -> dict[str, dict[str, str]]:
    """Make every small set from `pack` under `out`; the sha256 of each file, by set and name."""
    made = {}
    for name, rule in RULES.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        rule(pack, out / name)
        made[name] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((out / name).iterdir())
            if path.suffix != ".md"
        }
    return made
