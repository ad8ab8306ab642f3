"""Gradients of the product: for x, bias and residual by autograd, for the weight by a function."""

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from . import conv_layout, layout, ops
from .conv_candidates import ours
from .conv_weight import Form
from .geometry import Geometry
from .seam import COST_MODEL, DTYPES

DIFFERENTIABLE = (torch.float16, torch.bfloat16)


class Linear(torch.autograd.Function):
    """The op without activation; the gradient for x is a dense product with the unpacked weight."""

    @staticmethod
    def forward(
        ctx,  # noqa: ANN001 - torch's own
        x: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        scale: Tensor | None,
        out_features: int,
        in_features: int,
        element: int,
        out_type: int,
        residual_scale: float,
        sparse: bool,
        reference: bool,
    ) -> Tensor:
        """The result of the op."""
        ctx.save_for_backward(packed, scale)
        ctx.weight = out_features, in_features, element, sparse, reference
        ctx.residual_scale = residual_scale
        ctx.bias_dtype = None if bias is None else bias.dtype
        numbers = (out_features, in_features, element, out_type, 0, residual_scale, 1.0, sparse)
        run = ops.linear_reference if reference else ops.linear
        return run(x, packed, bias, residual, scale, *numbers, COST_MODEL)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        """Gradients of x, bias and residual, in the types of each."""
        packed, scale = ctx.saved_tensors
        rows, columns, element, sparse, reference = ctx.weight
        for_x = for_bias = for_residual = None
        if ctx.needs_input_grad[0]:
            dtype = DTYPES[element]
            unpack = layout.unpack if reference else ops.unpack
            weight = unpack(packed, rows, columns, dtype if reference else element, sparse)
            scaled = grad if scale is None else grad * scale
            for_x = scaled.to(dtype) @ weight
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        if ctx.needs_input_grad[3]:
            for_residual = grad * ctx.residual_scale
        return for_x, None, for_bias, for_residual, *[None] * 8


class Convolution(torch.autograd.Function):
    """The op without activation; the gradient for x is torch's, of the unpacked weight."""

    @staticmethod
    def forward(
        ctx,  # noqa: ANN001 - torch's own
        x: Tensor,
        packed: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        scale: Tensor | None,
        out_type: int,
        residual_scale: float,
        geometry: Geometry,
        form: Form,
    ) -> Tensor:
        """The result [pixels, out] of x [batch, height, width, channels]."""
        ctx.save_for_backward(packed, scale)
        ctx.geometry, ctx.form, ctx.shape = geometry, form, x.shape
        ctx.residual_scale = residual_scale
        ctx.bias_dtype = None if bias is None else bias.dtype
        finish = bias, residual, scale, out_type, 0, residual_scale, 1.0
        return ours(x, packed, form, finish, geometry)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN001
        """Gradients of x, bias and residual, in the types of each."""
        packed, scale = ctx.saved_tensors
        for_x = for_bias = for_residual = None
        if ctx.needs_input_grad[0]:
            scaled = grad if scale is None else grad * scale
            for_x = _image_gradient(scaled, packed, ctx.geometry, ctx.form, ctx.shape)
        if ctx.needs_input_grad[2]:
            for_bias = grad.sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        if ctx.needs_input_grad[3]:
            for_residual = grad * ctx.residual_scale
        return for_x, None, for_bias, for_residual, *[None] * 5


def _image_gradient(
    grad: Tensor, packed: Tensor, geometry: Geometry, form: Form, shape: torch.Size
) -> Tensor:
    """The gradient of x, of the shape [batch, height, width, channels], for that of the result."""
    dtype, places = DTYPES[form.element], geometry.kernel[0] * geometry.kernel[1]
    block = layout.block_k(dtype)
    columns = places * -(-form.channels // block) * block
    sizes = form.features, columns
    if form.backend == "reference":
        matrix = layout.unpack(packed, *sizes, dtype, form.sparse)
    else:
        matrix = ops.unpack(packed, *sizes, form.element, form.sparse)
    weight = conv_layout.merged(matrix, geometry.kernel, form.channels)
    batch, height, width, channels = shape
    out = geometry.out(height, width)
    image = grad.to(dtype).view(batch, *out, form.features).permute(0, 3, 1, 2)
    found = conv2d_input(
        (batch, channels, height, width),
        weight,
        image,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        form.groups,
    )
    return found.permute(0, 2, 3, 1)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The gradient [out, in] of a dense weight: grad^T @ x, summed over all leading dimensions.

    The plain path for training: keep the dense weight, step it with this and pack it again. With
    the dense `weight` given, the gradient is zero where the weight is, so that 2:4 holds.
    """
    product = grad.flatten(0, -2).T @ x.flatten(0, -2).to(grad.dtype)
    return product if weight is None else product * (weight != 0)
