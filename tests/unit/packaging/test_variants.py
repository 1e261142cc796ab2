"""The choice: both sides of the gate, the margin, the least saving, the device; and each refusal's reason."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.packaging.variants import choose
from visionloop.project import Packaging
from visionloop.records import Change, Interval, Parity, Trial, Variant

PARITY = Parity(samples=100, max_abs_difference=0.0, p99_abs_difference=0.0, disagreements=0)
POLICY = Packaging(max_loss=0.005)


def change(by: float, scenario: str = "overall", *, judged: bool = True) -> Change:
    difference = Interval(value=by, low=by - 0.01, high=by + 0.01, n=1000)
    return Change(scenario=scenario, metric="accuracy", severity="critical", difference=difference, judged=judged)


def trial(name: str = "fp32", cost: float | None = 1.0, *changes: Change, **fields: Any) -> Trial:
    values = {
        "name": name,
        "sha256": name,
        "size_bytes": 1,
        "seconds_per_1000_images": cost,
        "parity": PARITY,
        "changes": changes,
        "gate": "passed",
        "gate_reasons": ["all bars hold"],
    }
    return Trial.model_validate({**values, **fields})


def chosen(variants: list[Variant]) -> str | None:
    names = [variant.name for variant in variants if variant.chosen]
    assert len(names) <= 1
    return names[0] if names else None


def reason(variants: list[Variant], name: str) -> str:
    return next(variant.reason for variant in variants if variant.name == name)


def test_fp32_alone() -> None:
    (only,) = choose([trial()], POLICY)
    assert (only.chosen, only.reason) == (True, "no cheaper variant may be served")


def test_the_cheaper_one_is_served() -> None:
    found = choose([trial("int8", 0.4, change(-0.002), change(0.01)), trial()], POLICY)
    assert [variant.name for variant in found] == ["fp32", "int8"] and chosen(found) == "int8"
    assert reason(found, "int8") == "it costs 40 % of fp32 and loses at most 0.20 points"
    assert reason(found, "fp32") == "int8 is cheaper"


@pytest.mark.parametrize(("loss", "fine"), [(0.005, True), (0.00501, False), (-0.3, True)])
def test_so_much_may_be_lost(loss: float, fine: bool) -> None:
    found = choose([trial(), trial("int8", 0.4, change(0.0), change(-loss, "night"))], POLICY)
    assert chosen(found) == ("int8" if fine else "fp32")
    if not fine:
        assert reason(found, "int8") == "it loses 0.50 points in night, 0.50 may be lost (packaging.max_loss)"


def test_what_is_only_shown_speaks_against_nobody() -> None:
    assert chosen(choose([trial(), trial("int8", 0.4, change(-0.3, judged=False))], POLICY)) == "int8"


@pytest.mark.parametrize(("cost", "fine"), [(0.9, True), (0.91, False), (1.5, False)])
def test_so_much_must_be_saved(cost: float, fine: bool) -> None:
    found = choose([trial(), trial("int8", cost, change(0.0))], POLICY)
    assert chosen(found) == ("int8" if fine else "fp32")
    if not fine:
        assert reason(found, "int8") == f"it costs {100 * cost:.0f} % of fp32, at most 90 % is worth a change"


def test_what_the_gate_rejects_is_not_served() -> None:
    bad = trial("int8", 0.1, change(0.0), gate="rejected", gate_reasons=["critical scenario overall failed", "more"])
    found = choose([trial(), bad], POLICY)
    assert chosen(found) == "fp32"
    assert reason(found, "int8") == "the gate rejects it: critical scenario overall failed; more"


def test_nothing_is_served_when_the_gate_rejects_all() -> None:
    no = {"gate": "rejected", "gate_reasons": ["no"]}
    found = choose([trial(**no), trial("int8", 0.1, **no)], POLICY)
    assert chosen(found) is None and {variant.reason for variant in found} == {"the gate rejects it: no"}


def test_each_device_has_its_variant() -> None:
    trials = [trial(), trial("fp16", 0.5, change(0.0)), trial("int8", 0.4, change(0.0))]
    on_cpu, on_gpu = choose(trials, POLICY), choose(trials, Packaging(device="gpu"))
    assert (chosen(on_cpu), chosen(on_gpu)) == ("int8", "fp16")
    assert reason(on_cpu, "fp16") == "it is made for a GPU, the lanes compute on a CPU (packaging.device)"
    assert reason(on_gpu, "int8") == "it is made for a CPU, the lanes compute on a GPU (packaging.device)"


def test_what_was_not_measured_is_not_cheaper() -> None:
    found = choose([trial(cost=None), trial("fp16", None, change(0.0))], Packaging(device="gpu"))
    assert chosen(found) == "fp32" and "its cost is not known" in reason(found, "fp16")


COSTS = st.floats(0.01, 10)
LOSSES = st.floats(-0.05, 0.05)


@given(COSTS, COSTS, LOSSES, st.booleans(), st.booleans())
def test_whatever_is_served_passed_and_lost_no_more(
    base: float, other: float, lost: float, passes: bool, base_passes: bool
) -> None:
    def gate(fine: bool) -> dict[str, str]:
        return {"gate": "passed" if fine else "rejected"}

    trials = [trial(cost=base, **gate(base_passes)), trial("int8", other, change(-lost), **gate(passes))]
    found = choose(trials, POLICY)
    assert all(variant.reason for variant in found)
    served = next((variant for variant in found if variant.chosen), None)
    assert (served is None) == (not base_passes and not (passes and lost <= 0.005 and other <= 0.9 * base))
    if served:
        assert served.gate == "passed"
        assert served.name == "fp32" or (lost <= 0.005 + 1e-9 and other <= 0.9 * base)
