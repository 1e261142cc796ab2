"""The only rooms that talk to servers. `connect(settings)` gives them all, each opened when it is first used."""

from functools import cached_property
from typing import TYPE_CHECKING

from visionloop.settings import Settings

if TYPE_CHECKING:
    from visionloop.stores.datasets import Datasets
    from visionloop.stores.ledger import Ledger
    from visionloop.stores.objects import Objects
    from visionloop.stores.registry import Registry
    from visionloop.stores.routes import Routes
    from visionloop.stores.state import State
    from visionloop.stores.triton import Lane


class Stores:
    """Servers behind one set of settings. Opening one that is not configured raises ConfigError."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def objects(self) -> "Objects":
        """The object store (S3 or a folder)."""
        from visionloop.stores.objects import open_objects

        return open_objects(self.settings)

    @cached_property
    def ledger(self) -> "Ledger":
        """The records, append-only."""
        from visionloop.stores.ledger import Ledger

        return Ledger(self.objects)

    @cached_property
    def state(self) -> "State":
        """Small documents changed by compare-and-swap."""
        from visionloop.stores.state import State

        return State(self.objects)

    @cached_property
    def datasets(self) -> "Datasets":
        """The Lance datasets."""
        from visionloop.stores.datasets import Datasets

        return Datasets(self.objects)

    @cached_property
    def registry(self) -> "Registry":
        """MLflow: runs, model versions, aliases."""
        from visionloop.stores.registry import Registry

        return Registry(self.settings, self.state)

    @cached_property
    def stable(self) -> "Lane":
        """Triton of the stable lane."""
        from visionloop.stores.triton import open_lane

        return open_lane(self.settings, "stable")

    @cached_property
    def canary(self) -> "Lane":
        """Triton of the canary lane."""
        from visionloop.stores.triton import open_lane

        return open_lane(self.settings, "canary")

    @cached_property
    def routes(self) -> "Routes":
        """Envoy's route tables."""
        from visionloop.stores.routes import open_routes

        return open_routes(self.settings)


def connect(settings: Settings) -> Stores:
    """All stores behind `settings`; nothing is opened yet."""
    return Stores(settings)
