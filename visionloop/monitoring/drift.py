"""Reference against window in three views: what images look like, what the model makes of them, what it answers.

A view is drifted when at least `drift_share` of its columns are; the window is when at least `min_views` views are.
A column is drifted when its distance reaches a threshold that neither chance (Bonferroni over the view's columns) nor
a difference too small to matter can reach (`distance.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from visionloop.monitoring.conditions import Match, match
from visionloop.monitoring.distance import class_threshold, ks_threshold
from visionloop.monitoring.evidence import Evidence, Group, measure
from visionloop.monitoring.samples import Samples
from visionloop.project import Monitoring
from visionloop.records import DriftView
from visionloop.serving.captured import Matrix

COMPONENTS = 16
PREDICTED = "predicted class"
SEED = 0


@dataclass(frozen=True)
class Reference:
    """What the champion was trained for, and which batch each sample came with (`order`: oldest batch first)."""

    samples: Samples
    batches: NDArray[np.str_]
    order: list[str]


@dataclass(frozen=True)
class ColumnDrift:
    """One column: its distance, and the values behind it (class indices for the predicted class)."""

    view: str
    name: str
    score: float
    threshold: float
    reference: NDArray[Any]
    window: NDArray[Any]

    @property
    def drifted(self) -> bool:
        """At or above the threshold."""
        return self.score >= self.threshold


@dataclass(frozen=True)
class Comparison:
    """All that a drift report says."""

    views: list[DriftView]
    columns: list[ColumnDrift]
    match: Match
    auc: float
    """How well a linear classifier tells window from reference: 0.5 not at all, 1.0 always. Severity, no threshold."""
    drifted: bool
    evidently_html: bytes


Measure = Callable[[pd.DataFrame, pd.DataFrame, list[Group], float], Evidence]
"""Window, reference, groups of columns, drift share -> distances and a page."""


def compare(
    reference: Reference, window: Samples, classes: list[str], policy: Monitoring, measure: Measure = measure
) -> Comparison:
    """Match the reference to the window's conditions, then measure every column. Needs samples on both sides."""
    components = _Components(reference.samples.embedding)
    features = [_features(part, components) for part in (reference.samples, window)]
    matched = match(features[0], features[1], reference.batches, reference.order, SEED)
    known = reference.samples.take(matched.rows)
    tables = [_table(part, components, classes) for part in (known, window)]
    groups = _groups(tables[0], tables[1], classes, policy)
    evidence = measure(tables[1], tables[0], groups, policy.drift_share)
    auc = _auc(features[0][matched.rows], features[1])
    views = [_view(group, evidence.scores[group.name], policy) for group in groups]
    columns = [_column(group, name, evidence.scores, tables, classes) for group in groups for name in group.thresholds]
    drifted = sum(view.drifted for view in views) >= policy.min_views
    return Comparison(views, columns, matched, auc, drifted, evidence.html)


class _Components:
    """The principal components of the reference's embeddings, at most COMPONENTS of them."""

    def __init__(self, embedding: Matrix) -> None:
        self._mean = embedding.mean(0)
        centred = (embedding - self._mean).astype(np.float64)
        variance, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(centred) - 1))
        kept = int(np.clip((variance > 1e-12 * max(variance.max(), 1e-300)).sum(), 1, COMPONENTS))
        self._vectors = vectors[:, ::-1][:, :kept]

    def __call__(self, embedding: Matrix) -> Matrix:
        """[N, D] -> [N, at most COMPONENTS], the largest first."""
        reduced: Matrix = ((embedding - self._mean) @ self._vectors).astype(np.float32)
        return reduced


def _features(samples: Samples, components: _Components) -> Matrix:
    """What classifiers tell conditions apart by."""
    return np.concatenate([samples.properties, components(samples.embedding)], axis=1)


def _table(samples: Samples, components: _Components, classes: list[str]) -> pd.DataFrame:
    """All columns of all views."""
    reduced = components(samples.embedding)
    ranked = np.sort(samples.probabilities, axis=1)
    safe = np.clip(samples.probabilities, 1e-12, 1.0)
    columns: dict[str, object] = {
        name.replace("_", " "): samples.properties[:, at] for at, name in enumerate(samples.property_names)
    }
    columns |= {f"component {at + 1:02d}": reduced[:, at] for at in range(reduced.shape[1])}
    columns["confidence"] = ranked[:, -1]
    columns["margin"] = ranked[:, -1] - ranked[:, -2]
    columns["uncertainty"] = -(safe * np.log2(safe)).sum(1)
    columns[PREDICTED] = np.asarray(classes, object)[samples.probabilities.argmax(1)]
    return pd.DataFrame(columns)


def _groups(reference: pd.DataFrame, window: pd.DataFrame, classes: list[str], policy: Monitoring) -> list[Group]:
    sizes = len(reference), len(window)
    names = [str(name) for name in reference.columns]
    embedding = [name for name in names if name.startswith("component ")]
    prediction = ["confidence", "margin", "uncertainty"]
    image = [name for name in names if name not in {*embedding, *prediction, PREDICTED}]
    # A column that never varies (dark_share of bright scenes) is kept: it says something when it begins to vary.
    groups = [
        Group(name, _numeric(columns, sizes, policy)) for name, columns in (("image", image), ("embedding", embedding))
    ]
    significance = policy.significance / (len(prediction) + 1)
    mix = class_threshold(_codes(reference, classes), _codes(window, classes), len(classes), significance)
    thresholds = {name: ks_threshold(*sizes, significance) for name in prediction} | {PREDICTED: mix}
    return [*groups, Group("prediction", thresholds, PREDICTED)]


def _numeric(columns: list[str], sizes: tuple[int, int], policy: Monitoring) -> dict[str, float]:
    threshold = ks_threshold(*sizes, policy.significance / len(columns))
    return dict.fromkeys(columns, threshold)


def _codes(table: pd.DataFrame, classes: list[str]) -> NDArray[np.int64]:
    return np.asarray(pd.Categorical(table[PREDICTED], categories=classes).codes, np.int64)


def _view(group: Group, scores: dict[str, float], policy: Monitoring) -> DriftView:
    moved = sorted(
        (name for name, score in scores.items() if score >= group.thresholds[name]), key=lambda name: -scores[name]
    )
    share = len(moved) / len(scores)
    top = max(scores, key=lambda name: scores[name])
    shown = ", ".join(f"{name} {scores[name]:.2f}" for name in moved[:4] or [top])
    limit = max(group.thresholds.values())
    return DriftView(
        name=group.name,
        columns=len(scores),
        drifted_columns=len(moved),
        share=share,
        threshold=policy.drift_share,
        drifted=share >= policy.drift_share,
        scores={name: round(score, 4) for name, score in scores.items()},
        detail=f"{'moved' if moved else 'most moved'}: {shown} (distance 0 to 1, from {limit:.2f} on drifted)",
    )


def _column(
    group: Group, name: str, scores: dict[str, dict[str, float]], tables: list[pd.DataFrame], classes: list[str]
) -> ColumnDrift:
    values = [_codes(part, classes) if name == PREDICTED else part[name].to_numpy() for part in tables]
    return ColumnDrift(group.name, name, scores[group.name][name], group.thresholds[name], values[0], values[1])


def _auc(reference: Matrix, window: Matrix) -> float:
    """Area under the curve of a cross-validated linear classifier, reference against window."""
    folds = 3
    if min(len(reference), len(window)) < folds:
        return 0.5
    features = np.concatenate([reference, window])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    is_window = np.repeat([0, 1], [len(reference), len(window)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    classifier = LogisticRegression(C=0.1, class_weight="balanced", max_iter=200)
    scores = cross_val_predict(classifier, features, is_window, cv=splits, method="decision_function")
    return float(roc_auc_score(is_window, scores))
