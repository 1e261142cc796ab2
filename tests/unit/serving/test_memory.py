"""What readings of a lane's memory say: too much, a leak, a death; and what is none, however often it is looked at."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.project import Release as Policy
from visionloop.records import MemoryReading
from visionloop.serving.memory import MIB, SPACING, died, ill, keep, leak, needed_mib, too_large, with_others

POLICY = Policy(approval="automatic", max_memory_mib=200, max_memory_growth_mib=10)


def reading(
    requests: int, model: float = 60, *, server: float = 40, processes: int = 1, started: int = 0, others: int = 0
) -> MemoryReading:
    sizes = {"server_bytes": int(server * MIB), "model_bytes": int(model * MIB)}
    return MemoryReading(requests=requests, processes=processes, server_started=started, others=others, **sizes)


BEFORE = reading(0, 0, processes=0)
LOADED = reading(10)


def answering(*model_mib: float, **same: float) -> list[MemoryReading]:
    """Readings of a release whose model holds so much after 20, 30, 40 ... requests."""
    grown = [reading(20 + 10 * number, mib, **same) for number, mib in enumerate(model_mib)]  # type: ignore[arg-type]
    return [BEFORE, LOADED, *grown]


# --- the bound


@pytest.mark.parametrize(("most", "fits"), [(200, True), (201, False)])
def test_the_most_that_it_ever_needed_is_held_against_the_bound(most: float, fits: bool) -> None:
    readings = answering(70, most, 80)
    assert needed_mib(readings) == most
    reason = too_large(readings, POLICY)
    assert (reason is None) is fits
    if reason:
        assert reason == "the candidate needs 201 MiB in the canary lane (60 MiB once loaded), allowed 200 MiB"


def test_what_the_server_held_before_is_not_the_candidates_and_what_it_grew_by_is() -> None:
    """A backend inside the server has no process of its own."""
    before, loaded = reading(0, 0, server=1_000, processes=0), reading(5, 0, server=1_150, processes=0)
    assert needed_mib([before, loaded]) == 150
    assert too_large([before, loaded], POLICY) is None
    assert too_large([before, loaded, reading(9, 0, server=1_201, processes=0)], POLICY)


@pytest.mark.parametrize("readings", [[], [BEFORE], [BEFORE, LOADED]])
def test_few_readings_are_no_evidence(readings: list[MemoryReading]) -> None:
    assert ill(readings, POLICY) is None


# --- leaks


@pytest.mark.parametrize(
    ("model_mib", "leaks"),
    [
        ([60, 65, 70, 75, 80], False),  # four steps of 5, two forgiven: 10
        ([60, 65, 70, 75, 81], False),  # the largest are forgiven
        ([60, 65, 70, 75, 80, 81], True),  # 11
        ([60, 160, 190, 190, 190], False),  # an arena that doubled, and once more
        ([60, 90, 60, 95, 61, 99], False),  # what comes back is no growth
        ([60, 69, 62, 70, 61, 68, 60], False),
        ([90, 80, 70, 60], False),
    ],
)
def test_a_leak_stays_and_goes_on(model_mib: list[float], leaks: bool) -> None:
    assert (leak(answering(*model_mib), POLICY) is not None) is leaks


def test_a_leak_says_how_much_over_how_many_requests() -> None:
    assert leak(answering(60, 66, 72, 78, 84), POLICY) == (
        "memory grew by 24 MiB over 40 requests, from 60 to 84 MiB, allowed 10 MiB"
    )


def test_growth_while_it_is_loaded_and_warms_up_is_none() -> None:
    assert leak([BEFORE, LOADED, reading(20, 500), reading(30, 500), reading(40, 500)], POLICY) is None


def test_the_server_leaks_where_the_model_has_no_process_of_its_own() -> None:
    grown = [reading(20 + number, 0, server=100 + 5 * number, processes=0) for number in range(6)]
    assert "memory grew by 25 MiB over 5 requests" in str(leak([BEFORE, LOADED, *grown], POLICY))
    beside = [reading(20 + number, 60, server=100 + 5 * number) for number in range(6)]
    assert leak([BEFORE, LOADED, *beside], POLICY) is None  # others' traffic passes through the server too


def never_a_leak(*model_mib: float) -> bool:
    """However often it is looked at."""
    readings = answering(*model_mib)
    return all(leak(readings[:count], POLICY) is None for count in range(3, len(readings) + 1))


@given(st.lists(st.floats(50, 60), min_size=3, max_size=60))
def test_noise_in_a_band_is_never_a_leak(noise: list[float]) -> None:
    assert never_a_leak(*noise)


@given(st.lists(st.floats(50, 53.3), min_size=3, max_size=60), st.lists(st.integers(0, 59), max_size=2, unique=True))
def test_nor_with_two_jumps_in_a_narrower_one(noise: list[float], jumps: list[int]) -> None:
    assert never_a_leak(*(mib + 300 * sum(jump <= number for jump in jumps) for number, mib in enumerate(noise)))


@given(st.floats(0.5, 4), st.lists(st.floats(-5, 5), min_size=60, max_size=60))
def test_even_growth_below_noise_is_found(step: float, noise: list[float]) -> None:
    readings = answering(*(100 + step * number + extra for number, extra in enumerate(noise)))
    growth = 59 * step - 10
    if growth - 2 * (10 + step) > 10:
        assert leak(readings, POLICY)


# --- deaths


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (reading(31, processes=1), None),
        (reading(31, 0, processes=0), "the canary's server process died: it had been asked 31 times"),
        (reading(3), "the canary's server process died and was started anew: it had been asked 30 times"),
        (reading(0, 0, processes=0), "the canary's server process died: it had been asked 30 times"),
    ],
)
def test_only_an_end_leaves_no_process_or_begins_to_count_again(last: MemoryReading, says: str | None) -> None:
    assert died([*answering(60, 60), last]) == says
    assert ill([*answering(60, 60), last], POLICY) == says


ANEW = "the canary's server process died and was started anew: it had been asked 30 times"


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (reading(30, started=7), reading(3, started=8), ANEW),
        (reading(30, started=7), reading(99, started=8), ANEW),  # however much it was asked since
        (reading(30, started=7), reading(3, started=7), None),  # somebody loaded it again
        (reading(30, started=7, others=1), reading(3, started=8), None),  # whose fault?
        (reading(30, started=7), reading(3, started=8, others=2), None),
        (reading(30, started=7, others=1), reading(0, 0, processes=0, started=8), None),  # not loaded again yet
        (
            reading(30, started=7, others=1),
            reading(31, 0, processes=0, started=7, others=1),
            "the canary's server process died: it had been asked 31 times",
        ),
        (reading(30, others=1), reading(3, others=1), None),
    ],
)
def test_whose_fault_it_is_that_a_server_ended(before: MemoryReading, after: MemoryReading, says: str | None) -> None:
    assert died([BEFORE, LOADED.model_copy(update={"server_started": before.server_started}), before, after]) == says


def test_a_model_that_was_there_is_remembered_as_long_as_the_server_lives() -> None:
    """Triton lists it no more when its release is over, though its dead process is why the server ends."""
    seen = [BEFORE, reading(10, started=7, others=2)]
    assert with_others(seen, reading(11, started=7)).others == 2
    assert with_others(seen, reading(11, started=7, others=3)).others == 3
    assert with_others(seen, reading(11, started=8)).others == 0
    assert with_others([], reading(11, started=8)).others == 0


def test_one_of_two_processes_that_goes_is_that_of_an_earlier_load() -> None:
    assert died([BEFORE, reading(10, processes=2), reading(20, processes=1)]) is None


def test_a_backend_inside_the_server_has_never_a_process_and_is_not_dead() -> None:
    assert died([BEFORE, reading(10, 0, processes=0), reading(20, 0, processes=0)]) is None
    assert re.search("asked 20 times", str(died([BEFORE, LOADED, reading(20, 0, processes=0), reading(2, 0)])))


# --- what is kept


def test_a_long_release_keeps_few_readings_and_always_the_newest() -> None:
    readings = [BEFORE]
    for number in range(1, 20_001):
        readings = keep(readings, reading(number * 5, 60 + number / 1_000))
        assert readings[-1].requests == number * 5
    assert readings[:2] == [BEFORE, reading(5, 60.001)]
    assert len(readings) < 200
    spaced = [later.requests / earlier.requests for earlier, later in pairwise(readings[2:-1])]
    assert min(spaced) >= SPACING


@pytest.mark.parametrize("last", [reading(41, 0, processes=0), reading(2)])
def test_a_reading_that_shows_a_death_is_never_folded_into_another(last: MemoryReading) -> None:
    readings = keep(answering(60, 60, 60), last)
    assert readings == [*answering(60, 60, 60), last]
    assert died(readings)
