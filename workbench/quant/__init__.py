"""INT8: fold norms, observe activations, choose ranges, quantize, simulate, fine-tune, export."""

from workbench.quant.calibrate import Observing, ranges
from workbench.quant.convert import Quantized, quantize, zeros
from workbench.quant.error import Measuring
from workbench.quant.finetune import Finetuning
from workbench.quant.fold import Following, fold, strip
from workbench.quant.layers import QuantError, layers
from workbench.quant.observe import CALIBRATORS
from workbench.quant.simulate import Simulated

__all__ = [
    "CALIBRATORS",
    "Finetuning",
    "Following",
    "Measuring",
    "Observing",
    "QuantError",
    "Quantized",
    "Simulated",
    "fold",
    "layers",
    "quantize",
    "ranges",
    "strip",
    "zeros",
]
