"""The drift report's figures as JSON, for programs that want more than the record."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionloop.monitoring.drift import PREDICTED, ColumnDrift, Comparison

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def to_json(comparison: Comparison, classes: list[str], **about: Any) -> bytes:
    """Verdict, views, mix of conditions, and per column distance, threshold and quantiles (class shares)."""
    return json.dumps(
        {
            **about,
            "drifted": comparison.drifted,
            "auc": round(comparison.auc, 4),
            "conditions": {name: round(share, 4) for name, share in comparison.match.shares.items()},
            "views": [view.model_dump(mode="json") for view in comparison.views],
            "columns": [_column(column, classes) for column in comparison.columns],
        },
        indent=1,
        default=str,
    ).encode()


def _column(column: ColumnDrift, classes: list[str]) -> dict[str, Any]:
    parts = {"reference": column.reference, "window": column.window}
    return {
        "view": column.view,
        "name": column.name,
        "distance": round(column.score, 5),
        "threshold": round(column.threshold, 5),
        "drifted": column.drifted,
        **{side: _summary(values, column.name, classes) for side, values in parts.items()},
    }


def _summary(values: NDArray[np.generic], name: str, classes: list[str]) -> dict[str, float]:
    if name == PREDICTED:
        shares = np.bincount(values.astype(int), minlength=len(classes)) / len(values)
        return {label: round(float(share), 5) for label, share in zip(classes, shares, strict=True)}
    numbers = values.astype(float)
    quantiles = {
        f"q{100 * q:02.0f}": float(value) for q, value in zip(QUANTILES, np.quantile(numbers, QUANTILES), strict=True)
    }
    return {"mean": float(numbers.mean()), "std": float(numbers.std()), **quantiles}
