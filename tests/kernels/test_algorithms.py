"""Which algorithms of cuSPARSELt finish, asked of children that hang, die and refuse."""

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from threading import Event

import pytest
import torch

from sparse24 import algorithms, cusparselt
from sparse24.algorithms import Algorithms, asked
from sparse24.bench import BenchError

# what a child does with a number, by sets of numbers; a hang is a read that never ends
CHILD = """
import os, sys, threading
hangs, dies, refuses = {hangs}, {dies}, {refuses}
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    print("doing once", flush=True)
    if number in hangs:
        print("doing in a CUDA graph", flush=True)
        threading.Event().wait()
    if number in dies:
        print("illegal address", flush=True)
        os._exit(1)
    print("done", "refused: no such number" if number in refuses else "", flush=True)
"""
QUIET = 1.0  # seconds; what does not hang answers in a thousandth


class Starts:
    """Starts children of a script, and keeps them."""

    def __init__(self, script: str) -> None:
        self.script, self.children = script, []

    def __call__(self) -> subprocess.Popen:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        child = subprocess.Popen([sys.executable, "-c", self.script], **pipes)
        self.children.append(child)
        return child


def children(hangs=(), dies=(), refuses=()) -> Starts:
    return Starts(CHILD.format(hangs=set(hangs), dies=set(dies), refuses=set(refuses)))


def test_each_number_has_its_verdict_and_no_child_is_left() -> None:
    start = children(hangs={2, 5}, dies={3}, refuses={6, 7})
    found = asked(start, range(8), children=2, quiet=QUIET)
    hung, refused = "does not finish in a CUDA graph", "refused: no such number"
    dead = "ends its process once: illegal address"
    assert found == {0: "", 1: "", 2: hung, 3: dead, 4: "", 5: hung, 6: refused, 7: refused}
    # two, and one for each lost before the numbers ended
    assert 3 <= len(start.children) <= 5
    assert all(child.poll() is not None for child in start.children)


def test_a_search_that_was_ended_goes_on_with_what_it_lacks(monkeypatch, tmp_path) -> None:
    facts = dict.fromkeys(("device", "driver", "torch", "cusparselt"), "x")
    monkeypatch.setattr(algorithms.bench, "facts", lambda: facts)
    monkeypatch.setattr(algorithms.build, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(algorithms, "NUMBERS", range(5))
    kept, start = [], children(refuses={3})
    monkeypatch.setattr(algorithms, "_started", lambda *_: start())
    keep = Algorithms.keep

    def note(known: Algorithms, verdicts: dict[int, str]) -> None:
        kept.append(verdicts)
        keep(known, verdicts)
        if len(kept) == 2:
            raise KeyboardInterrupt  # where the process is ended

    monkeypatch.setattr(Algorithms, "keep", note)
    ask = algorithms.known.__wrapped__
    monkeypatch.setattr(algorithms, "asked", partial(asked, children=1))
    with pytest.raises(KeyboardInterrupt):
        ask(torch.half, torch.half, 0)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == {"0": "", "1": ""}
    found = ask(torch.half, torch.half, 0)
    assert found.verdicts == {0: "", 1: "", 2: "", 3: "refused: no such number", 4: ""}
    assert [list(each) for each in kept] == [[0], [1], [2], [3], [4], []]


def test_after_many_hangs_the_numbers_left_are_not_asked() -> None:
    most = algorithms.MOST_HANGS
    found = asked(children(hangs=range(3, 99)), range(99), children=most, quiet=QUIET)
    hung = [number for number, why in found.items() if why.startswith("does not finish")]
    # those asked at once with the last that counts are waited for too
    assert most <= len(hung) < 2 * most
    assert list(found) == list(range(99))
    assert [number for number, why in found.items() if not why] == [0, 1, 2]
    rest = {why for number, why in found.items() if number > max(hung)}
    assert rest == {f"not asked, after {len(hung)} that did not finish"}


def test_a_child_that_does_not_start_says_why() -> None:
    with pytest.raises(BenchError, match="does not start: no GPU is free; see `python -m"):
        asked(Starts("print('no GPU is free')"), range(4), children=1)


def test_a_real_child_without_a_gpu_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BenchError, match="torch sees none: run this on one"):
        asked(lambda: algorithms._started("float16:float16", 0), range(4), children=1)


def test_what_was_left_out_is_told_in_ranges_and_kept(tmp_path) -> None:
    known = Algorithms(tmp_path / "folder" / "known.json")
    hung = "does not finish"
    known.keep({0: "", 1: hung, 2: "wrong", 3: hung, 4: hung, 5: hung, 6: "", 10: hung})
    assert known.finishing == [0, 6]
    assert known.left_out == "1, 3-5, 10: does not finish; 2: wrong"
    again = Algorithms(known.path)
    assert again.verdicts == known.verdicts
    assert [path.name for path in known.path.parent.iterdir()] == ["known.json"]


def test_a_trial_that_does_not_finish_is_noted_and_ends_the_process(tmp_path, capsys) -> None:
    known = Algorithms(tmp_path / "known.json")
    known.keep({0: "", 1: ""})
    ended = []
    with known.watched(0, "at 64x8x32", seconds=60, end=ended.append):
        pass
    waiting = Event()
    with known.watched(1, "at 64x8x32", 0.01, lambda code: (ended.append(code), waiting.set())):
        assert waiting.wait(10)
    assert ended == [1]
    told = json.loads(known.path.read_text())
    assert told == {"0": "", "1": "does not finish at 64x8x32"}
    assert "algorithm 1 of cuSPARSELt has not finished at 64x8x32" in capsys.readouterr().err


def test_a_verdict_names_the_step_and_needs_one_size_that_is_taken(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    right = torch.ones(2, 2)
    product = cusparselt.Product([], right, (), right)

    def steps(size: cusparselt.Product, number: int):
        yield "first", []
        if number == 1 or (number == 2 and size is product):
            raise RuntimeError("no such algorithm\nmore")
        yield "first", [right, right * (2 if number == 3 else 1 + cusparselt.ERROR / 2)]

    monkeypatch.setattr(cusparselt, "steps", steps)
    products = [product, product._replace(x=[right])]
    found = [cusparselt.verdict(number, products) for number in range(4)]
    assert found == ["", "refused: no such algorithm", "", "wrong first at 1024x8192x1024"]
    # the sizes of cusparselt.py, and 3 was wrong at the first
    first, second = "doing first at 1024x8192x1024", "doing first at 512x64x4096"
    assert capsys.readouterr().out.splitlines() == [first, second] * 3 + [first]


@pytest.mark.gpu
def test_the_default_algorithm_finishes_wherever_its_workspace_was() -> None:
    # in a child each time: what hangs cannot be stopped from here
    found = asked(lambda: algorithms._started("int8:float16", 0), range(2), children=1)
    assert found[0] == ""
