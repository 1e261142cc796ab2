"""The candidate's page: what was measured, what was not, and which slices are shown when there are too many."""

import pytest

from tests.unit.packaging.test_bundle import candidate
from visionloop.project import Packaging, Price
from visionloop.records import Calibration, Change, Interval, Parity, SliceParity, Variant
from visionloop.reports.candidate import MAX_SLICES, CandidatePage, render, slices


def variant(name: str, cost: float | None, *, differs: int = 0, by: float = 0.0, parts: int = 2) -> Variant:
    parity = Parity(
        samples=100,
        max_abs_difference=0.04,
        p99_abs_difference=0.02,
        disagreements=differs,
        quantiles={"p50": 1e-7, "p99": 0.02, "p999": 0.03},
        slices=[SliceParity(name=f"label={n}", samples=50, disagreements=differs * (n == 1)) for n in range(parts)],
    )
    interval = Interval(value=by, low=by - 0.01, high=by + 0.01, n=100)
    change = Change(scenario="night <b>", metric="f1_macro", severity="major", difference=interval, judged=True)
    return Variant(
        name=name, sha256=name, size_bytes=2_000_000, seconds_per_1000_images=cost, parity=parity,
        changes=[] if name == "fp32" else [change], gate="passed", gate_reasons=[], chosen=name == "fp32",
        reason="why & how",
    )  # fmt: skip


def page(*variants: Variant, **record: object) -> str:
    made = candidate(b"model").model_copy(update={"variants": list(variants), "parity": variants[0].parity, **record})
    return render(CandidatePage(made, Packaging(max_loss=0.02)))


def test_the_figures_stand_in_the_table() -> None:
    shown = page(
        variant("fp32", 0.1),
        variant("int8", 0.04, differs=7, by=-0.03),
        calibration=Calibration(samples=512, seed=3, sample_ids_sha256="d" * 64),
    )
    for words in ("0.100 s", "0.040 s", "2.50 x", "2.00 MB", "7 of 100", "why &amp; how", "f1 macro", "2.00 points"):
        assert words in shown, words
    assert '<td class="n loss">-3.00 [-4.00, -2.00]</td>' in shown
    assert "512 training samples, stratified by class, seed 3" in shown
    assert "night &lt;b&gt;" in shown and "night <b>" not in shown


@pytest.mark.parametrize(("by", "bad"), [(-0.02, False), (-0.021, True)])
def test_a_loss_beyond_the_margin_is_marked(by: float, bad: bool) -> None:
    shown = page(variant("fp32", 0.1), variant("int8", 0.04, by=by))
    assert ('class="n loss"' in shown) == bad


def test_what_was_not_measured_is_said() -> None:
    shown = page(variant("fp32", None), variant("fp16", None))
    assert shown.count("not measured") == 2 and "calibrated" not in shown


def test_a_price_makes_money_of_seconds() -> None:
    made = candidate(b"model").model_copy(update={"variants": [variant("fp32", 10.0)]})
    shown = render(CandidatePage(made, Packaging(), Price(per_hour=0.36, currency="EUR"), 2))
    assert "10.000 s, 0.000500 EUR" in shown and "0.36 EUR an hour" in shown
    assert "an hour" not in render(CandidatePage(made, Packaging()))


def test_fp32_alone_is_compared_with_nothing() -> None:
    assert "Against FP32" not in page(variant("fp32", 0.1))


def test_of_too_many_slices_those_that_differ_are_shown() -> None:
    many = [variant("fp32", 0.1, parts=1000), variant("int8", 0.1, differs=5, parts=1000)]
    rows = slices(many)
    assert len(rows) == MAX_SLICES and [row.name for row in rows][:3] == ["label=0", "label=1", "label=2"]
    assert rows[1].disagreements == [0, 5]
    last = [many[0], many[1].model_copy(update={"parity": many[1].parity.model_copy(update={"slices": late(1000)})})]
    assert slices(last)[-1].name == "label=999"


def late(count: int) -> list[SliceParity]:
    return [SliceParity(name=f"label={n}", samples=50, disagreements=int(n == count - 1)) for n in range(count)]
