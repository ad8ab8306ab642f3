"""How width and depth scale a network: the rounding rules shared by every builder."""

import math


def channels(base: int, width: float) -> int:
    """Base times width, rounded up to a multiple of 32; width 1 returns base unchanged."""
    _check_positive("width", width)
    if width == 1.0:
        return base
    # 1e-9 keeps float noise (0.1 x 320 = 32.000000000000004) from adding a whole step of 32.
    return 32 * max(1, math.ceil(base * width / 32 - 1e-9))


def layers(base: int, depth: float) -> int:
    """Base times depth, rounded half up, and at least 1."""
    _check_positive("depth", depth)
    return max(1, math.floor(base * depth + 0.5))


def heads(hidden: int, head_size: int) -> int:
    """Hidden // head_size attention heads, or the next smaller count that divides hidden."""
    count = max(1, hidden // head_size)
    while hidden % count:
        count -= 1
    return count


def _check_positive(name: str, factor: float) -> None:
    if not (0 < factor < math.inf):
        raise ValueError(f"{name} is {factor}; give a finite factor above 0, 1.0 for the paper's")
