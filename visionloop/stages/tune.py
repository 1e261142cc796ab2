"""Tune: how a version is served best on the machine of its lanes. Measured in the canary lane while it is empty."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visionloop import layout
from visionloop.errors import NotFound, StageError, StoreError
from visionloop.project import Project
from visionloop.records import Candidate, Frozen, TunedPoint, Tuning, record_id
from visionloop.reports.tuning import render
from visionloop.serving.golden import read_golden
from visionloop.serving.triton_config import render_json
from visionloop.serving.tuning import Setting, choose, median_of, settings
from visionloop.stores import Stores
from visionloop.stores.load import closed_loop
from visionloop.stores.packaged import GOLDEN, MODEL, read_packaged
from visionloop.stores.triton import OWN, ModelRefused

log = logging.getLogger(__name__)

NAME = f"{OWN}tuning"
WARM_SHARE = 0.25
"""Of the seconds of a measurement, before it."""
PAGE = "tuning.html"


class Inputs(Frozen):
    """What to measure, and how long."""

    version: int | None = None
    """Unset: the champion."""
    target_p99_ms: float
    concurrency: int = 64
    images_per_request: int = 1
    seconds: float = 2.0
    """Of each measurement."""
    rounds: int = Field(3, ge=1)
    """Each visits every setting; medians count, so that what else runs for a moment hits none of them alone."""
    cores: int | None = None
    """Unset: those of this machine."""


def plan(inputs: Inputs) -> list[Setting]:
    """What would be tried."""
    return settings(inputs.cores or os.cpu_count() or 1)


def run(
    project: Project, inputs: Inputs, stores: Stores, *, report: Callable[[TunedPoint], None] = lambda point: None
) -> Tuning:
    """Measure each setting, choose, record with a page. `report` hears of each measurement.

    Raises NotFound without such a version, StageError where a release uses the canary lane or begins to meanwhile,
    IntegrityError for a model that this installation did not sign.
    """
    candidate = _candidate(project, inputs.version, stores)
    _check_free(stores)
    files = read_packaged(candidate, stores, GOLDEN)
    images = _images(files[GOLDEN], inputs.images_per_request)
    stores.canary.unload(NAME)  # what a killed tuning left: an override of instances alone would keep its processes
    measured: dict[Setting, list[TunedPoint]] = {setting: [] for setting in plan(inputs)}
    for _ in range(inputs.rounds):
        for setting, points in measured.items():
            with _loaded(project, files[MODEL], setting, stores):
                points.append(_measured(setting, images, inputs, stores))
            _check_free(stores)  # what was measured beside a release is no measurement, and disturbs it
            report(points[-1])
    return _recorded(project, candidate, inputs, [median_of(points) for points in measured.values()], stores)


def _candidate(project: Project, version: int | None, stores: Stores) -> Candidate:
    champion = stores.registry.champion(project.name)
    wanted = version or (champion.version if champion else None)
    known = stores.ledger.all(Candidate, project.name)
    for candidate in reversed(known):
        if candidate.version == wanted:
            return candidate
    versions = ", ".join(str(number) for number in sorted({candidate.version for candidate in known}))
    asked = f"version {version}" if version else "champion yet"
    raise NotFound(f"{project.name} has no {asked}: its packaged versions are {versions or 'none'}")


def _images(golden: bytes, count: int) -> NDArray[np.uint8]:
    images = read_golden(golden).images
    return np.resize(images, (count, *images.shape[1:]))


def _check_free(stores: Stores) -> None:
    busy = stores.canary.models()
    if busy:
        raise StageError(f"the canary lane is in use by {', '.join(busy)}: tune when its release has ended")


@contextmanager
def _loaded(project: Project, model: bytes, setting: Setting, stores: Stores) -> Iterator[None]:
    """In the canary lane under a name of its own, gone at the end."""
    serving = project.serving.model_copy(update=vars(setting))
    config = render_json(project.model_copy(update={"serving": serving}), 1, name=NAME)
    stores.canary.load_sent(NAME, config, {f"file:1/{MODEL}": model})
    try:
        yield
    finally:
        try:
            stores.canary.unload(NAME)
        except (StoreError, ModelRefused) as error:
            log.warning("the canary lane was not unloaded: %s", error)


def _measured(setting: Setting, images: NDArray[np.uint8], inputs: Inputs, stores: Stores) -> TunedPoint:
    began = time.monotonic()
    found = closed_loop(
        stores.canary.address,
        NAME,
        images,
        concurrency=inputs.concurrency,
        warm_seconds=inputs.seconds * WARM_SHARE,
        seconds=inputs.seconds,
    )
    log.info("%s: %d answers in %.1f s", setting, len(found.latencies_ms), time.monotonic() - began)
    return TunedPoint(
        **vars(setting),
        images_per_second=len(found.latencies_ms) * len(images) / found.seconds,
        p50_ms=found.percentile_ms(50),
        p99_ms=found.percentile_ms(99),
        failures=found.failures,
    )


def _recorded(
    project: Project, candidate: Candidate, inputs: Inputs, points: list[TunedPoint], stores: Stores
) -> Tuning:
    """A tuning is an experiment: each has a record of its own."""
    tuning_id = record_id("tuning", project.name, candidate=candidate.id, at=time.time_ns())
    key = layout.artifact(project.name, "tuning", tuning_id, PAGE)
    uris = {"candidate": stores.ledger.uri(candidate)}
    tuning = Tuning(
        id=tuning_id,
        project=project.name,
        inputs=uris,
        input_digests=stores.ledger.digests(uris),
        config_digest=project.config_digest("serving"),
        version=candidate.version,
        model_sha256=candidate.model_sha256,
        target_p99_ms=inputs.target_p99_ms,
        concurrency=inputs.concurrency,
        images_per_request=inputs.images_per_request,
        seconds=inputs.seconds,
        rounds=inputs.rounds,
        cores=inputs.cores or os.cpu_count() or 1,
        points=points,
        chosen=choose(points, inputs.target_p99_ms),
        page_uri=stores.objects.uri(key),
    )
    stores.objects.put(key, render(tuning).encode(), "text/html; charset=utf-8")
    return stores.ledger.put(tuning)
