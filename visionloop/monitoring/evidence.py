"""Evidently measures every column and makes its page: our distances are registered with it, so the two cannot differ.

Evidently takes the window ("current") first and the reference second. Its `EmbeddingsDrift` is not used: it always
runs t-SNE (30 s and more); principal components are columns like any other.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from visionloop.monitoring.distance import class_distance, ks_distance

KS, CLASSES = "visionloop_ks", "visionloop_classes"


@dataclass(frozen=True)
class Group:
    """The columns of one view, each with its threshold; `class_column` is the one of class names, if any."""

    name: str
    thresholds: dict[str, float]
    class_column: str | None = None


@dataclass(frozen=True)
class Evidence:
    """Column -> distance, per group, and Evidently's page."""

    scores: dict[str, dict[str, float]]
    html: bytes


def measure(window: pd.DataFrame, reference: pd.DataFrame, groups: list[Group], drift_share: float) -> Evidence:
    """Run Evidently's drift preset for each group of columns."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report

    _register()
    classes = [group.class_column for group in groups if group.class_column]
    numbers = [column for group in groups for column in group.thresholds if column not in classes]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=classes)
    report = Report([_preset(group, drift_share) for group in groups], include_tests=False)
    with warnings.catch_warnings():
        # Evidently correlates columns for its page; a column that never varies divides by zero there.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        done = report.run(Dataset.from_pandas(window, definition), Dataset.from_pandas(reference, definition))
        html = done.get_html_str(as_iframe=False).encode()
    found = _scores(done.dict())
    scores = {group.name: {column: found[column] for column in group.thresholds} for group in groups}
    return Evidence(scores, html)


def _preset(group: Group, drift_share: float) -> Any:
    from evidently.presets import DataDriftPreset

    return DataDriftPreset(
        columns=list(group.thresholds),
        drift_share=drift_share,
        per_column_method={column: CLASSES if column == group.class_column else KS for column in group.thresholds},
        per_column_threshold=dict(group.thresholds),
    )


def _scores(snapshot: dict[str, Any]) -> dict[str, float]:
    """Column -> value of the `ValueDrift` metrics in Evidently's answer."""
    drifts = (metric for metric in snapshot["metrics"] if metric["config"]["type"].endswith(":ValueDrift"))
    return {metric["config"]["column"]: float(metric["value"]) for metric in drifts}


def _register() -> None:
    """Teach Evidently our two distances, once a process."""
    from evidently.legacy.calculations.stattests.registry import StatTest, _registered_stat_tests, register_stattest
    from evidently.legacy.core import ColumnType

    if KS in _registered_stat_tests:
        return
    numeric = StatTest(KS, "Kolmogorov-Smirnov distance", [ColumnType.Numerical], 0.1)
    register_stattest(numeric, _ks)
    register_stattest(StatTest(CLASSES, "total variation of the class mix", [ColumnType.Categorical], 0.1), _classes)


def _ks(reference: pd.Series, current: pd.Series, column_type: Any, threshold: float) -> tuple[float, bool]:
    score = ks_distance(reference.to_numpy(), current.to_numpy())
    return score, score >= threshold


def _classes(reference: pd.Series, current: pd.Series, column_type: Any, threshold: float) -> tuple[float, bool]:
    codes, names = pd.factorize(pd.concat([reference, current]))
    first, second = np.split(codes, [len(reference)])
    score = class_distance(first, second, len(names))
    return score, score >= threshold
