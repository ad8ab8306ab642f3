"""Sparsity: masks by magnitude, pruning, holding zeros through training, measuring."""

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
from workbench.sparsity.prune import TWO_OF_FOUR, find_masks, prune, prune_trained_model

__all__ = [
    "TWO_OF_FOUR",
    "Hold",
    "Layer",
    "Layout",
    "Masks",
    "SparsityError",
    "as_text",
    "block",
    "explain",
    "find_masks",
    "hold",
    "is_nm",
    "layer_sparsity",
    "layout_of",
    "mask_gradients",
    "nm",
    "prune",
    "prune_trained_model",
    "reflatten",
    "summary",
    "totals",
    "transposable",
    "unstructured",
    "unstructured_global",
]
