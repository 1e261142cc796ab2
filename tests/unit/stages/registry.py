"""The registry in memory: what the stages ask of MLflow, with the same promises (found by tag, nothing doubled)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from visionloop.errors import StoreError
from visionloop.stores.registry import CANDIDATE, DatasetUse, Metric, RegisteredVersion


@dataclass
class Run:
    """One run."""

    record: str
    name: str
    tags: dict[str, str]
    status: str = "RUNNING"
    params: dict[str, str] = field(default_factory=dict)
    points: set[Metric] = field(default_factory=set)
    datasets: list[DatasetUse] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class MemoryRegistry:
    """Set `down` to take the server away."""

    down: bool = False
    runs: dict[str, Run] = field(default_factory=dict)
    registered: list[RegisteredVersion] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def run(self, project: str, record_id: str, *, name: str, tags: Mapping[str, str] | None = None) -> str:
        self._answer()
        run_id = f"mlflow-{project}-{record_id}"
        self.runs.setdefault(run_id, Run(record_id, name, dict(tags or {}))).status = "RUNNING"
        return run_id

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        self._answer()
        for key, value in params.items():
            assert self.runs[run_id].params.setdefault(key, str(value)) == str(value), "MLflow refuses another value"

    def log_metrics(self, run_id: str, metrics: Iterable[Metric]) -> None:
        self._answer()
        self.runs[run_id].points.update(metrics)

    def log_dataset(self, run_id: str, use: DatasetUse) -> None:
        self._answer()
        if use not in self.runs[run_id].datasets:
            self.runs[run_id].datasets.append(use)

    def log_text(self, run_id: str, name: str, text: str) -> None:
        self._answer()
        self.runs[run_id].files[name] = text

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        self._answer()
        self.runs[run_id].status = status

    def register(
        self, project: str, candidate: str, *, source: str, run_id: str, description: str, tags: Mapping[str, str]
    ) -> RegisteredVersion:
        self._answer()
        assert run_id in self.runs
        for known in self.registered:
            if known.candidate == candidate:
                return known
        version = RegisteredVersion(len(self.registered) + 1, candidate, {CANDIDATE: candidate, **tags})
        self.registered.append(version)
        self.sources.append(source)
        self.descriptions.append(description)
        return version

    def tag(self, project: str, version: int, tags: Mapping[str, str]) -> None:
        self._answer()
        known = self.registered[version - 1]
        self.registered[version - 1] = RegisteredVersion(version, known.candidate, {**known.tags, **tags})

    def champion(self, project: str) -> RegisteredVersion | None:
        return self._alias("champion")

    def challenger(self, project: str) -> RegisteredVersion | None:
        return self._alias("challenger")

    def set_champion(self, project: str, version: int) -> None:
        self._answer()
        self.aliases["champion"] = version

    def set_challenger(self, project: str, version: int) -> None:
        self._answer()
        self.aliases["challenger"] = version

    def _alias(self, name: str) -> RegisteredVersion | None:
        self._answer()
        return self.registered[self.aliases[name] - 1] if name in self.aliases else None

    def _answer(self) -> None:
        if self.down:
            raise StoreError("MLflow at memory cannot be reached: is it up?")
