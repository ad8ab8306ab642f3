"""`python -m sparse24`: compile the kernels ahead of time, and say where they are and how long."""

import sys
import time

from .build import BuildError, build


def main() -> str | None:
    """None once the kernels are compiled, else why they cannot be."""
    started = time.perf_counter()
    try:
        path = build()
    except BuildError as error:
        return f"sparse24: {error}"
    print(f"{path} ({time.perf_counter() - started:.0f} s)")
    return None


if __name__ == "__main__":
    sys.exit(main())
