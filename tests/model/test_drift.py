"""Drift on realistic images: clean windows pass, a changed camera does not, a known mix passes again; and the page."""

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.unit.monitoring.world import CLASSES, change_camera, make_images, make_model
from visionloop.errors import IntegrityError, StageError
from visionloop.monitoring.detail import to_json
from visionloop.monitoring.distance import class_distance, ks_distance
from visionloop.monitoring.drift import PREDICTED, ColumnDrift, Comparison, Reference, compare
from visionloop.monitoring.evidence import Evidence, Group
from visionloop.monitoring.samples import Samples, from_table, to_columns
from visionloop.monitoring.score import Scorer, measure
from visionloop.project import Monitoring
from visionloop.reports.drift import DriftPage, describe, render, severity

POLICY = Monitoring(window_samples=400)
AT = datetime(2026, 1, 1, tzinfo=UTC)


def measure_directly(
    window: pd.DataFrame, reference: pd.DataFrame, groups: list[Group], drift_share: float
) -> Evidence:
    """The same distances without Evidently and its page: a test below proves that they are the same."""
    scores: dict[str, dict[str, float]] = {}
    for group in groups:
        of = {name: (reference[name].to_numpy(), window[name].to_numpy()) for name in group.thresholds}
        scores[group.name] = {
            name: _class_distance(*parts) if name == group.class_column else ks_distance(*parts)
            for name, parts in of.items()
        }
    return Evidence(scores, b"")


def _class_distance(*parts: np.ndarray) -> float:
    first, second = (np.array([CLASSES.index(name) for name in part]) for part in parts)
    return class_distance(first, second, len(CLASSES))


def quick(reference: Reference, window: Samples, **policy: object) -> Comparison:
    return compare(reference, window, CLASSES, POLICY.model_copy(update=policy), measure_directly)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(make_model(), hashlib.sha256(make_model()).hexdigest())


@pytest.fixture(scope="module")
def known(scorer: Scorer) -> Samples:
    return measure(make_images(1_200, seed=1)[0], scorer)


@pytest.fixture(scope="module")
def reference(known: Samples) -> Reference:
    return Reference(known, np.array(["first"] * len(known)), ["first"])


@pytest.fixture(scope="module")
def changed(reference: Reference, scorer: Scorer) -> Comparison:
    images = change_camera(make_images(400, seed=2)[0])
    return compare(reference, measure(images, scorer), CLASSES, POLICY)


def test_a_changed_camera_is_drift_in_every_view(changed: Comparison) -> None:
    assert changed.drifted
    assert [view.name for view in changed.views] == ["image", "embedding", "prediction"]
    assert all(view.drifted for view in changed.views[:2])
    assert changed.views[0].scores["sharpness"] > 0.5
    assert changed.auc > 0.95
    for view in changed.views:
        moved = [column for column in changed.columns if column.view == view.name and column.drifted]
        assert (view.drifted_columns, view.columns) == (len(moved), len(view.scores))
        assert view.share == pytest.approx(len(moved) / view.columns)


def test_clean_windows_are_no_drift(reference: Reference, scorer: Scorer) -> None:
    for seed in range(10, 15):
        clean = quick(reference, measure(make_images(400, seed=seed)[0], scorer))
        assert not clean.drifted
        assert sum(view.drifted for view in clean.views) == 0
        assert clean.auc < 0.6


@pytest.mark.parametrize(("min_views", "drifted"), [(2, True), (3, False)])
def test_the_number_of_views_decides(reference: Reference, scorer: Scorer, min_views: int, drifted: bool) -> None:
    """Images and embeddings of a changed camera, with the answers that the model gave to the clean images."""
    images, _ = make_images(400, seed=3)
    clean, dark = measure(images, scorer), measure(change_camera(images), scorer)
    window = Samples(dark.properties, dark.property_names, dark.embedding, clean.probabilities)
    found = quick(reference, window, min_views=min_views)
    assert [view.drifted for view in found.views] == [True, True, False]
    assert found.drifted is drifted


@pytest.mark.parametrize(("limit", "drifted"), [(2 / 7, True), (2 / 7 + 0.01, False)])
def test_the_share_of_columns_decides_with_equality_counting(
    known: Samples, reference: Reference, limit: float, drifted: bool
) -> None:
    """A window in which two of the seven image properties are moved by hand."""
    rows = np.arange(0, len(known), 2)
    window = known.take(rows)
    moved = window.properties.copy()
    moved[:, :2] += 50
    window = Samples(moved, window.property_names, window.embedding, window.probabilities)
    found = quick(reference, window, drift_share=limit)
    assert found.views[0].drifted_columns == 2
    assert found.views[0].drifted is drifted
    assert not found.drifted, "one view of three is too few"


def test_a_camera_that_was_learned_is_no_drift_any_more(known: Samples, scorer: Scorer) -> None:
    dark = measure(change_camera(make_images(300, seed=4)[0]), scorer)
    both = Samples(
        *(np.concatenate(pair) if isinstance(pair[0], np.ndarray) else pair[0] for pair in _pairs(known, dark))
    )
    learned = Reference(both, np.array(["first"] * len(known) + ["second"] * len(dark)), ["first", "second"])
    images, _ = make_images(400, seed=5)
    mixed = np.concatenate([images[:200], change_camera(images[200:], seed=6)])
    for window in (images, mixed, change_camera(images, seed=7)):
        assert not quick(learned, measure(window, scorer)).drifted
    assert quick(learned, measure(images // 3 + 120, scorer)).drifted, "a third camera"


def _pairs(first: Samples, second: Samples) -> list[tuple[object, object]]:
    names = ("properties", "property_names", "embedding", "probabilities")
    return [(getattr(first, name), getattr(second, name)) for name in names]


def test_samples_survive_parquet_columns(known: Samples) -> None:
    back = from_table(pa.concat_tables([pa.table(to_columns(known))] * 2), known.property_names)
    assert len(back) == 2 * len(known)
    np.testing.assert_array_equal(back.embedding[len(known) :], known.embedding)
    np.testing.assert_array_equal(back.probabilities[: len(known)], known.probabilities)


def test_evidently_measures_the_same_distances_as_we_do(
    changed: Comparison, reference: Reference, scorer: Scorer
) -> None:
    direct = quick(reference, measure(change_camera(make_images(400, seed=2)[0]), scorer))
    assert [view.name for view in direct.views] == [view.name for view in changed.views]
    for ours, theirs in zip(direct.columns, changed.columns, strict=True):
        assert (ours.name, ours.drifted) == (theirs.name, theirs.drifted)
        assert theirs.score == pytest.approx(ours.score, abs=1e-6)


def test_a_model_that_is_not_the_recorded_one_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"model\.onnx has SHA-256"):
        Scorer(make_model(), "0" * 64)


def test_a_model_without_embeddings_is_refused() -> None:
    import onnx

    model = onnx.load_from_string(make_model())
    del model.graph.output[1]
    data = model.SerializeToString()
    with pytest.raises(StageError, match=r"needs \['embedding'\]"):
        Scorer(data, hashlib.sha256(data).hexdigest())


def page(**changed: object) -> DriftPage:
    images = list(make_images(3, seed=8)[0])
    facts: dict[str, object] = {
        "project": "p",
        "version": 3,
        "report_id": "abc",
        "created_at": AT,
        "first_at": AT,
        "last_at": AT,
        "window_samples": 400,
        "reference_examples": images,
        "window_examples": images,
        "classes": CLASSES,
        "policy": POLICY,
    }
    return DriftPage(**{**facts, **changed})  # type: ignore[arg-type]


def test_the_page_says_what_changed_and_needs_no_network(changed: Comparison) -> None:
    html = render(page(), changed)
    assert "Production no longer looks like what this model was trained for." in html
    assert "sharpness fell from" in html
    assert html.count('src="data:image/png;base64,') == 6
    assert html.count("<svg") == 6
    assert "http" not in html
    assert "<script" not in html
    assert 'href="evidently.html"' in html
    assert len(html) < 200_000


def test_names_from_outside_are_escaped(changed: Comparison) -> None:
    html = render(page(project="<b>x", classes=["<i>a", "b", "c", "d"]), changed)
    assert "<b>x" not in html
    assert "<i>" not in html.replace('<i class="', "")
    assert "&lt;b&gt;x" in html


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ([50.0, 100.0, 150.0], [40.0, 50.0, 60.0], "x fell from 100 to 50 (-50%)"),
        ([1.0], [2.0], "x rose from 1 to 2 (+100%)"),
        ([0.1], [1.0], "x rose from 0.1 to 1"),
        ([0.0], [1.0], "x rose from 0 to 1"),
        ([1.0, 2.0, 3.0], [0.0, 2.0, 9.0], "x keeps its median of 2, but is spread differently"),
    ],
)
def test_a_column_in_words(before: list[float], after: list[float], text: str) -> None:
    column = ColumnDrift("image", "x", 0.5, 0.1, np.array(before), np.array(after))
    assert describe(column, CLASSES) == text


def test_the_class_mix_in_words() -> None:
    column = ColumnDrift("prediction", PREDICTED, 0.5, 0.1, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert describe(column, CLASSES) == "box is answered less often: 50% before, 25% now"


@pytest.mark.parametrize(("auc", "word"), [(0.59, "hardly"), (0.6, "slightly"), (0.75, "clearly"), (0.9, "entirely")])
def test_severity_has_a_word(auc: float, word: str) -> None:
    assert severity(auc).startswith(word)


def test_the_figures_are_json(changed: Comparison) -> None:
    found = json.loads(to_json(changed, CLASSES, project="p"))
    assert (found["project"], found["drifted"]) == ("p", True)
    by_name = {column["name"]: column for column in found["columns"]}
    assert by_name["brightness"]["window"]["q50"] < by_name["brightness"]["reference"]["q50"]
    assert sum(by_name[PREDICTED]["window"].values()) == pytest.approx(1.0, abs=1e-3)
