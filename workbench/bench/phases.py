"""Where the time of a row goes: seconds by phase, told as each ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """The seconds of the phases of a row, in their order.

    Each is printed as it ends, so that the log of a run that was cut off says where it was.
    """

    def __init__(self, name: str) -> None:
        """`name` begins each line."""
        self.name, self.seconds = name, {}

    @contextmanager
    def phase(self, what: str) -> Iterator[None]:
        """What runs within, as one phase; one that fails is told too."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = round(time.perf_counter() - started, 1)
            print(f"{self.name}: {what} {self.seconds[what]} s", flush=True)
