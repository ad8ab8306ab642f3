"""Sparsity: masks by magnitude, pruning, holding zeros through training, measuring."""

from workbench.sparsity.channel_graph import NotTraceableError
from workbench.sparsity.checkpoints import Checkpoint, read_checkpoint, verify_file
from workbench.sparsity.compressed import load_compressed, save_compressed
from workbench.sparsity.eligibility import Layer, explain
from workbench.sparsity.explanation import as_text, totals
from workbench.sparsity.hold import Hold, hold, mask_gradients
from workbench.sparsity.layouts import Layout, layout_of, reflatten
from workbench.sparsity.masks import Masks
from workbench.sparsity.measure import is_nm, layer_sparsity, summary
from workbench.sparsity.names import SparsityError
from workbench.sparsity.patterns import (
    block,
    nm,
    transposable,
    unstructured,
    unstructured_global,
)
from workbench.sparsity.permutation_proof import FunctionChangedError
from workbench.sparsity.permute import LayerMagnitude, PermutationReport, permute
from workbench.sparsity.prune import TWO_OF_FOUR, find_masks, prune, prune_trained_model
from workbench.sparsity.schedule import MaskSchedule, MaskScheduler
from workbench.sparsity.storage import kept_magnitude, storage

__all__ = [
    "TWO_OF_FOUR",
    "Checkpoint",
    "FunctionChangedError",
    "Hold",
    "Layer",
    "LayerMagnitude",
    "Layout",
    "Masks",
    "NotTraceableError",
    "PermutationReport",
    "MaskSchedule",
    "MaskScheduler",
    "SparsityError",
    "as_text",
    "block",
    "explain",
    "find_masks",
    "hold",
    "is_nm",
    "kept_magnitude",
    "layer_sparsity",
    "layout_of",
    "load_compressed",
    "mask_gradients",
    "nm",
    "permute",
    "prune",
    "prune_trained_model",
    "read_checkpoint",
    "reflatten",
    "save_compressed",
    "storage",
    "summary",
    "totals",
    "transposable",
    "unstructured",
    "unstructured_global",
    "verify_file",
]
