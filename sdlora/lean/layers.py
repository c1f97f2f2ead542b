"""Layers with weights in the kernel's own order: convolutions over channels-last pixels, 1 × 1 ones as products, Linears; group norm."""

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAST = torch.channels_last
LANES = 8  # channels of a group from which on PyTorch's own channels-last kernel is the faster one
LARGE = 100_000  # numbers of a weight from which on its product gains by packing
FEW = 16  # positions of a row: of fewer, the packed product sums in an order that depends on the number of rows
FAR = 16  # a mean square that is so many variances: less its square it is the variance to fewer digits than fp32 has


class Packed:
    """A layer whose weight is brought into oneDNN's order once instead of at each call. The layer's own weight stays the truth.

    The copy is made at the first call, and anew when the weight was written to or is another. On one row or many, on one thread or
    several, the same kernel sums in the same order: a row's result does not depend on the others to the last bit.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        self.layer = layer
        self.packed: Tensor | None = None
        self.of: tuple[ref[Tensor], int, int] | None = None  # what it was packed from; another weight may come to lie where that one lay

    def current(self, pack: Callable[[Tensor], Tensor]) -> Tensor:
        weight = self.layer.weight
        version, place = weight._version, weight.data_ptr()
        if self.packed is None or self.of is None or self.of[0]() is not weight or self.of[1:] != (version, place):
            self.packed, self.of = pack(weight.detach()), (ref(weight), version, place)
        return self.packed


class Convolution(Packed):
    """A Conv2d, which computes over channels-last pixels."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        self.how = (layer.padding, layer.stride, layer.dilation, layer.groups)

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.current(lambda own: torch.ops.mkldnn._reorder_convolution_weight(own, *self.how, list(x.shape)))
        pixels = x.contiguous(memory_format=LAST)
        return torch.ops.mkldnn._convolution_pointwise(pixels, weight, self.layer.bias, *self.how, "none", [], "")


class Product(Packed):
    """A Linear, or a Conv2d of 1 × 1 as the product that it is. What does not gain by packing is left to PyTorch's own product."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, pack: bool):
        super().__init__(layer)
        self.packs = pack and packable(layer)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, …, in) -> (rows, …, out)."""
        if not self.packs or x[0].numel() < FEW * x.shape[-1]:
            return F.linear(x, self.layer.weight.flatten(1), self.layer.bias)
        weight = self.current(lambda own: torch.ops.mkldnn._reorder_linear_weight(own.flatten(1), x.numel() // x.shape[-1]))
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, self.layer.bias, "none", [], "")


class Pointwise:
    """A Conv2d of 1 × 1: `product` with pixels for rows."""

    def __init__(self, product: Product):
        self.product = product

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x.contiguous(memory_format=LAST).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def packable(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a product with this weight is faster packed. Measured in fp32, with 32 to 2048 positions."""
    return layer.weight.numel() >= LARGE and layer.weight.dtype == torch.float32


class Norm:
    """A GroupNorm (Wu & He 2018, arXiv:1803.08494, eq. 1 to 6) of few channels a group, by the mean and mean square of each channel."""

    def __init__(self, layer: nn.GroupNorm):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 4:  # the rows of a VAE's attention
            return nn.GroupNorm.forward(self.layer, x)
        layer, (n, c, h, w) = self.layer, x.shape
        pixels = x.contiguous(memory_format=LAST).permute(0, 2, 3, 1).view(n, h * w, c)
        grouped = (n, layer.num_groups, -1)
        mean = pixels.mean(1).view(grouped).mean(2, keepdim=True)
        square = (pixels * pixels).mean(1).view(grouped).mean(2, keepdim=True)
        variance = torch.addcmul(square, mean, mean, value=-1)
        far = mean.square() > FAR * variance  # each group by itself: a row does not depend on the others
        if far.any():
            around = pixels - mean.expand(-1, -1, c // layer.num_groups).reshape(n, 1, c)
            variance = torch.where(far, around.square_().mean(1).view(grouped).mean(2, keepdim=True), variance)
        deviation = variance.add_(layer.eps).sqrt_()
        scale = layer.weight.view(1, *grouped[1:]) / deviation
        shift = torch.addcmul(layer.bias.view(1, *grouped[1:]), mean, scale, value=-1)
        return torch.addcmul(shift.view(n, 1, c), pixels, scale.view(n, 1, c)).view(n, h, w, c).permute(0, 3, 1, 2)
