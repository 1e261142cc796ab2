"""All services of the stack, and which of them a user's choice selects."""

from collections.abc import Collection, Iterable

from visionloop.errors import StackError
from visionloop.stack.airflow import AIRFLOW
from visionloop.stack.capture import CAPTURE
from visionloop.stack.envoy import ENVOY
from visionloop.stack.mlflow import MLFLOW
from visionloop.stack.ray import RAY
from visionloop.stack.s3 import S3
from visionloop.stack.service import Service
from visionloop.stack.triton import TRITON

ALL = (S3, *TRITON, RAY, MLFLOW, CAPTURE, ENVOY, *AIRFLOW)
GROUPS = {
    "airflow": tuple(service.name for service in AIRFLOW),
    "triton": tuple(service.name for service in TRITON),
}
"""Names that stand for several services."""


def select(only: Collection[str] | None = None, without: Collection[str] = ()) -> list[Service]:
    """The services to run: all, or `only` and what they need; never those `without`. Raises StackError."""
    left_out = set(_expand(without))
    known = {service.name: service for service in ALL}
    names = set(known) if only is None else _with_needs(_expand(only), known, left_out)
    chosen = [service for service in ALL if service.name in names - left_out]
    if not chosen:
        raise StackError("no service is left to start: see `--only` and `--without`")
    return chosen


def by_name(names: Iterable[str]) -> list[Service]:
    """The services of these names, in the order of ALL."""
    wanted = set(names)
    return [service for service in ALL if service.name in wanted]


def stop_order(services: Collection[Service]) -> list[list[Service]]:
    """Groups to end one after the other: a service goes before those that it needs."""
    left, order = list(services), []
    while left:
        needed = {name for service in left for name in service.needs}
        group = [service for service in left if service.name not in needed]
        assert group, "services need each other in a circle"
        order.append(group)
        left = [service for service in left if service not in group]
    return order


def _expand(names: Iterable[str]) -> list[str]:
    expanded: list[str] = []
    for name in names:
        members = GROUPS.get(name, (name,))
        if name not in GROUPS and name not in {service.name for service in ALL}:
            choices = ", ".join([*GROUPS, *(service.name for service in ALL)])
            raise StackError(f"there is no service {name!r}; there are: {choices}")
        expanded.extend(members)
    return expanded


def _with_needs(names: Iterable[str], known: dict[str, Service], left_out: set[str]) -> set[str]:
    found: set[str] = set()
    waiting = [name for name in names if name in known]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(need for need in known[name].needs if need in known and need not in left_out)
    return found
