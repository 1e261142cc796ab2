"""What was captured of a release's two models: the files, found by their keys, and their rows.

Files have a folder an hour, and only the hours that matter are listed: a champion has years of them.
"""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from visionloop import layout
from visionloop.errors import DataError
from visionloop.monitoring.windows import Capture, parse_capture
from visionloop.serving.envoy_capture import SHADOW
from visionloop.serving.envoy_clusters import LANES
from visionloop.stages.release.rollout import Rollout

CLOCKS_MS = 5_000
"""By so much the clocks of this machine and the capture service's may differ."""
HOUR = "hour=%Y%m%d%H"


def served(rollout: Rollout, since_ms: float) -> list[Capture]:
    """What the champion answered to clients since then."""
    return _since(rollout, _champion(rollout), LANES, since_ms)


def shadows(rollout: Rollout, since_ms: float) -> list[Capture]:
    """What the candidate answered to mirrored requests since then."""
    return answered(rollout, SHADOW, since_ms)


def answered(rollout: Rollout, lane: str, since_ms: float) -> list[Capture]:
    """What the candidate answered in this lane since then."""
    return _since(rollout, rollout.candidate.version, [lane], since_ms)


def newest_served(rollout: Rollout) -> Iterator[Capture]:
    """All that the champion ever answered, the newest file first: take what is needed, no more is listed."""
    folders = [_folder(rollout, _champion(rollout), lane) for lane in LANES]
    hours = {(hour, folder) for folder in folders for hour in rollout.stores.objects.folders(folder)}
    for newest in sorted({hour for hour, _ in hours}, reverse=True):
        found = [one for hour, folder in hours if hour == newest for one in _listed(rollout, f"{folder}{hour}/")]
        yield from sorted(found, key=lambda one: one.at_ms, reverse=True)


def read_rows(rollout: Rollout, capture: Capture, columns: Sequence[str]) -> pa.Table:
    """These columns of a file. Raises DataError for one that has them not."""
    data = rollout.stores.objects.get(capture.key)
    with reading(rollout, capture):
        return pq.read_table(io.BytesIO(data), columns=list(columns)).select(list(columns))


@contextmanager
def reading(rollout: Rollout, capture: Capture) -> Iterator[None]:
    """Whatever looks at a file's rows: what Arrow finds wrong with them is a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{rollout.stores.objects.uri(capture.key)} is no capture file: {error}") from error


def _champion(rollout: Rollout) -> int:
    assert rollout.champion is not None  # where nothing serves, nothing is asked for
    return rollout.champion


def _since(rollout: Rollout, version: int, lanes: Sequence[str], since_ms: float) -> list[Capture]:
    folders = [f"{_folder(rollout, version, lane)}{hour}/" for lane in lanes for hour in _hours(since_ms)]
    return [one for folder in folders for one in _listed(rollout, folder) if one.at_ms >= since_ms]


def _hours(since_ms: float) -> Iterator[str]:
    """Names of the folders from then until now."""
    hour = datetime.fromtimestamp(since_ms / 1000, UTC).replace(minute=0, second=0, microsecond=0)
    now = datetime.fromtimestamp(time.time() + CLOCKS_MS / 1000, UTC)
    while hour <= now:
        yield hour.strftime(HOUR)
        hour += timedelta(hours=1)


def _folder(rollout: Rollout, version: int, lane: str) -> str:
    return f"{layout.captures(rollout.project.name)}version={version}/lane={lane}/"


def _listed(rollout: Rollout, folder: str) -> list[Capture]:
    found = (parse_capture(item.key) for item in rollout.stores.objects.scan(folder))
    return [one for one in found if one]
