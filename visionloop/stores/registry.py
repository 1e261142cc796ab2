"""The registry: runs, model versions and aliases in MLflow. Every write finds what an earlier, killed try has written.

MLflow's client is imported when the first call needs it; a server that is down costs seconds, not minutes.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

from visionloop.errors import ConfigError, NotFound, StoreError
from visionloop.records import TrackedRun
from visionloop.settings import Settings
from visionloop.stores.state import State

log = logging.getLogger(__name__)

RECORD = "visionloop.record"
"""Tag of a run: the id of the record that it belongs to."""
CANDIDATE = "visionloop.candidate"
"""Tag of a model version: the URI of its candidate record."""
CHAMPION, CHALLENGER = "champion", "challenger"
PATIENCE = {
    # The client's own defaults hang for minutes; these ride out a restart (1 + 2 + 4 + 8 s) and then say so.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
PARAM_LIMIT = 6000
BATCH_METRICS = 1000

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a project's model; Triton serves it under the same number."""

    version: int
    candidate: str
    """URI of the candidate record."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """One point of a curve."""

    key: str
    value: float
    step: int
    at_ms: int


@dataclass(frozen=True)
class DatasetUse:
    """What a run read: `source` is a URI, `digest` names the version, `profile` is JSON."""

    name: str
    source: str
    digest: str
    profile: str
    context: str = "training"


class Registry:
    """MLflow behind `settings.mlflow_url`. Every method raises StoreError in one line when it cannot be reached."""

    def __init__(self, settings: Settings, state: State) -> None:
        self.url = settings.need("mlflow_url").rstrip("/")
        self._state = state

    def run(self, project: str, record_id: str, *, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Id of the run that belongs to a record: found by its tag, else created. One per record, whatever happens.

        MLflow can keep nothing unique about a run, and its start is the clock of whoever creates it: which of several
        is the record's is therefore settled by compare-and-swap in the object store.
        """
        with self._speaking():
            experiment = self._experiment(project)
            found = self._runs(experiment, record_id)
            if not found:
                all_tags = {RECORD: record_id, **(tags or {})}
                found = [self._client.create_run(experiment, tags=all_tags, run_name=name).info.run_id]

            def settle(current: TrackedRun | None) -> TrackedRun:
                settled = current is not None and current.run_id in self._runs(experiment, record_id)
                return current if current and settled else TrackedRun(run_id=found[0])

            run = self._state.update(TrackedRun, project, f"run-{record_id}", settle).run_id
            for double in self._runs(experiment, record_id):
                if double != run:
                    log.warning("run %s of record %s is a double and is deleted", double, record_id)
                    self._client.delete_run(double)
            self._client.update_run(run, status="RUNNING")
        return run

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Parameters of a run; the same values again change nothing."""
        from mlflow.entities import Param

        with self._speaking():
            self._client.log_batch(
                run_id, params=[Param(key, str(value)[:PARAM_LIMIT]) for key, value in params.items()]
            )

    def log_metrics(self, run_id: str, metrics: Iterable[Metric]) -> None:
        """Points of curves; a point that is there already is not doubled."""
        from mlflow.entities import Metric as Point

        points = [Point(point.key, point.value, point.at_ms, point.step) for point in metrics]
        with self._speaking():
            for start in range(0, len(points), BATCH_METRICS):
                self._client.log_batch(run_id, metrics=points[start : start + BATCH_METRICS])

    def log_dataset(self, run_id: str, use: DatasetUse) -> None:
        """What a run read, as MLflow shows it under the run's datasets."""
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = resolve_dataset_source(use.source)
        known = MetaDataset(source, name=use.name, digest=use.digest).to_dict()
        entity = Dataset(use.name, use.digest, known["source_type"], known["source"], profile=use.profile)
        with self._speaking():
            tags = [InputTag("mlflow.data.context", use.context)]
            self._client.log_inputs(run_id, [DatasetInput(entity, tags)])

    def log_text(self, run_id: str, name: str, text: str) -> None:
        """A small file of a run: a page, a list."""
        with self._speaking():
            self._client.log_text(run_id, text, name)

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """End a run."""
        with self._speaking():
            self._client.set_terminated(run_id, status)

    def register(
        self, project: str, candidate: str, *, source: str, run_id: str, description: str, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        """The version of a candidate: found by its tag, else created. One per candidate, whatever happens.

        `source` is the URI of the model's folder, `run_id` the training run whose logged model it becomes.
        """
        with self._speaking():
            self._ensure_model(project)
            found = self._of_candidate(project, candidate)
            if not found:
                model_id = self._logged_model(project, candidate, run_id)
                everything = {CANDIDATE: candidate, **tags}
                if source.startswith("file:"):  # MLflow takes no folder of this machine
                    source = f"models:/{model_id}"
                self._client.create_model_version(
                    project, source, run_id, tags=everything, description=description, model_id=model_id
                )
                found = self._of_candidate(project, candidate)
            for double in found[1:]:  # two processes, or a retried request: the first stays
                log.warning("version %d of %s is a double and is deleted", double.version, project)
                self._delete_version(project, double.version)
        return found[0]

    def version(self, project: str, version: int) -> RegisteredVersion:
        """One version. Raises NotFound."""
        with self._speaking():
            return _version(self._client.get_model_version(project, str(version)))

    def versions(self, project: str) -> list[RegisteredVersion]:
        """All versions, oldest first; none when the project has no model yet."""
        with self._speaking():
            found = self._client.search_model_versions(f"name = '{project}'", max_results=1000)
            return sorted((_version(item) for item in found), key=lambda item: item.version)

    def champion(self, project: str) -> RegisteredVersion | None:
        """The version that serves, or None before the first release."""
        return self._alias(project, CHAMPION)

    def challenger(self, project: str) -> RegisteredVersion | None:
        """The version that was packaged last, or None."""
        return self._alias(project, CHALLENGER)

    def set_champion(self, project: str, version: int | None) -> None:
        """Move the alias, or take it away; the caller holds the project's lock (last writer wins)."""
        with self._speaking():
            if version is None:
                self._client.delete_registered_model_alias(project, CHAMPION)
            else:
                self._set_alias(project, CHAMPION, version)

    def set_challenger(self, project: str, version: int) -> None:
        """Move the alias."""
        with self._speaking():
            self._set_alias(project, CHALLENGER, version)

    def tag(self, project: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags of a version, overwriting those of the same name."""
        with self._speaking():
            for key, value in tags.items():
                _merged(partial(self._client.set_model_version_tag, project, str(version), key, value))

    @cached_property
    def _client(self) -> Any:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self.url, registry_uri=self.url)

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        try:
            yield
        except MlflowException as error:
            raise self._translated(error) from error
        except RequestException as error:
            raise StoreError(f"MLflow at {self.url} cannot be reached: {_first_line(error)}") from error

    def _translated(self, error: Any) -> StoreError:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return NotFound(f"MLflow at {self.url}: {_first_line(error)}")
        if "Max retries exceeded" in str(error) or "failed with exception" in str(error):
            return StoreError(f"MLflow at {self.url} cannot be reached: is it up? ({_reason(error)})")
        return StoreError(f"MLflow at {self.url} refused: {_first_line(error)}")

    def _experiment(self, project: str) -> str:
        found = self._client.get_experiment_by_name(project)
        if found is None:
            with _passing("RESOURCE_ALREADY_EXISTS"):
                return str(self._client.create_experiment(project))
            found = self._client.get_experiment_by_name(project)
        if found is None or found.lifecycle_stage != "active":
            raise ConfigError(f"the MLflow experiment {project} was deleted: restore it (`mlflow experiments restore`)")
        return str(found.experiment_id)

    def _runs(self, experiment: str, record_id: str) -> list[str]:
        found = self._client.search_runs([experiment], f"tags.`{RECORD}` = '{record_id}'")
        return [run.info.run_id for run in found]

    def _ensure_model(self, project: str) -> None:
        with _passing("RESOURCE_ALREADY_EXISTS"):
            self._client.create_registered_model(project)

    def _delete_version(self, project: str, version: int) -> None:
        """Another process may have found the same double: it is gone, whoever deleted it."""
        with _passing("RESOURCE_DOES_NOT_EXIST"):
            self._client.delete_model_version(project, str(version))

    def _logged_model(self, project: str, candidate: str, run_id: str) -> str:
        """MLflow 3 wants the logged model that a version comes from."""
        from mlflow.entities import LoggedModelStatus

        experiment = self._experiment(project)
        found = self._client.search_logged_models([experiment], f"tags.`{CANDIDATE}` = '{candidate}'", max_results=1)
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                experiment, name=project, source_run_id=run_id, tags={CANDIDATE: candidate}, model_type="onnx"
            )
        )
        if str(model.status) != str(LoggedModelStatus.READY):
            self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def _of_candidate(self, project: str, candidate: str) -> list[RegisteredVersion]:
        return [item for item in self.versions(project) if item.candidate == candidate]

    def _set_alias(self, project: str, alias: str, version: int) -> None:
        _merged(partial(self._client.set_registered_model_alias, project, alias, str(version)))

    def _alias(self, project: str, alias: str) -> RegisteredVersion | None:
        try:
            with self._speaking():
                version = self._client.get_registered_model(project).aliases.get(alias)
        except NotFound:
            return None
        return None if version is None else self.version(project, int(version))


@contextmanager
def _passing(error_code: str) -> Iterator[None]:
    """Let this refusal pass: another process was sooner."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != error_code:
            raise


def _merged(write: Callable[[], object]) -> None:
    """Of two processes that make a row at once MLflow's database refuses one, which then finds the row there."""
    with _passing("BAD_REQUEST"):
        write()
        return
    write()


def _version(found: Any) -> RegisteredVersion:
    return RegisteredVersion(int(found.version), found.tags.get(CANDIDATE, ""), dict(found.tags))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _reason(error: Exception) -> str:
    for word in ("Connection refused", "timed out", "Name or service not known", "Connection reset"):
        if word in str(error):
            return word
    return _first_line(error)[-120:]
