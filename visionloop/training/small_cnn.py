"""A convolutional network of about 157,000 parameters for small images, without batch statistics.

Its convolutions standardise their weights instead of normalising activations (scaled weight standardisation, Brock et
al. 2021, arXiv:2101.08692). So each sample's answer is a function of that sample alone: the gradients of two workers
add up to one worker's, training and serving are the same graph, and on two cores an epoch takes half the time that
group normalisation takes.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.project import ImageShape

EMBEDDING = 32
WIDTHS = (32, 64, 64)
CELLS = 7
"""The last feature map is brought to 7 x 7, which is what 28 x 28 pixels give."""
RELU_GAIN = 1.7139588594436646
"""sqrt(2 / (1 - 1/pi)): keeps the variance through a ReLU."""


class SmallCnn(nn.Module):
    """[B, C, H, W] float -> embedding [B, 32]."""

    features_out = EMBEDDING

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        first, second, third = WIDTHS
        stem = max(1, min(shape.height, shape.width) // 28)  # larger images are thinned out at once
        self.features = nn.Sequential(
            StandardizedConv2d(shape.channels, first, stride=stem),
            nn.ReLU(),
            nn.MaxPool2d(2),
            StandardizedConv2d(first, second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            StandardizedConv2d(second, third),
            nn.ReLU(),
        )
        with torch.no_grad():
            probe = self.features(torch.zeros(1, shape.channels, shape.height, shape.width))
        self.pool = nn.Identity() if tuple(probe.shape[2:]) == (CELLS, CELLS) else nn.AdaptiveAvgPool2d(CELLS)
        self.embed = nn.Linear(third * CELLS * CELLS, EMBEDDING)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """The embedding, never negative."""
        return F.relu(self.embed(self.pool(self.features(image_BCHW)).flatten(1)))


class StandardizedConv2d(nn.Conv2d):
    """3 x 3 convolution whose weights have mean 0 and variance gain^2 / fan-in in each output channel."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, 3, stride, 1)
        self.gain = nn.Parameter(torch.ones(channels_out, 1, 1, 1))
        self._scale = RELU_GAIN * (channels_in * 9) ** -0.5
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Convolve with the standardised weights."""
        return F.conv2d(image_BCHW, self._standardized(), self.bias, self.stride, self.padding)

    def plain(self) -> nn.Conv2d:
        """The ordinary convolution that computes the same: what is served."""
        channels_out, channels_in = self.weight.shape[:2]
        conv = nn.Conv2d(channels_in, channels_out, 3, int(self.stride[0]), 1)
        assert conv.bias is not None and self.bias is not None
        conv.weight.data, conv.bias.data = self._standardized().detach().contiguous(), self.bias.detach().clone()
        return conv

    def _standardized(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight: Tensor = (self.weight - mean) * torch.rsqrt(variance + 1e-6) * (self._scale * self.gain)
        return weight


def folded(model: nn.Module) -> nn.Module:
    """A copy in which each standardised convolution is a plain one; other models are copied as they are."""
    return _fold(copy.deepcopy(model))


def _fold(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        module.add_module(name, child.plain() if isinstance(child, StandardizedConv2d) else _fold(child))
    return module
