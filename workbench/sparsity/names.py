"""Names: refuse unknown ones, showing the nearest and the known; the error of this package."""

import difflib
from collections.abc import Collection, Iterable

_SHOWN = 12


class SparsityError(ValueError):
    """Weights, masks or files that cannot be what they are said to be."""


def refuse_unknown(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise SparsityError for the names in `given` that are not in `known`."""
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
    listed = ", ".join(list(known)[:_SHOWN]) or "none"
    more = f", ... ({len(known)} in all)" if len(known) > _SHOWN else ""
    raise SparsityError(
        f"unknown {what}: {', '.join(unknown)}; "
        + (f"nearest to {unknown[0]!r}: {nearest[0]!r}; " if nearest else "")
        + f"known: {listed}{more}"
    )
