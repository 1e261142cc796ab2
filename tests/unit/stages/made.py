"""Records as tests need them: a field that a test is not about has some value."""

from typing import Any

from visionloop.records import TrainingRun


def training_run(key: str, **fields: Any) -> TrainingRun:
    """A run of one epoch on one CPU."""
    values: dict[str, Any] = {
        "project": "p",
        "snapshot": "s",
        "mlflow_run_id": "m",
        "checkpoint_uri": "c",
        "checkpoint_sha256": "c",
        "epochs": 1,
        "samples_seen": 1,
        "workers": 1,
        "device": "cpu",
        "precision": "fp32",
        "seconds": 1.0,
        "metrics": {},
    }
    return TrainingRun(id=key, **values | fields)
