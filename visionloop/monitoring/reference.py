"""Which samples of the champion's snapshot stand for what it was trained for: a bounded, stratified, seeded choice."""

import numpy as np
from numpy.typing import NDArray

MAX_SAMPLES = 5_000


def choose(labels: NDArray[np.str_], batches: NDArray[np.str_], sample_ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Row numbers of at most MAX_SAMPLES samples, ascending.

    Every batch gets an equal part as far as it has samples (a small batch from a new camera is kept whole), and within
    a batch the classes keep their shares. Sample ids are digests, so their order is a seeded shuffle by itself.
    """
    names, counts = np.unique(batches, return_counts=True)
    quota = dict(zip(names.tolist(), fill(counts.tolist(), MAX_SAMPLES), strict=True))
    chosen = [_stratified(np.flatnonzero(batches == name), labels, sample_ids, quota[name]) for name in names.tolist()]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def fill(sizes: list[int], budget: int) -> list[int]:
    """Divide a budget equally; what a small part cannot take goes to the larger ones (water-filling)."""
    given = [0] * len(sizes)
    left = min(budget, sum(sizes))
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda at: sizes[at])):
        given[index] = min(sizes[index], left // (len(sizes) - place))
        left -= given[index]
    return given


def _stratified(
    rows: NDArray[np.int64], labels: NDArray[np.str_], sample_ids: NDArray[np.str_], count: int
) -> NDArray[np.int64]:
    """Ranks within the class, divided by the class's size, interleave the classes in their own proportions."""
    order = rows[np.lexsort((sample_ids[rows], labels[rows]))]
    _, start, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    within = np.arange(len(order)) - np.repeat(start, sizes)
    place = (within + 0.5) / np.repeat(sizes, sizes)
    return order[np.argsort(place, kind="stable")][:count]
