"""Which test samples are taken, and which of them a scenario is about."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.shapes import CLASSES, TASK, samples
from visionloop.data.images import encode_png
from visionloop.errors import DataError
from visionloop.evaluation.samples import TestSamples, choose, read_test_samples
from visionloop.project import Scenario


def row(number: int, label: str = CLASSES[0], batch: str = "one", **metadata: object) -> dict[str, object]:
    return {
        "sample_id": f"id-{number}",
        "label": label,
        "batch": batch,
        "metadata": json.dumps(metadata) if metadata else "",
        "image": encode_png(samples(8).images[number]),
    }


def read(*batches: list[dict[str, object]]) -> TestSamples:
    return read_test_samples([pa.RecordBatch.from_pylist(batch) for batch in batches], TASK)


def test_rows_become_images_targets_and_columns() -> None:
    found = read([row(0, camera="belt-1"), row(1, CLASSES[3], "two")], [row(2, CLASSES[1], line=7)])
    assert np.array_equal(found.images, samples(8).images[:3])
    assert found.targets.tolist() == [0, 3, 1] and len(found) == 3
    columns = {name: values.tolist() for name, values in found.columns.items()}
    assert columns == {
        "sample_id": ["id-0", "id-1", "id-2"],
        "label": [CLASSES[0], CLASSES[3], CLASSES[1]],
        "batch": ["one", "two", "one"],
        "camera": ["belt-1", "", ""],
        "line": ["", "", "7"],
    }


def test_metadata_cannot_take_the_place_of_what_is_known() -> None:
    found = read([row(0, label=CLASSES[2], batch="one") | {"metadata": '{"label": "lie", "batch": "x"}'}])
    assert found.columns["label"].tolist() == [CLASSES[2]] and found.columns["batch"].tolist() == ["one"]


def test_nothing_to_read() -> None:
    found = read()
    assert len(found) == 0 and found.images.shape == (0, 28, 28, 1)
    assert found.where({"label": CLASSES[0]}).tolist() == []


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(DataError, match=r"labels hexagon.*task\.classes"):
        read([row(0, "hexagon")])


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [True, True, True]),
        ({"camera": "belt-1"}, [True, True, False]),
        ({"camera": "belt-1", "label": CLASSES[1]}, [False, True, False]),
        ({"batch": "two"}, [False, False, True]),
        ({"camera": "belt-9"}, [False, False, False]),
        ({"weather": "fog"}, [False, False, False]),
        ({"camera": "belt-1", "weather": "fog"}, [False, False, False]),
    ],
)
def test_a_scenario_takes_the_samples_that_match_all_conditions(
    conditions: dict[str, str], expected: list[bool]
) -> None:
    rows = [row(0, camera="belt-1"), row(1, CLASSES[1], camera="belt-1"), row(2, batch="two")]
    assert read(rows).where(conditions).tolist() == expected


@given(st.lists(st.integers(1, 120), min_size=1, max_size=6), st.integers(1, 200), st.integers(0, 3))
def test_a_choice_is_stratified(counts: list[int], limit: int, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([f"c{n}" for n in range(len(counts))], counts))
    rows = choose(labels, limit, seed=seed)
    assert len(rows) == min(limit, len(labels))
    assert np.array_equal(rows, np.unique(rows)) and rows.min() >= 0 and rows.max() < len(labels)
    share = min(1.0, limit / len(labels))
    taken = Counter(labels[rows])
    for number, count in enumerate(counts):
        assert abs(taken[f"c{number}"] - count * share) < 1 + 1e-9
    assert np.array_equal(rows, choose(labels, limit, seed=seed))


def test_another_seed_chooses_others() -> None:
    labels = np.repeat(["a", "b"], 100)
    assert not np.array_equal(choose(labels, 50, seed=1), choose(labels, 50, seed=2))


def test_slices_are_those_of_the_suite_and_each_class() -> None:
    labels, cameras = np.array(["b", "a", "b"], np.str_), np.array(["x", "x", "y"], np.str_)
    found = TestSamples(np.zeros((3, 1, 1, 1), np.uint8), np.zeros(3, np.int64), {"label": labels, "camera": cameras})
    suite = [
        Scenario(name="all"),
        Scenario(name="x", where={"camera": "x"}),
        Scenario(name="noise", corruption="gaussian_noise"),
        Scenario(name="both", where={"label": "b", "camera": "x"}),
        Scenario(name="b", where={"label": "b"}),
    ]
    assert {name: mask.tolist() for name, mask in found.slices(suite).items()} == {
        "camera=x": [True, True, False],
        "camera=x,label=b": [True, False, False],
        "label=b": [True, False, True],
        "label=a": [False, True, False],
    }
