"""INT8: observe activations, choose ranges, quantize weights, simulate, count zeros."""

from workbench.quant.calibrate import layers, observing, ranges
from workbench.quant.convert import Quantized, quantize, simulated, zeros

__all__ = ["Quantized", "layers", "observing", "quantize", "ranges", "simulated", "zeros"]
