"""Order and augmentation: any number of workers sees together the batches that one would see alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visionloop.errors import DataError
from visionloop.training.augment import DRAWS, GREY, augment
from visionloop.training.order import Share, shares, steps_per_epoch


def joined(samples: int, batch_size: int, workers: int, epoch: int = 1) -> list[Share]:
    """The global batches, put together from all workers' parts."""
    parts = [
        list(shares(samples, batch_size, seed=5, epoch=epoch, rank=rank, workers=workers)) for rank in range(workers)
    ]
    return [
        Share(torch.cat([part.index for part in step]), torch.cat([part.draws for part in step]))
        for step in zip(*parts, strict=True)
    ]


@given(samples=st.integers(8, 300), batch=st.sampled_from([4, 8, 24]), workers=st.sampled_from([1, 2, 4]))
def test_workers_divide_the_batches_of_one(samples: int, batch: int, workers: int) -> None:
    alone, together = joined(samples, batch, 1), joined(samples, batch, workers)
    if min(batch, samples) % workers == 0:
        assert all(torch.equal(a.index, b.index) for a, b in zip(alone, together, strict=True))
        assert all(torch.equal(a.draws, b.draws) for a, b in zip(alone, together, strict=True))
    seen = torch.cat([step.index for step in together])
    assert len(seen.unique()) == len(seen) and int(seen.min()) >= 0 and int(seen.max()) < samples
    assert len(together) == steps_per_epoch(samples, batch, workers)


def test_epochs_differ_and_repeat() -> None:
    first, again, second = joined(64, 16, 1), joined(64, 16, 1), joined(64, 16, 1, epoch=2)
    assert torch.equal(first[0].index, again[0].index)
    assert not torch.equal(first[0].index, second[0].index)


@pytest.mark.parametrize(("samples", "workers", "fits"), [(2, 2, True), (1, 2, False), (1, 1, True), (0, 1, False)])
def test_fewer_samples_than_workers_is_a_fault(samples: int, workers: int, fits: bool) -> None:
    if fits:
        assert steps_per_epoch(samples, 8, workers) == 1
    else:
        with pytest.raises(DataError, match="lower workers"):
            steps_per_epoch(samples, 8, workers)


def ramp() -> torch.Tensor:
    """[2, 28, 28, 1] whose value tells the place: 5 * row + column."""
    return (5 * torch.arange(28)[:, None] + torch.arange(28)).to(torch.uint8).expand(2, 28, 28)[..., None]


def draws(**at: float) -> torch.Tensor:
    names = ("flip", "y", "x", "erase", "side", "top", "left")
    assert len(names) == DRAWS
    return torch.tensor([[at.get(name, 0.5) for name in names]] * 2)


def test_flip_below_one_half() -> None:
    assert torch.equal(augment(ramp(), draws(flip=0.499), ["flip"]), ramp().flip(2))
    assert torch.equal(augment(ramp(), draws(flip=0.5), ["flip"]), ramp())


def test_shift_moves_by_up_to_two_of_28_and_repeats_the_edge() -> None:
    down = augment(ramp(), draws(y=0.999), ["shift"])  # content moves up by 2
    assert torch.equal(down[:, :26], ramp()[:, 2:]) and torch.equal(down[:, 27], ramp()[:, 27])
    left = augment(ramp(), draws(x=0.0), ["shift"])
    assert torch.equal(left[:, :, 2:], ramp()[:, :, :26]) and torch.equal(left[:, :, 0], ramp()[:, :, 0])
    assert torch.equal(augment(ramp(), draws(), ["shift"]), ramp())


def test_erase_greys_a_square_on_one_side_of_its_chance() -> None:
    whole = torch.zeros(2, 28, 28, 1, dtype=torch.uint8)
    erased = augment(whole, draws(erase=0.249, side=1.0, top=0.0, left=0.0), ["erase"])
    assert (erased[:, :12, :12] == GREY).all() and (erased != 0).sum() == 2 * 12 * 12  # 0.4 * 28 = 11.2
    assert torch.equal(augment(whole, draws(erase=0.25), ["erase"]), whole)


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(augment(ramp(), draws(flip=0.0, erase=0.0, y=0.0), []), ramp())
