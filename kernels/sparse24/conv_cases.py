"""Random convolutions: kernels of 1 to 7, every stride, padding, dilation, groups, odd images."""

import random
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import conv_candidates, draw, reference
from .cases import Case, finish_of, poisoned, stale
from .conv_weight import SparseConvWeight, pack_conv2d
from .convolution import conv2d
from .geometry import Geometry
from .scales import Scales
from .seam import ACTIVATIONS, ELEMENTS, OUTPUTS, SM80, TYPES


@dataclass(frozen=True)
class ConvCase(Case):
    """One convolution, drawn from its seed; `columns` is the depth of its sums."""

    batch: int = 1
    height: int = 1
    width: int = 1
    channels: int = 4
    groups: int = 1
    geometry: Geometry = Geometry((1, 1))

    @property
    def images(self) -> int:
        """Of what the batch consists."""
        return self.batch

    def drawn(self, seed: int, device: str) -> tuple[Tensor, Tensor]:
        """Weight [out, in / groups, height, width] and x [batch, height, width, in]."""
        shape = (self.rows, self.channels // self.groups, *self.geometry.kernel)
        weight = draw.kernel_2to4(shape, self.dtype, seed, device, holes=0.1)
        pixels = self.batch * self.height * self.width
        x = draw.operand(pixels, self.channels, self.dtype, seed + 2, device)
        image = self.batch, self.height, self.width, self.channels
        return weight, poisoned(x, self.extra).view(image)

    def weight(self, packed: Tensor) -> SparseConvWeight:
        """The packed bytes as a weight."""
        shape = (self.rows, self.channels // self.groups, *self.geometry.kernel)
        return SparseConvWeight(packed, shape, self.groups, self.dtype, self.sparse)

    def pack(self, weight: Tensor) -> Tensor:
        """The bytes of a weight, packed by the device."""
        return pack_conv2d(weight, self.groups, self.sparse).packed

    def sums(self, x: Tensor, weight: Tensor, precision: torch.dtype) -> Tensor:
        """The sums of the reference."""
        return reference.convolution_sums(x, weight, self.geometry, self.groups, precision)

    def dense_sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """In float32 by the device's dense product of the gathered pixels, group by group.

        As of a product, on tensor cores. Not by its convolution, which has no float32 result of
        16-bit operands: of float32 ones its sums err less.
        """
        if not x.is_cuda and self.plan != SM80:
            return self.sums(x, weight, torch.float32)
        own = self.channels // self.groups
        images, kernels = x.split(own, 3), weight.permute(0, 2, 3, 1).flatten(1).chunk(self.groups)
        pairs = zip(images, kernels, strict=True)
        gathered = [(conv_candidates.windows(i, self.geometry, own), k) for i, k in pairs]
        return torch.cat([super(ConvCase, self).dense_sums(*pair) for pair in gathered], 1)

    def product(self, given: dict, packed: Tensor, some: slice = slice(None)) -> Tensor:
        """The op's result for some of the images, in memory that held poison before."""
        x, residual, pixels = given["x"][some], given["residual"], self.tokens // self.batch
        stale(self, len(x) * pixels, x.device)
        if residual is not None and some != slice(None):
            residual = residual[some.start * pixels : some.stop * pixels]
        numbers = TYPES[self.out], ACTIVATIONS[self.activation]
        scales = given["residual_scale"], given["out_scale"]
        finish = given["bias"], residual, given["scale"], *numbers, *scales
        form = self.weight(packed).form
        return conv_candidates.ours(x, packed, form, finish, self.geometry, self.plan)

    def public(self, given: dict, packed: Tensor) -> Tensor:
        """The same by `conv2d`, of contiguous [batch, in, height, width], as rows."""
        scales = None if given["scale"] is None else Scales(weight=given["scale"])
        residual, out = given["residual"], self.geometry.out(self.height, self.width)
        if residual is not None:
            residual = (residual * 0.5).to(self.out).reshape(self.batch, *out, self.rows)
            residual = residual.permute(0, 3, 1, 2)
        call = partial(conv2d, activation=self.activation, residual=residual, out_dtype=self.out)
        image = given["x"].permute(0, 3, 1, 2).contiguous()
        _, *walk = self.geometry
        with torch.no_grad():
            found = call(image, self.weight(packed), given["bias"], *walk, scales=scales)
        return found.permute(0, 2, 3, 1).reshape(self.tokens, self.rows)


def conv_case_of(seed: int) -> ConvCase:
    """The case of a seed; kernels larger than the padded image are drawn again."""
    pick = random.Random(seed)
    dtype = pick.choice(ELEMENTS)
    out = pick.choice(OUTPUTS[dtype])
    groups, channels, rows = _groups(pick, dtype)
    height, width, geometry = _image(pick)
    batch = pick.choice([1, 1, 2, 3, 5])
    down, right = geometry.out(height, width)
    kernel = geometry.kernel
    return ConvCase(
        seed=seed,
        tokens=batch * down * right,
        rows=rows,
        columns=kernel[0] * kernel[1] * channels // groups,
        dtype=dtype,
        out=out,
        **finish_of(pick, dtype, out),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        groups=groups,
        geometry=geometry,
    )


def _groups(pick: random.Random, dtype: torch.dtype) -> tuple[int, int, int]:
    """Groups, all channels and all features: one group of any size, or some that are packed."""
    if pick.random() < 0.6:
        return 1, 4 * pick.choice([1, 16, 32, pick.randint(1, 50)]), pick.randint(1, 200)
    block = 128 // dtype.itemsize
    own = pick.choice([4, 8, 16, 32, 64, 128])
    merged = max(1, block // own)
    groups = merged * pick.choice([1, 2, 3])
    features = own if merged * own % 64 == 0 else 64 // merged
    return groups, groups * own, groups * features * pick.choice([1, 1, 2])


def _image(pick: random.Random) -> tuple[int, int, Geometry]:
    """Height, width and what walks over them, with at least one pixel in the result."""
    while True:
        pairs = [tuple(pick.choice(sizes) for _ in range(2)) for sizes in _SIZES]
        geometry = Geometry(*pairs)
        height, width = pick.randint(1, 14), pick.randint(1, 14)
        walks = zip((height, width), *geometry, strict=True)
        if all(size + 2 * edge > spread * (k - 1) for size, k, _, edge, spread in walks):
            return height, width, geometry


_SIZES = ((1, 1, 2, 3, 3, 3, 4, 5, 6, 7), (1, 1, 1, 2, 3, 4), (0, 0, 1, 1, 2, 3), (1, 1, 1, 2, 3))
