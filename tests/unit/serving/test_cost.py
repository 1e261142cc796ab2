"""Seconds and money of 1,000 images, by hand."""

import pytest
from pydantic import ValidationError

from visionloop.project import Price
from visionloop.serving.cost import Runs, cost, money_per_1000, seconds_per_1000, shown_cost, shown_money, told

EUR = Price(per_hour=0.36, currency="EUR")


def test_each_run_counts_once_and_only_runs_of_that_size() -> None:
    """15 runs of 64 images in 1.92 s: 2 ms an image, whatever the health checks of one image took."""
    before = {64: Runs(2, 9.0), 1: Runs(4, 0.1)}
    after = {64: Runs(17, 10.92), 1: Runs(400, 77.0)}
    assert seconds_per_1000(before, after, 64) == pytest.approx(2.0)


def test_without_a_run_of_that_size_there_is_no_figure() -> None:
    assert seconds_per_1000({}, {32: Runs(15, 1.0)}, 64) is None
    assert seconds_per_1000({64: Runs(3, 1.0)}, {64: Runs(3, 1.0)}, 64) is None


def test_a_model_that_was_loaded_anew_meanwhile_counts_from_zero() -> None:
    assert seconds_per_1000({8: Runs(100, 50.0)}, {8: Runs(5, 0.2)}, 8) == pytest.approx(5.0)


@pytest.mark.parametrize(("at_once", "money"), [(1, 0.001), (4, 0.00025)])
def test_money(at_once: int, money: float) -> None:
    """10 s at 0.36 an hour, of one of so many that share the machine."""
    assert money_per_1000(10.0, EUR, at_once=at_once) == pytest.approx(money)


def test_the_record_has_both_and_their_ratio() -> None:
    found = cost(64, 8.0, 10.0, EUR, instances=2)
    assert (found.seconds_per_1000, found.champion_seconds_per_1000, found.ratio) == (8.0, 10.0, 0.8)
    assert (found.per_1000, found.champion_per_1000) == (pytest.approx(0.0004), pytest.approx(0.0005))
    assert (found.price_per_hour, found.currency, found.instances, found.batch_images) == (0.36, "EUR", 2, 64)
    assert told(found) == "0.000400 EUR per 1,000 images (8 s of one instance), 0.80x the champion's"


def test_without_a_price_seconds_are_told_and_why_there_is_no_money() -> None:
    found = cost(1, 0.1234, None, None, instances=1)
    assert (found.per_1000, found.champion_per_1000, found.currency, found.ratio) == (None, None, None, None)
    assert told(found) == "0.123 s of one instance per 1,000 images (no money: the project has no `price`)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0000106234, "0.0000106 EUR"), (0.5, "0.500 EUR"), (0.99999, "0.999 EUR"), (1.0, "1.00 EUR")),
        *((12.345, "12.35 EUR"), (0.001, "0.00100 EUR")),
    ],
)
def test_money_is_shown_with_three_digits_and_no_power(value: float, text: str) -> None:
    assert shown_money(value, "EUR") == text


def test_a_page_shows_money_only_where_there_is_a_price() -> None:
    assert shown_cost(10.0, None, 1) == "10.000 s"
    assert shown_cost(10.0, EUR, 2) == "10.000 s, 0.000500 EUR"


@pytest.mark.parametrize("given", [{"per_hour": 0}, {"per_hour": -1}, {"per_hour": 1, "currency": "euro"}, {}])
def test_a_price_is_above_nothing_in_a_currency(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(given)
