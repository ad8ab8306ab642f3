"""Seeds by name: one seed per cell, from which data order, init and dropout draw their own."""

import hashlib


def seed_for(seed: int, *names: str | int) -> int:
    """A 63-bit seed for a named purpose, independent of every other name's."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
