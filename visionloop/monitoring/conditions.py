"""Which known conditions (batches that the champion learned from) a window is made of, and the reference to match.

A model that was trained on two cameras sees any mix of both in production, and a mix is not drift. So the window is
compared with the reference's samples in the window's own mix: a classifier tells the batches apart, and expectation
maximisation on its answers gives the shares (Saerens, Latinne and Decaestecker 2002).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from visionloop.serving.captured import Matrix

MAX_CONDITIONS = 12
"""The newest batches are told apart, older ones count as one condition."""
MIN_SAMPLES = 30
"""A batch with fewer reference samples is no condition of its own."""
MIN_SHARE = 0.02
"""A condition with a smaller share of the window is left out of the mix."""
MIN_MATCHED = 500
"""The matched reference is not made smaller than this for the sake of an exact mix."""
OTHERS = "earlier batches"


@dataclass(frozen=True)
class Match:
    """The window's mix, and the rows of the reference that have the same one."""

    shares: dict[str, float]
    """Condition -> share of the window, the largest first."""
    rows: NDArray[np.int64]


def match(reference: Matrix, window: Matrix, batches: NDArray[np.str_], order: list[str], seed: int) -> Match:
    """Estimate the mix from features [N, F] and [M, F]; `batches` names each reference row, `order` is oldest first."""
    conditions = _conditions(batches, order)
    names = sorted(set(conditions.tolist()))
    if len(names) == 1:
        return Match({names[0]: 1.0}, np.arange(len(reference)))
    shares = _mix(reference, window, conditions, names)
    shares = np.where(shares < MIN_SHARE, 0.0, shares)
    shares /= shares.sum()
    rows = _draw(conditions, names, shares, seed)
    ranked = sorted(zip(names, shares.tolist(), strict=True), key=lambda item: -item[1])
    return Match({name: share for name, share in ranked if share > 0.0}, rows)


def _conditions(batches: NDArray[np.str_], order: list[str]) -> NDArray[np.object_]:
    counts = {name: int((batches == name).sum()) for name in order}
    large = [name for name in order if counts[name] >= MIN_SAMPLES][-MAX_CONDITIONS:]
    named = batches.astype(object)
    others = ~np.isin(batches, large)
    if 0 < others.sum() < MIN_SAMPLES and large:
        named[others] = large[0]
    else:
        named[others] = OTHERS
    return named


def _mix(reference: Matrix, window: Matrix, conditions: NDArray[np.object_], names: list[str]) -> NDArray[np.float64]:
    mean, scale = reference.mean(0), reference.std(0) + 1e-6
    known = LogisticRegression(class_weight="balanced", C=0.1, max_iter=200)
    known.fit((reference - mean) / scale, conditions.astype(str))
    assert list(known.classes_) == names
    likelihood = known.predict_proba(np.clip((window - mean) / scale, -10.0, 10.0))
    shares = np.full(len(names), 1.0 / len(names))
    for _ in range(200):
        weighted = likelihood * shares
        shares = (weighted / weighted.sum(1, keepdims=True)).mean(0)
    return np.asarray(shares, np.float64)


def _draw(
    conditions: NDArray[np.object_], names: list[str], shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """As many reference rows as the mix allows, drawn without replacement."""
    rng = np.random.default_rng(seed)
    of = [np.flatnonzero(conditions == name) for name in names]
    sizes = np.array([len(rows) for rows in of])
    used = shares > 0.0
    total = max(MIN_MATCHED, int((sizes[used] / shares[used]).min()))
    wanted = np.minimum(sizes, np.rint(shares * total).astype(int))
    drawn = [rng.permutation(rows)[:count] for rows, count in zip(of, wanted, strict=True)]
    return np.sort(np.concatenate(drawn))
