"""Records and keys as tests need them: a field that a test is not about has some value."""

from pathlib import Path
from typing import Any

from visionloop.packaging.signing import new_key, public_of
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


def signing_keys(folder: Path) -> tuple[Path, Path]:
    """The files of a new private key and its public half."""
    private = new_key()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "signing-key.pem").write_text(private)
    (folder / "verify-key.pem").write_text(public_of(private))
    return folder / "signing-key.pem", folder / "verify-key.pem"
