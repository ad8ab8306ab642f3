"""The page for users names only what exists."""

import re

from workbench import resolve, sparsity

PAGE = (resolve.ROOT / "docs" / "sparsity.md").read_text()
OURS = "\n".join(  # the second cell of a table's rows, and the code blocks
    [line.rpartition("`")[0].split("|")[-1] for line in PAGE.splitlines() if line.startswith("| ")]
    + re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
)


def test_every_function_on_the_page_is_public() -> None:
    called = set(re.findall(r"(?<![.\w])([A-Za-z_]\w+)\(", OURS)) - {"print"}
    assert {"prune_trained_model", "Scheduled", "read_checkpoint", "Plan"} <= called
    assert called <= set(sparsity.__all__)


def test_every_pattern_on_the_page_is_known() -> None:
    kinds = re.findall(r'"kind": "(\w+)"', PAGE)
    assert set(kinds) == {"nm", "transposable", "block", "unstructured"}
