"""Cost: turns, medians, a bounded number of rounds, and seconds that follow the work."""

import pytest

from tests.unit.packaging.graphs import images, network
from visionloop.packaging import cost, session
from visionloop.packaging.quantize import quantize


class Workshop:
    """Work that takes as long as it says, on a clock of its own."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, ""

    def task(self, name: str, *seconds: float) -> object:
        left = list(seconds)

        def do() -> None:
            self.done += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return do

    def clock(self) -> float:
        return self.now


def test_in_turns_after_one_round_that_does_not_count() -> None:
    shop = Workshop()
    work = {"a": shop.task("a", 100.0, 3.0), "b": shop.task("b", 100.0, 1.0)}
    assert cost.in_turns(work, clock=shop.clock) == {"a": 3.0, "b": 1.0}
    assert shop.done == "ab" * (1 + cost.MAX_ROUNDS)


def test_a_slow_moment_changes_nothing() -> None:
    shop = Workshop()
    work = {"a": shop.task("a", 2.0, 2.0, 50.0, 2.0)}
    assert cost.in_turns(work, clock=shop.clock) == {"a": 2.0}


@pytest.mark.parametrize(("seconds", "rounds"), [(0.1, cost.MAX_ROUNDS), (1.0, cost.MIN_ROUNDS)])
def test_a_slow_model_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch, seconds: float, rounds: int) -> None:
    shop = Workshop()
    monkeypatch.setattr(cost.time, "monotonic", shop.clock)
    cost.in_turns({"a": shop.task("a", seconds)}, clock=shop.clock)
    assert len(shop.done) == 1 + rounds


def test_real_models_cost_something_and_the_same_one_about_the_same() -> None:
    models = {"fp32": network(), "int8": quantize(network(), images(64)), "again": network()}
    found = cost.measure(models, images(64), device="cpu")
    assert list(found) == ["fp32", "int8", "again"] and all(value and 0 < value < 10 for value in found.values())
    assert found["again"] == pytest.approx(found["fp32"], rel=0.9)


def test_a_gpu_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert cost.measure({"fp32": network()}, images(4), device="gpu") == {"fp32": None}
    assert session.has("cpu") and not session.has("gpu")
