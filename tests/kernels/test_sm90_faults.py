"""That the emulator can fail: the Hopper kernel with a fault put in must be caught."""

import re
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch

from tests.kernels.call import Call, operands
from tests.kernels.emulated import Hopper

TILE = 2  # of config.h, 128x128: two warpgroups, one step of rows
FEATURES, TOKENS = 260, 260  # three by three tiles, one after the other on one multiprocessor
COLUMNS = 500  # eight blocks of K: the ring of stages wraps around again and again
GEMM, PRODUCE, STORE = "sm90_gemm.cuh", "sm90_produce.cuh", "sm90_store.cuh"
# file, what is replaced (a regular expression), by what, and a word of what is said: "" where no
# more is promised than another product or any complaint
FAULTS = {
    "no wait for a full stage": (GEMM, r"mbarrier_wait\(memory\.full[^;]*;", "", ""),
    "no wait for an empty stage": (PRODUCE, r"mbarrier_wait\(memory\.empty[^;]*;", "", ""),
    "the wrong phase": (PRODUCE, r"ring\.phase \^ 1", "ring.phase", "waits for ever"),
    "a stage released under its products": (GEMM, r"wgmma_wait_group<1>\(\);", "", ""),
    "the last products not awaited": (GEMM, r"wgmma_wait_group<0>\(\);", "", "wgmma is under way"),
    "no fence before the products": (GEMM, r"wgmma_fence\(\);", "", "wgmma without a fence"),
    "sums not started anew": (GEMM, r"!is_first \|\| step > 0", "1", "another product"),
    "the other lanes' metadata": (GEMM, r"issue<1>", "issue<0>", "another product"),
    "x taken to have rows of 64 bytes": (
        GEMM, r"wgmma_descriptor<128>\(x_at\)", "wgmma_descriptor<64>(x_at)", "another product",
    ),
    "a step of K too small": (GEMM, r"step \* 32 >> 4", "step * 16 >> 4", "another product"),
    "too few bytes expected": (
        PRODUCE, r"Shape::kTokenBytes \+ Shape::kWeightBytes\)", "Shape::kTokenBytes)", "",
    ),
    "too many arrivals awaited": (GEMM, r"4 \* Shape::kTogether", "5", "waits for ever"),
    "staging that is not swizzled": (STORE, r"chunk \^ \(token & 7\)", "chunk", "another product"),
    "no fence before the store": (STORE, r"fence_proxy_async\(\);", "", "proxy fence"),
    "no barrier before the store": (
        STORE, r"named_barrier\([^;]*;(?=[^;]*(?:;[^;]*){0,2}store_tensor_2d)", "", "proxy fence",
    ),
    "staging reused under the store": (
        "sm90_*.cuh", r"bulk_wait_group_read<[^;]*;", "", "another product",
    ),
    "a block that ends before its stores": (
        GEMM, r"if \(thread == 0\) bulk_wait_group\(\);", "", "store is under way",
    ),
    "no fence behind the init": (GEMM, r"fence_mbarrier_init\(\);", "", "fence of its init"),
    "no barrier behind the init": (GEMM, r"__syncthreads\(\);", "", "no mbarrier"),
    "no wait for the kernel before": (GEMM, r"wait_for_kernel_before\(\);", "", "kernel before"),
}  # fmt: skip
CLUSTER_FAULTS = {
    "no meeting behind the init": (
        GEMM, r"cluster_sync\(\);(\s*wait_for_kernel_before)", r"{}\1", "no mbarrier",
    ),
    "a block that ends before the others": (
        GEMM, r"cluster_sync\(\);(\s*\}\s*\}  // namespace)", r"{}\1", "ended too early",
    ),
    "one block told twice": (GEMM, r"empty\(0\), told\)", "empty(0), 0)", ""),
    "x for one block only": (PRODUCE, r"x_mask \|= 1 << [^;]*;", "x_mask = 1;", ""),
}  # fmt: skip


BY_TURNS = 7  # of config.h, 128x128: a tile to each warpgroup
TURN_FAULTS = {
    "the other's stages not skipped": (GEMM, r"ring\.skip\([^;]*;", "", ""),
    "the other's tile not skipped": (GEMM, r"schedule\.next\(\);(\s*ring\.skip)", r"\1", ""),
    "the turn kept": (GEMM, r"mbarrier_arrive\(memory\.turn[^;]*;", "{}", "waits for ever"),
    "both begin": (GEMM, r"turn = warpgroup \^ 1", "turn = 0", "waits for ever"),
}


def outcomes(kernel: Hopper, cluster: tuple[int, int], tile: int) -> dict[tuple[bool, bool], str]:
    """What is wrong by the order of copies and warps; the orders that are right are left out."""
    x, weight = operands(FEATURES, TOKENS, torch.float16, COLUMNS)
    wanted = (x.double() @ weight.double().T).half()
    found = {}
    for order in product([False, True], repeat=2):
        call = Call(x, weight, True, torch.float16)
        late, last_first = order
        wrong = call.run(
            kernel,
            tile,
            cluster,
            multiprocessors=cluster[0] * cluster[1],
            copies_are_late=late,
            last_warp_first=last_first,
        )
        if wrong is not None or not torch.equal(call.out, wanted):
            found[order] = wrong or "another product"
    return found


def faulty(
    hopper: Hopper, folder: Path, files: str, pattern: str, replacement: str, tile: int
) -> Hopper:
    """The kernel with a text replaced wherever it stands."""
    sources, replaced = folder / "csrc", 0
    shutil.copytree(hopper.sources, sources)
    for path in sources.glob(files):
        text, count = re.subn(pattern, replacement, path.read_text())
        path.write_text(text)
        replaced += count
    assert replaced > 0, "the kernel no longer has what this fault replaces: put in another"
    return Hopper(hopper.compiler, folder, sources, hopper.core, tiles=1 << tile)


ALL = [
    pytest.param(*fault, cluster, tile, id=name)
    for faults, cluster, tile in (
        (FAULTS, (1, 1), TILE), (CLUSTER_FAULTS, (2, 1), TILE), (TURN_FAULTS, (1, 1), BY_TURNS),
    )
    for name, fault in faults.items()
]  # fmt: skip


@pytest.mark.parametrize(("files", "pattern", "replacement", "words", "cluster", "tile"), ALL)
def test_a_fault_is_caught(
    hopper, tmp_path, files, pattern, replacement, words, cluster, tile
) -> None:
    found = outcomes(faulty(hopper, tmp_path, files, pattern, replacement, tile), cluster, tile)
    assert found
    assert words in " ".join(found.values())


@pytest.mark.parametrize("tile", [TILE, BY_TURNS])
@pytest.mark.parametrize("cluster", [(1, 1), (2, 1)], ids=str)
def test_without_a_fault_nothing_is_caught(hopper, cluster, tile) -> None:
    assert outcomes(hopper, cluster, tile) == {}
