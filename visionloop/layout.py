"""Where things lie in the object store: one function per kind of key, all below the project's own prefix."""

import re
from urllib.parse import quote

from visionloop.errors import ConfigError

NAME = re.compile(r"^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$")
READY = "_SUCCESS"
"""Marker object that ends the delivery of a batch; a batch without it is still arriving."""


def checked(name: str) -> str:
    """Return a project, batch or record name that is safe as a path segment, else raise ConfigError."""
    if not NAME.fullmatch(name) or ".." in name:
        raise ConfigError(
            f"{name!r} cannot be a name: expected lower-case letters, digits, '.', '_' and '-', at most 128, "
            "beginning and ending with a letter or digit"
        )
    return name


def incoming(project: str, batch: str = "") -> str:
    """Prefix of all batches, or of one."""
    root = f"{checked(project)}/incoming/"
    return f"{root}{checked(batch)}/" if batch else root


def ready(project: str, batch: str) -> str:
    """The marker whose presence says that a batch is complete."""
    return incoming(project, batch) + READY


def settled(project: str, batch: str = "", delivery: str = "") -> str:
    """Prefix of the notes about deliveries that need no more work, or the note about one."""
    root = f"{checked(project)}/settled/"
    return f"{root}{checked(batch)}/{checked(delivery)}.json" if batch else root


def record(project: str, kind: str, record_id: str) -> str:
    """A record."""
    return f"{records(project, kind)}{checked(record_id)}.json"


def records(project: str, kind: str) -> str:
    """Prefix of all records of a kind."""
    return f"{checked(project)}/records/{kind}/"


def artifact(project: str, kind: str, record_id: str, name: str) -> str:
    """A file that belongs to a record: a page, a table, a model."""
    return f"{checked(project)}/artifacts/{kind}/{checked(record_id)}/{name}"


def dataset(project: str) -> str:
    """The project's Lance dataset."""
    return f"{checked(project)}/datasets/samples.lance"


def quarantine(project: str, batch: str) -> str:
    """Prefix of a batch's quarantined samples and their reasons."""
    return f"{checked(project)}/quarantine/{checked(batch)}/"


def checkpoints(project: str, run: str) -> str:
    """Prefix of a training run's checkpoints."""
    return f"{checked(project)}/checkpoints/{checked(run)}/"


def captures(project: str) -> str:
    """Prefix of the captured traffic, `version=V/lane=L/hour=YYYYMMDDHH/*.parquet` below it."""
    return f"{checked(project)}/captures/"


def state(project: str, name: str) -> str:
    """A small mutable document, only ever changed by conditional writes."""
    return f"{checked(project)}/state/{checked(name)}.json"


def page(project: str, uri: str) -> str:
    """Path below Airflow's address at which its plugin serves an HTML artifact; another URI stays as it is."""
    _, inside, name = uri.partition(f"/{checked(project)}/artifacts/")
    return f"/visionloop/pages/{project}__release/{quote(name)}" if inside else uri


def link(airflow_url: str | None, project: str, uri: str) -> str:
    """What a browser opens to show an HTML artifact: its page below Airflow's address, where that is known."""
    path = page(project, uri)
    return f"{airflow_url.rstrip('/')}{path}" if airflow_url and path != uri else uri
