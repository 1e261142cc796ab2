"""Which services a choice selects, and in which order they end."""

import pytest

from visionloop.errors import StackError
from visionloop.settings import Settings
from visionloop.stack.services import ALL, by_name, select, stop_order


def names(services: object) -> list[str]:
    return [service.name for service in services]  # type: ignore[attr-defined]


def test_all_by_default() -> None:
    assert select() == list(ALL)


def test_only_brings_what_it_needs() -> None:
    assert names(select(["mlflow"])) == ["s3", "mlflow"]
    assert names(select(["envoy"])) == ["s3", "triton-stable", "triton-canary", "capture", "envoy"]
    assert names(select(["airflow-triggerer"])) == ["airflow-api", "airflow-triggerer"]


def test_without_wins_over_need() -> None:
    assert names(select(["mlflow"], without=["s3"])) == ["mlflow"]
    assert not set(names(select(without=["airflow"]))) & set(names(by_name(n for n in names(ALL) if "airflow" in n)))


@pytest.mark.parametrize(
    ("only", "without", "message"),
    [(["mlfow"], (), "no service 'mlfow'; there are: airflow, triton, s3"), (["s3"], ["s3"], "no service is left")],
)
def test_a_choice_that_cannot_be_is_refused(only: list[str], without: list[str], message: str) -> None:
    with pytest.raises(StackError, match=message):
        select(only, without)


def test_who_needs_a_service_ends_before_it() -> None:
    ended: set[str] = set()
    for group in stop_order(ALL):
        for service in group:
            assert not set(service.needs) & ended
        ended |= set(names(group))
    assert ended == set(names(ALL))


def test_needs_and_address_fields_exist() -> None:
    known = set(names(ALL))
    for service in ALL:
        assert set(service.needs) <= known
        assert set(service.addresses) <= set(Settings.model_fields)
