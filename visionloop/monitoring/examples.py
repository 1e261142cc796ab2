"""Which rows a person is shown: spread evenly, so that the choice is neither the first nor the worst ones."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

PER_BATCH = 24
"""Reference samples of each batch whose image is kept for showing."""


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` row numbers, evenly spaced, ascending."""
    return sorted({int(at) for at in np.linspace(0, count - 1, min(count, wanted))}) if count else []


def kept_images(batches: NDArray[np.str_]) -> set[int]:
    """Rows of the reference whose image is kept: PER_BATCH of each batch."""
    of = (np.flatnonzero(batches == name) for name in np.unique(batches))
    return {int(rows[at]) for rows in of for at in spread(len(rows), PER_BATCH)}


def shown(kept: Collection[int], matched: NDArray[np.int64], wanted: int) -> list[int]:
    """Of the rows whose image was kept, those of the matched reference, thinned to `wanted`."""
    known = sorted(set(kept) & set(matched.tolist())) or sorted(kept)
    return [known[at] for at in spread(len(known), wanted)]
