"""What was captured of a release's two models: the files, found by their keys, and their rows."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from visionloop import layout
from visionloop.errors import DataError
from visionloop.monitoring.windows import Capture, parse_capture
from visionloop.serving.envoy_capture import SHADOW
from visionloop.stages.release.rollout import Rollout


def served(rollout: Rollout, since_ms: float = 0.0) -> list[Capture]:
    """What the champion answered to clients."""
    serving = rollout.serving()
    assert serving is not None  # the shadow is left out where nothing serves
    return [one for one in _captures(rollout, serving.version, since_ms) if one.lane != SHADOW]


def shadows(rollout: Rollout, since_ms: float) -> list[Capture]:
    """What the candidate answered to mirrored requests."""
    return [one for one in _captures(rollout, rollout.candidate.version, since_ms) if one.lane == SHADOW]


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


def _captures(rollout: Rollout, version: int, since_ms: float) -> Iterator[Capture]:
    prefix = f"{layout.captures(rollout.project.name)}version={version}/"
    for item in rollout.stores.objects.scan(prefix):
        capture = parse_capture(item.key)
        if capture and capture.at_ms >= since_ms:
            yield capture
