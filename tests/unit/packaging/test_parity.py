"""Parity: both sides of what may differ."""

import numpy as np
import pytest

from visionloop.errors import StageError
from visionloop.packaging.parity import compare, report, require
from visionloop.records import Parity


def answers(count: int = 2000) -> np.ndarray:
    """Clear answers: 0.9 for one class, 0.1 for the other."""
    return np.tile(np.array([[0.9, 0.1], [0.1, 0.9]], np.float32), (count // 2, 1))


def test_differences_are_counted() -> None:
    trained, packaged = answers(100), answers(100)
    packaged[3] += [0.05, -0.05]
    packaged[7] = [0.55, 0.45]
    found = compare(trained, packaged)
    assert (found.samples, found.disagreements) == (100, 1)
    assert found.max_abs_difference == pytest.approx(0.45, abs=1e-6)
    assert found.p99_abs_difference == pytest.approx(np.percentile([0.0] * 98 + [0.05, 0.45], 99), abs=1e-6)


def test_equal_is_equal() -> None:
    found = require(compare(answers(), answers()))
    assert (found.max_abs_difference, found.p99_abs_difference, found.disagreements) == (0.0, 0.0, 0)


@pytest.mark.parametrize(("difference", "fine"), [(0.9e-3, True), (1.1e-3, False)])
def test_so_far_may_probabilities_be_apart(difference: float, fine: bool) -> None:
    packaged = answers()
    packaged[5, 0] += difference
    found = compare(answers(), packaged)
    if fine:
        assert require(found) == found
    else:
        with pytest.raises(StageError, match=r"0 of 2000 decisions differ \(2 may\), probabilities by up to 0\.0011"):
            require(found)


@pytest.mark.parametrize(("disagreements", "fine"), [(2, True), (3, False)])
def test_so_many_ties_may_fall_the_other_way(disagreements: int, fine: bool) -> None:
    trained, packaged = answers(), answers()
    trained[:disagreements] = [0.5002, 0.4998]
    packaged[:disagreements] = [0.4998, 0.5002]
    found = compare(trained, packaged)
    assert found.disagreements == disagreements
    if fine:
        assert require(found) == found
    else:
        with pytest.raises(StageError, match="3 of 2000 decisions differ"):
            require(found)


def test_no_number_is_no_parity() -> None:
    packaged = answers()
    packaged[0, 0] = np.nan
    with pytest.raises(StageError, match="is not the trained one"):
        require(compare(answers(), packaged))


def test_the_record_of_one_sample() -> None:
    found = compare(answers()[:1], answers()[:1])
    assert found == Parity(samples=1, max_abs_difference=0.0, p99_abs_difference=0.0, disagreements=0)


def test_the_report_has_quantiles_and_slices() -> None:
    trained, packaged = answers(1000), answers(1000)
    packaged[:10, 0] += 0.01
    packaged[0] = [0.4, 0.6]  # one other decision, at the first sample
    first, rest = np.arange(1000) < 4, np.arange(1000) >= 4
    found = report(trained, packaged, {"camera=one": first, "camera=two": rest, "camera=none": first & rest})
    assert found.model_copy(update={"quantiles": {}, "slices": []}) == compare(trained, packaged)
    assert list(found.quantiles) == ["p50", "p99", "p999"]
    differences = [0.5] + [0.01] * 9 + [0.0] * 990
    assert found.quantiles["p50"] == pytest.approx(0.0, abs=1e-6)
    assert found.quantiles["p99"] == pytest.approx(np.quantile(differences, 0.99), abs=1e-6)
    assert found.quantiles["p999"] == pytest.approx(np.quantile(differences, 0.999), abs=1e-6)
    assert [(part.name, part.samples, part.disagreements) for part in found.slices] == [
        ("camera=one", 4, 1),
        ("camera=two", 996, 0),
    ]
