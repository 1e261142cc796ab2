"""Augmentation of uint8 batches on tensors, from random numbers that the caller drew. Flip and shift are one gather."""

from collections.abc import Collection

import torch
from torch import Tensor

DRAWS = 7
"""Random numbers for each sample: flip, shift y, shift x, erase or not, erased side, its y, its x."""
SHIFT = 1 / 14
"""Largest shift as a share of the side (2 pixels of 28); the edge is repeated."""
ERASE_CHANCE = 0.25
ERASE_SIDE = (0.15, 0.4)
"""Side of the erased square as a share of the image's (random erasing, Zhong et al. 2020, arXiv:1708.04896)."""
GREY = 128


def augment(images_BHWC: Tensor, draws: Tensor, kinds: Collection[str]) -> Tensor:
    """A new uint8 batch of the same shape; `draws` is [B, DRAWS] in [0, 1), on the same device."""
    images = _moved(images_BHWC, draws, kinds) if {"flip", "shift"} & set(kinds) else images_BHWC
    return _erased(images, draws) if "erase" in kinds else images


def _moved(images: Tensor, draws: Tensor, kinds: Collection[str]) -> Tensor:
    count, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device).expand(count, height)
    columns = torch.arange(width, device=images.device).expand(count, width)
    if "flip" in kinds:
        columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns)
    if "shift" in kinds:
        rows = (rows + _offset(draws[:, 1:2], height)).clamp(0, height - 1)
        columns = (columns + _offset(draws[:, 2:3], width)).clamp(0, width - 1)
    which = torch.arange(count, device=images.device)[:, None, None]
    return images[which, rows[:, :, None], columns[:, None, :]]


def _offset(draw: Tensor, side: int) -> Tensor:
    reach = max(1, round(side * SHIFT))
    return (draw * (2 * reach + 1)).floor().long() - reach


def _erased(images: Tensor, draws: Tensor) -> Tensor:
    _, height, width, _ = images.shape
    smallest, largest = ERASE_SIDE
    side = (smallest + draws[:, 4] * (largest - smallest))[:, None]
    top, left = draws[:, 5:6] * (1 - side), draws[:, 6:7] * (1 - side)
    y = torch.arange(height, device=images.device)[None] / height
    x = torch.arange(width, device=images.device)[None] / width
    inside = ((y >= top) & (y < top + side))[:, :, None] & ((x >= left) & (x < left + side))[:, None, :]
    chosen = (draws[:, 3] < ERASE_CHANCE)[:, None, None]
    return torch.where((inside & chosen)[..., None], torch.full_like(images, GREY), images)
