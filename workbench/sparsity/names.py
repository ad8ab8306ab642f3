"""Names: refuse unknown ones, showing the nearest and the known."""

import difflib
from collections.abc import Collection, Iterable

_SHOWN = 12


def refuse_unknown(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError for the names in `given` that are not in `known`."""
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
    listed = ", ".join(list(known)[:_SHOWN]) or "none"
    more = f", ... ({len(known)} in all)" if len(known) > _SHOWN else ""
    raise ValueError(
        f"unknown {what}: {', '.join(unknown)}; "
        + (f"nearest to {unknown[0]!r}: {nearest[0]!r}; " if nearest else "")
        + f"known: {listed}{more}"
    )
