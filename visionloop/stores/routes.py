"""The endpoint's weights: route files that Envoy watches, changed whole, and waited for until Envoy took them."""

import fcntl
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionloop.errors import StoreError
from visionloop.project import Project
from visionloop.serving.envoy import read_addresses, write_json
from visionloop.serving.envoy_clusters import cluster_names, render_clusters
from visionloop.serving.envoy_routes import ModelRoute, read_routes, render_routes
from visionloop.serving.lane_stats import LaneCount, count_lanes
from visionloop.settings import Settings

log = logging.getLogger(__name__)

TAKEN_SECONDS = 10.0
"""Envoy takes a file in milliseconds; one that it has not taken by then will not be."""
POLL_SECONDS = 0.02
ROUTES, CLUSTERS = "http.endpoint.rds.routes", "cluster_manager.cds"


@dataclass(frozen=True)
class Weights:
    """Percent of a model's requests that go to each lane, and whether the canary is asked as well, for no client."""

    stable: int
    canary: int
    mirrored: bool = False


class Routes:
    """The route table of one Envoy. Raises StoreError when Envoy is down or refuses a table."""

    def __init__(self, folder: Path, admin_url: str) -> None:
        self._folder = folder
        self._admin = admin_url.rstrip("/")

    def current(self, model: str) -> Weights | None:
        """What the table says, None for a model that was never released."""
        found = self._models().get(model)
        return Weights(found.stable, found.canary, found.mirrored) if found else None

    def set(
        self,
        project: Project,
        *,
        stable: int,
        canary: int,
        mirrored: bool = False,
        allowed: Callable[[], object] = lambda: None,
    ) -> Weights:
        """Give each lane its percentage (together 100); returns when Envoy routes so.

        `mirrored`: what is captured goes to the canary lane too, and no client gets its answers. `allowed` is called
        when nobody else can change the table any more; what it raises leaves the table as it is.
        """
        shape = project.task.image
        wanted = ModelRoute(
            model=project.name,
            stable=stable,
            canary=canary,
            timeout_ms=project.serving.timeout_ms,
            capture_percent=project.monitoring.capture_percent,
            image=(shape.height, shape.width, shape.channels),
            max_in_flight=project.serving.max_in_flight,
            mirrored=mirrored,
        )
        with self._locked():
            allowed()
            models = self._models()
            if models.get(project.name) != wanted:
                self._publish({**models, project.name: wanted}, project.name)
        also = ", captured requests are mirrored" if mirrored else ""
        log.info("weights of %s: stable %d, canary %d%s", project.name, stable, canary, also)
        return Weights(stable, canary, mirrored)

    def lane_stats(self, model: str) -> dict[str, LaneCount]:
        """Lane -> requests sent its way and errors it made, live traffic and probes, since Envoy started."""
        return count_lanes(model, self._stats(f"cluster.{model}/"))

    def wait_healthy(self, model: str, lane: str, *, seconds: float = 20.0) -> bool:
        """Wait until Envoy's own checks find the lane's model well; False when they don't."""
        names = {f"{model}/{lane}/http", f"{model}/{lane}/grpc"}
        return self._until(lambda: names <= self._healthy(), seconds)

    def _publish(self, models: dict[str, ModelRoute], changed: str) -> None:
        """Clusters first: a route to an unknown cluster would answer 503."""
        clusters = render_clusters(models, read_addresses(self._folder), version="")
        if clusters["resources"] != self._document("cds.json").get("resources"):
            self._write("cds.json", clusters, CLUSTERS)
            self._await_clusters(changed)
        self._write("rds.json", render_routes(models, version=""), ROUTES)

    def _write(self, name: str, document: dict[str, Any], stat: str) -> None:
        before = self._document(name)
        rejected = self._rejected(stat)
        version = uuid.uuid4().hex
        write_json(self._folder / name, {**document, "version_info": version})
        taken = self._until(lambda: self._version(stat) == version or self._rejected(stat) > rejected, TAKEN_SECONDS)
        if taken and self._version(stat) == version:
            return
        if before:
            write_json(self._folder / name, before)
        raise StoreError(f"Envoy at {self._admin} did not take {name}: {self._why(name)}; the old one stands")

    def _await_clusters(self, model: str) -> None:
        """New clusters are used after their first health check, whatever it says."""
        wanted = set(cluster_names(model))
        if not self._until(lambda: wanted <= self._clusters().keys(), TAKEN_SECONDS):
            missing = sorted(wanted - self._clusters().keys())
            raise StoreError(f"Envoy at {self._admin} did not open the clusters {', '.join(missing)}")

    def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _version(self, stat: str) -> str:
        return str(self._stats(f"{stat}.version_text").get(f"{stat}.version_text", ""))

    def _rejected(self, stat: str) -> int:
        return int(self._stats(f"{stat}.update_").get(f"{stat}.update_rejected", 0))

    def _why(self, name: str) -> str:
        resource = {"rds.json": "dynamic_route_configs", "cds.json": "dynamic_warming_clusters"}[name]
        text = self._get(f"/config_dump?resource={resource}")
        found = [c.get("error_state", {}).get("details") for c in json.loads(text or "{}").get("configs", [])]
        return next((str(detail) for detail in found if detail), "see its log")

    def _clusters(self) -> dict[str, bool]:
        """Cluster -> is one of its hosts healthy?"""
        statuses = json.loads(self._get("/clusters?format=json")).get("cluster_statuses", [])
        return {
            status["name"]: any(_is_healthy(host) for host in status.get("host_statuses", [])) for status in statuses
        }

    def _healthy(self) -> frozenset[str]:
        return frozenset(name for name, healthy in self._clusters().items() if healthy)

    def _stats(self, prefix: str) -> dict[str, Any]:
        pattern = "^" + urllib.parse.quote(prefix.replace(".", r"\."))
        stats = json.loads(self._get(f"/stats?format=json&filter={pattern}"))["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "name" in stat}

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self._admin + path, timeout=5) as answer:  # noqa: S310 (http by settings)
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError) as error:
            raise StoreError(f"Envoy's admin interface at {self._admin} does not answer: {error}") from None

    def _models(self) -> dict[str, ModelRoute]:
        return read_routes(self._document("rds.json"))

    def _document(self, name: str) -> dict[str, Any]:
        try:
            document = json.loads((self._folder / name).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StoreError(f"{self._folder / name} is no JSON: {error}") from None
        return document if isinstance(document, dict) else {}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time on this machine: releases of several projects share the table."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def open_routes(settings: Settings) -> Routes:
    """The route table of the endpoint."""
    return Routes(Path(settings.need("routes")), settings.need("envoy_admin_url"))


def _is_healthy(host: dict[str, Any]) -> bool:
    status = host.get("health_status", {})
    failed = ("failed_active_health_check", "failed_outlier_check", "pending_active_hc")
    return not any(status.get(flag) for flag in failed)
