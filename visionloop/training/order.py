"""Which samples make each global batch, and which of them each worker takes: the same for any number of workers.

Every random number of an epoch is a function of seed and epoch alone, so a run that goes on from a checkpoint sees the
batches that it would have seen, and two workers see together what one would have seen alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from visionloop.errors import DataError
from visionloop.training.augment import DRAWS


@dataclass(frozen=True)
class Share:
    """One worker's part of a global batch: `index` [b] of samples, `draws` [b, DRAWS] in [0, 1) for augmentation."""

    index: Tensor
    draws: Tensor


def steps_per_epoch(samples: int, batch_size: int, workers: int) -> int:
    """How many global batches an epoch has; the incomplete last one is left out (another one every epoch)."""
    return samples // _global_batch(samples, batch_size, workers)


def shares(samples: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, workers: int = 1) -> Iterator[Share]:
    """The epoch's batches, cut to one worker's part."""
    size = _global_batch(samples, batch_size, workers)
    part = size // workers
    generator = torch.Generator().manual_seed(seed_of(seed, epoch))
    order = torch.randperm(samples, generator=generator)
    for step in range(samples // size):
        batch = order[step * size : (step + 1) * size]
        draws = torch.rand(size, DRAWS, generator=generator)
        mine = slice(rank * part, (rank + 1) * part)
        yield Share(batch[mine], draws[mine])


def seed_of(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for one epoch on one worker."""
    return (seed * 1_000_003 + epoch * 1_009 + rank) % 2**63


def _global_batch(samples: int, batch_size: int, workers: int) -> int:
    size = min(batch_size, samples) // workers * workers
    if not size:
        raise DataError(f"{samples} training samples are too few for {workers} workers: add data or lower workers")
    return size
