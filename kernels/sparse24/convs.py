"""The convolution benchmark: `python -m sparse24.convs SHAPES.csv OUT.json`, with torch alone.

For each shape and type: cuDNN (channels_last, its best algorithm), cuBLAS where the convolution is
a product (1x1, stride 1), ours by its best plan, by the cost model's and in dense mode, each with
the same result: channels_last, with bias in 16 bits, requantized per channel to int8 from int8,
for which torch has no convolution and dense is our dense mode.
"""

from typing import NamedTuple

import torch

from . import sweeps
from .conv_trials import ConvProblem
from .geometry import Geometry
from .seam import TYPES
from .trials import Asked, Problem, Trial


class Shape(NamedTuple):
    """Batch, channels in and out, height and width of the input, and the walk; as in cuDNN."""

    n: int
    c: int
    k: int
    h: int
    w: int
    r: int
    s: int
    stride: int
    padding: int
    groups: int

    def geometry(self) -> Geometry:
        """How the kernel walks."""
        return Geometry.of((self.r, self.s), self.stride, self.padding)


def problems(shape: Shape, dtype: str) -> dict[str, Asked]:
    """What is measured of a shape, by name."""
    kind = getattr(torch, dtype)
    element, geometry = TYPES[kind], shape.geometry()
    n, c, k, h, w, *_ = shape
    # int8 comes out as int8, else as it went in
    finish = {"out_type": element, "bias": kind.itemsize == 2, "scale": kind.itemsize == 1}
    image = ConvProblem(n, h, w, c, k, shape.groups, geometry, element, **finish)
    full, asked = image, {}
    if geometry.is_pointwise and shape.groups == 1:
        full = Problem(n * h * w, k, c, element, **finish)
        asked["as an image"] = Asked(image, ("dense",))
    return asked | {
        "same result": Asked(full, ("sparse24", "dense")),
        "dense mode": Asked(full._replace(sparse=False), ("sparse24",)),
        "untuned": Asked(full, ("sparse24",), plans=False),
    }


def _label(name: str, problem: Problem | ConvProblem, trial: Trial) -> str:
    if trial.choice.backend != "dense":
        return sweeps.OURS[name]
    if isinstance(problem, ConvProblem):
        return "cuDNN"
    eight = problem.element == TYPES[torch.int8]
    return "torch._int_mm, requantized by torch" if eight else "F.linear (cuBLAS)"


BENCHMARK = sweeps.Benchmark(
    what="convolutions, 2:4 and dense, microseconds",
    shape=Shape,
    dtypes=("float16", "int8"),
    problems=problems,
    label=_label,
)

if __name__ == "__main__":
    BENCHMARK.main(__doc__)
