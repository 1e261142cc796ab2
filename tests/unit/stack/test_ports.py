"""Ports: a fixed one or an error that names who has it; any other gives way."""

import os
import socket
from collections.abc import Iterator

import pytest

from visionloop.errors import StackError
from visionloop.stack.ports import SPARE, Claims, choose, is_free, owner_of


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.fixture
def claims() -> Iterator[Claims]:
    found = Claims()
    yield found
    found.close()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def pick(claims: Claims, *wanted: int | None, fixed: int | None = None) -> int:
    return choose(claims, fixed=fixed, setting="VISIONLOOP_MLFLOW_URL", service="mlflow", wanted=wanted)


def test_the_first_wanted_port_that_is_free(claims: Claims, taken: int) -> None:
    free = free_port()
    assert pick(claims, None, taken, free) == free


def test_a_spare_port_where_all_wanted_are_taken(claims: Claims, taken: int) -> None:
    assert pick(claims, taken) in SPARE


def test_a_fixed_port_is_taken_or_refused_by_name(claims: Claims, taken: int) -> None:
    free = free_port()
    assert pick(claims, taken, fixed=free) == free
    with pytest.raises(StackError, match=rf"mlflow: port {taken}, set by VISIONLOOP_MLFLOW_URL, .*pid {os.getpid()}"):
        pick(claims, free, fixed=taken)


def test_two_stacks_never_choose_the_same_port(claims: Claims) -> None:
    port, other = free_port(), Claims()
    try:
        assert pick(claims, port) == port
        assert pick(other, port) != port
        with pytest.raises(StackError, match="promised to another embedded stack"):
            pick(other, fixed=port)
    finally:
        other.close()


def test_a_claim_ends_with_its_stack(claims: Claims) -> None:
    port, gone = free_port(), Claims()
    assert gone.take(port)
    assert not claims.take(port)
    gone.close()
    assert claims.take(port)
    assert not claims.take(port)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_listener_on_any_interface_takes_the_port(address: str) -> None:
    with socket.socket() as server:
        server.bind((address, 0))
        port = int(server.getsockname()[1])
        server.listen()
        assert not is_free(port)
        assert str(os.getpid()) in owner_of(port)
    assert is_free(port)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_number_that_is_no_port_is_not_free(port: int) -> None:
    assert not is_free(port)
