"""Is the packaged model the trained one? Probabilities side by side on real samples."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from visionloop.errors import StageError
from visionloop.records import Parity, SliceParity

MAX_ABS_DIFFERENCE = 1e-3
"""Of a probability. Two float32 implementations of the same graph differ by about 1e-6; 1e-3 is another model."""
MAX_DISAGREEMENT = 0.001
"""Share of samples whose decision may differ (ties, where two classes are equally likely)."""
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


def compare(trained: NDArray[np.float32], packaged: NDArray[np.float32]) -> Parity:
    """Differences of two sets of probabilities [N, K] of the same samples, N at least 1."""
    difference = np.abs(trained.astype(np.float64) - packaged.astype(np.float64)).max(axis=1)
    return Parity(
        samples=len(trained),
        max_abs_difference=float(difference.max()),
        p99_abs_difference=float(np.percentile(difference, 99)),
        disagreements=int((trained.argmax(1) != packaged.argmax(1)).sum()),
    )


def report(
    trained: NDArray[np.float32], packaged: NDArray[np.float32], slices: Mapping[str, NDArray[np.bool_]]
) -> Parity:
    """`compare` with quantiles of the differences, and the decisions on each slice (masks [N]) that has samples."""
    difference = np.abs(trained.astype(np.float64) - packaged.astype(np.float64)).max(axis=1)
    differs = trained.argmax(1) != packaged.argmax(1)
    parts = [
        SliceParity(name=name, samples=int(mask.sum()), disagreements=int((differs & mask).sum()))
        for name, mask in slices.items()
        if mask.any()
    ]
    quantiles = {name: float(np.quantile(difference, share)) for name, share in QUANTILES.items()}
    return compare(trained, packaged).model_copy(update={"quantiles": quantiles, "slices": parts})


def require(parity: Parity) -> Parity:
    """Return it, or raise StageError when the packaged model is not the trained one."""
    allowed = MAX_DISAGREEMENT * parity.samples
    if parity.disagreements > allowed or not parity.max_abs_difference <= MAX_ABS_DIFFERENCE:
        raise StageError(
            f"the ONNX model is not the trained one: {parity.disagreements} of {parity.samples} decisions differ "
            f"({allowed:.0f} may), probabilities by up to {parity.max_abs_difference:.2g} "
            f"({MAX_ABS_DIFFERENCE:g} may): look for an operation that the exporter translates differently"
        )
    return parity
