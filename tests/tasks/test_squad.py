"""SQuAD's scores against the rules of the official evaluate-v1.1, on gold and altered answers."""

import gzip
import json
import os
import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest

from workbench import dag
from workbench.tasks import open_task

ROOT = Path(__file__).resolve().parents[2]
PACK = Path(os.environ.get("WORKBENCH_DATA", ROOT.parent / "shared/data"))
DEV = PACK / "squad/dev-v1.1.json.gz"
SAMPLE = 1000  # questions; all 10,570 would take ten times as long


def normalized(text: str) -> str:
    """The official rules, in their order: lower case, no punctuation, no articles, one space."""
    kept = "".join(sign for sign in text.lower() if sign not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def f1(given: str, truth: str) -> float:
    words, wanted = normalized(given).split(), normalized(truth).split()
    same = sum((Counter(words) & Counter(wanted)).values())
    return 2 * same / (len(words) + len(wanted)) if same else 0.0


def official(answers: dict[int, str], rows: list[dict]) -> dict[str, float]:
    """F1 and exact match in percent, over questions the best over their answers."""
    truths = {number: rows[number]["answers"]["text"] for number in answers}
    best = [max(f1(text, truth) for truth in truths[n]) for n, text in answers.items()]
    exact = [
        any(normalized(text) == normalized(truth) for truth in truths[n])
        for n, text in answers.items()
    ]
    return {"f1": 100 * sum(best) / len(best), "exact_match": 100 * sum(exact) / len(exact)}


def altered(text: str, context: str, draw: random.Random) -> str:
    """The answer with an article, other signs, other case, a word more or less, or another one."""
    words, other = text.split(), draw.choice(context.split())
    ways = [
        f"The {text}",
        f"{text.upper()}!",
        f"  {text.replace(' ', '  ')}, ",
        " ".join(words[1:]),
        f"{text} {other}",
        f"an {other}-{text}",
        other,
        "",
    ]
    return draw.choice(ways)


def check(rows: list[dict], task) -> None:
    task.held_out.rows = rows
    draw = random.Random(0)
    gold = {number: row["answers"]["text"][-1] for number, row in enumerate(rows)}
    assert task._score(gold) == {"f1": 100.0, "exact_match": 100.0}
    wrong = {n: altered(text, rows[n]["context"], draw) for n, text in gold.items()}
    expected = official(wrong, rows)
    assert 20 < expected["exact_match"] < expected["f1"] < 80
    assert task._score(wrong) == pytest.approx(expected, abs=1e-3)  # float32 sums


@pytest.fixture
def task(experiments, tmp_path: Path):
    return open_task(dag.spec_of("bert_large", "2to4", "smoke").phases["finetune"], 0, tmp_path)


def test_the_rules_are_the_official_ones_on_worked_cases() -> None:
    assert normalized("The  U.S. -- an  A-list, (the end).") == "us alist end"
    # "a" inside a word stays; two of three words found, two of two given: P 1, R 2/3
    assert f1("Saint Mary's", "the Saint Marys school") == pytest.approx(0.8)
    assert f1("the", "an") == 0.0


def test_scores_on_the_shipped_questions_are_the_official_ones(task) -> None:
    check([dict(row) for row in task.held_out.rows] * 8, task)


@pytest.mark.skipif(not DEV.exists(), reason=f"no SQuAD dev set: set WORKBENCH_DATA ({DEV.name})")
def test_scores_on_the_dev_set_are_the_official_ones(task) -> None:
    with gzip.open(DEV) as file:
        articles = json.load(file)["data"]
    rows = [
        {
            "context": paragraph["context"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    assert len(rows) == 10_570  # the size of the v1.1 dev set
    check(random.Random(0).sample(rows, SAMPLE), task)
