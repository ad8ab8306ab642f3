"""Durations with units: epochs, optimizer steps, or a share of a length."""

import re
from typing import Annotated

from pydantic import AfterValidator

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ep|it|%)")


def _checked_duration(text: str) -> str:
    if not _DURATION.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a duration; write epochs, steps or a share of the "
            "length with its unit, as in 90ep, 2000it or 5%"
        )
    return text


Duration = Annotated[str, AfterValidator(_checked_duration)]


def _checked_share(text: str) -> str:
    if not (text.endswith("%") and _DURATION.fullmatch(text) and 0 < float(text[:-1]) <= 1000):
        raise ValueError(
            f"{text!r} is not a share of a schedule; write 0% < share <= 1000%, as 25%"
        )
    return text


Share = Annotated[str, AfterValidator(_checked_share)]


def steps(duration: Duration, steps_per_epoch: int, length: int | None = None) -> int:
    """A duration in optimizer steps; a percentage is a share of `length` steps."""
    number, unit = _DURATION.fullmatch(duration).groups()
    if unit == "%" and length is None:
        raise ValueError(f"{duration} is a share of a length; the length itself needs ep or it")
    per_unit = {"ep": steps_per_epoch, "it": 1, "%": (length or 0) / 100}[unit]
    return round(float(number) * per_unit)


def shortened(length: Duration, share: Share) -> Duration:
    """A length times a share of it, in the same unit."""
    number, unit = _DURATION.fullmatch(length).groups()
    return f"{float(number) * float(share[:-1]) / 100:.10g}{unit}" if share != "100%" else length
