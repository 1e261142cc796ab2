"""What `up` asks of the supervisor, passed on in a file."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from visionloop.settings import Settings


class Plan(BaseModel):
    """The stack to run."""

    model_config = ConfigDict(frozen=True)

    repo: Path
    """The repository's folder: what the servers run lies there."""
    settings: Settings
    services: list[str]
    given: dict[str, str]
    """Addresses that the user set: field of Settings -> value."""


def plan_file(home: Path) -> Path:
    """Where the plan lies."""
    return home / "stack" / "plan.json"
