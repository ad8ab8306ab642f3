"""cuSPARSELt's algorithms, tried where hidden state shows: `python -m sparse24.cusparselt`.

Prints the time of each that finishes, and of each other why it is no candidate.
"""

import argparse
import faulthandler
import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import algorithms, bench, draw, graphs, reference
from .bench import Call
from .candidates import Choice, Finish, Unsupported, copy_for, run
from .seam import TYPES

# out, tokens, in: the talk's first, where 15 hung; and few tiles of long sums, as for split-K
SIZES = ((1024, 8192, 1024), (512, 64, 4096))
PAIRS = ("float16:float16", "bfloat16:bfloat16", "int8:float16", "float8_e4m3fn:float16")
SOILED = (1 << 12,) * 512 + (1 << 19,) * 16 + (1 << 21,) * 32 + (1 << 28,)
CALLS = 4  # of a graph
MOST_SECONDS = 60  # of a number; then the process ends, though who asked may be gone
ERROR = 0.01  # of the whole result; a 16-bit one errs by 0.003


class Product(NamedTuple):
    """Calls of an algorithm by its number, each with an x of its own, and the right result."""

    x: list[Tensor]
    copy: Tensor
    finish: Finish
    wanted: Tensor

    @classmethod
    def drawn(cls, size: tuple[int, int, int], element: torch.dtype, out: torch.dtype) -> "Product":
        """A random one of a size; its x are copies of one."""
        rows, tokens, columns = size
        weight = draw.weight_2to4(rows, columns, element, 0, "cuda")
        x = draw.operand(tokens, columns, element, 2, "cuda")
        scaled = element == torch.int8 and out != torch.int32
        scale = torch.full((rows,), 1e-4, device="cuda") if scaled else None
        wanted = reference.linear(x, weight, scale=scale, out_type=TYPES[out])
        finish = None, None, scale, TYPES[out], 0, 1.0, 1.0
        copies = [x, *(x.clone() for _ in range(CALLS - 1))]
        return cls(copies, copy_for("cusparselt", weight), finish, wanted)

    def calls(self, number: int) -> list[Call]:
        """One call for each x."""
        choice = Choice("cusparselt", number)
        return [partial(run, choice, x, None, self.copy, self.finish) for x in self.x]

    def is_right(self, found: Tensor) -> bool:
        """Whether a result is near the right one; NaN is not."""
        wanted = self.wanted.double()
        return bool((found.double() - wanted).norm() <= ERROR * wanted.norm())


def soil(byte: int) -> None:
    """Leave memory full of one byte wherever the caching allocator will put a workspace."""
    torch.cuda.empty_cache()  # what lies free there is clean
    for block in [torch.empty(size, dtype=torch.uint8, device="cuda") for size in SOILED]:
        block.fill_(byte)


def steps(product: Product, number: int) -> Iterator[tuple[str, list[Tensor]]]:
    """What is about to be run, with no results yet, and then the results of that."""
    calls = product.calls(number)
    for byte in (0x00, 0xFF, 0x01):  # as the words of a semaphore: as made, -1 and far too many
        where = f"where memory holds 0x{byte:02X}"
        yield where, []
        soil(byte)
        yield where, [calls[0]()]
    soil(0xFF)
    torch.cuda.empty_cache()  # so that the graph's own pool may get these pages
    yield "in a CUDA graph", []
    replay, results = graphs.cuda_graph(lambda: [call() for call in calls])
    for _ in range(3):
        replay()
        yield "in a CUDA graph", results


def verdict(number: int, products: list[Product]) -> str:
    """Why an algorithm is no candidate, empty if it is one; prints each step before it starts."""
    refused = []
    for size, product in zip(SIZES, products, strict=True):
        place = "at " + "x".join(map(str, size))
        try:
            for where, results in steps(product, number):
                if not results:
                    print("doing", where, place, flush=True)
                torch.cuda.synchronize()
                if not all(map(product.is_right, results)):
                    return f"wrong {where} {place}"
        except (Unsupported, RuntimeError) as error:
            torch.cuda.synchronize()  # what a fault leaves behind ends the process
            refused.append(f"refused: {str(error).splitlines()[0]}")
    return refused[0] if len(refused) == len(products) else ""


def answer(element: torch.dtype, out: torch.dtype) -> None:
    """Read numbers and print the verdict of each, for algorithms.py."""
    products = [Product.drawn(size, element, out) for size in SIZES]
    torch.cuda.synchronize()
    print("ready", flush=True)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
        print("done", verdict(int(line), products), flush=True)
        faulthandler.cancel_dump_traceback_later()


def table(element: torch.dtype, out: torch.dtype, device: int) -> None:
    """Print the algorithms of a pair of types: microseconds, or why not."""
    found = algorithms.known(element, out, device)
    size = "x".join(map(str, SIZES[0]))
    print(f"{element} to {out}, {size}, of {found.path.name}")
    product, timer = Product.drawn(SIZES[0], element, out), bench.glance(bench.graph_time)
    for number in found.finishing:
        with found.watched(number, f"at {size}"):
            print(f"{number:>4}{timer(product.calls(number)).median_us:>10.1f} us", flush=True)
    for reason in filter(None, found.left_out.split("; ")):
        print(f"  {reason}")


def main() -> None:
    """Print the table of each pair of types, or answer about one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default=",".join(PAIRS), help="element:out, comma-separated")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--answer", action="store_true", help="numbers of standard input")
    given = parser.parse_args()
    bench.require_gpu()
    torch.cuda.set_device(given.device)
    for pair in given.types.split(","):
        element, out = (getattr(torch, name) for name in pair.split(":"))
        answer(element, out) if given.answer else table(element, out, given.device)


if __name__ == "__main__":
    main()
