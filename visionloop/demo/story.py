"""The story that the demo tells: first model, clean traffic, a camera that changes, the loop that answers.

It delivers batches, calls the endpoint, unpauses and watches DAG runs, and answers the approvals over REST: what users
do, and nothing else.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from visionloop import layout
from visionloop.demo import fashion
from visionloop.demo.report import (
    Accuracy,
    ApprovalFacts,
    DriftFacts,
    ReleaseFacts,
    Report,
    Timed,
    WindowFacts,
)
from visionloop.demo.traffic import Background, Camera, Served, serve
from visionloop.demo.watch import DAGS, Watch
from visionloop.errors import StageError
from visionloop.project import Project
from visionloop.records import Approval, Candidate, DriftReport, Evaluation, Release, TriggerDecision
from visionloop.serving.client import open_client
from visionloop.settings import Settings
from visionloop.stages import deliver
from visionloop.stores import connect
from visionloop.stores.airflow import open_airflow

FIRST_BATCH = 30_000
"""Labelled images of the first camera."""
CLEAN, LABELLED, MEASURED = (0, 2_500), (2_500, 6_500), (6_500, 9_000)
"""Ranges of the test images: served as they are; served through the changed camera and labelled later; measured
before and after through the changed camera, and never labelled."""
SEED = 11
READING_SECONDS = 5.0
"""No person answers faster, and Airflow is not made for it: its scheduler takes a task that goes on within the second
in which it paused for one that died, and tries it again."""
MINUTE = 60.0


class Story:
    """One run of the demo against a stack that is up and has never seen the project."""

    def __init__(self, project: Project, settings: Settings, console: Console) -> None:
        self.project, self.settings, self.console = project, settings, console
        self.stores = connect(settings)
        self.airflow = open_airflow(settings)
        self.client = open_client(settings, project, most_tries=1)  # what fails is to be seen
        self.watch = Watch(self.airflow, project.name, console)
        self.stages: list[Timed] = []
        self.served: dict[str, Served] = {}

    def tell(self, services: dict[str, str], began: float) -> Report:
        """Run it from the first batch to the last measurement. Raises StageError where the loop does not turn."""
        clean, changed = self._cameras()
        with self.stage("first batch, first model"):
            self._unpause()
            self._deliver_first()
            first = self._release(None)
        with self.stage("clean traffic"):
            self._measure("clean_v1", clean)
        with self.stage("the monitor looks at clean traffic"):
            quiet = self._clean_windows()
        with self.stage("the camera changes"):
            self._measure("changed_before", changed.part(*_shifted(MEASURED)))
            self._measure("changed_labelled", changed.part(*_shifted(LABELLED)))
        with self.stage("the monitor notices"):
            noticed = self._noticed(changed)
        with self.stage("labels arrive, second model"), self._traffic("during_release", changed):
            self._deliver_labelled(changed.part(*_shifted(LABELLED)))
            second = self._release(first)
        with self.stage("the camera after the loop"):
            self._measure("changed_after", changed.part(*_shifted(MEASURED)))
            self._measure("clean_after", clean)
        return Report(
            seconds=time.monotonic() - began,
            stages=self.stages,
            services=services,
            served_images=sum(served.images for served in self.served.values()),
            served={name: served.images for name, served in self.served.items()},
            failed_requests=sum(served.failed_requests for served in self.served.values()),
            accuracy=Accuracy(**{name: self.served[name].accuracy for name in Accuracy.model_fields}),
            drift=self._drift(quiet, noticed),
            releases=[self._facts(first), self._facts(second)],
            links=self._links(second, noticed),
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the story and say that it begins and ends."""
        began = time.monotonic()
        self.console.print(f"[bold]{name}[/]")
        yield
        seconds = time.monotonic() - began
        self.stages.append(Timed(name=name, seconds=round(seconds, 1)))
        self.console.print(f"  [dim]{seconds:.0f} s[/]")

    def _cameras(self) -> tuple[Camera, Camera]:
        images, labels = fashion.clean("test", 0, MEASURED[1])
        names = [self.project.task.classes[label] for label in labels]
        changed = fashion.through_changed_camera(images[CLEAN[1] :], seed=SEED)
        return Camera(images[: CLEAN[1], ..., None], names[: CLEAN[1]]), Camera(changed[..., None], names[CLEAN[1] :])

    def _unpause(self) -> None:
        for name in DAGS:
            unpaused = partial(self.airflow.unpause, f"{self.project.name}__{name}")
            self.watch.until(f"Airflow reads the DAG {name}", _truthy(unpaused), limit_seconds=MINUTE)

    def _deliver_first(self) -> None:
        images, labels = fashion.clean("train", 0, FIRST_BATCH)
        folder = self.settings.home / "deliveries" / "belt-1-first"
        self._upload(fashion.write_idx(folder, images, labels, metadata={"camera": "belt-1"}))

    def _deliver_labelled(self, camera: Camera) -> None:
        labels = np.array([fashion.CLASSES.index(label) for label in camera.labels], np.uint8)
        folder = self.settings.home / "deliveries" / "belt-1-relabelled"
        metadata = {"camera": "belt-1-changed"}
        self._upload(fashion.write_folders(folder, camera.images[..., 0], labels, metadata=metadata))

    def _upload(self, folder: Path) -> None:
        delivery = deliver.run(self.project, deliver.Inputs(folder=folder, batch=folder.name), self.stores)
        size = f"{delivery.files:,} files, {delivery.size_bytes / 1e6:.1f} MB"
        self.console.print(f"  delivered {delivery.batch}: {size}")

    def _measure(self, name: str, camera: Camera) -> None:
        self.served[name] = serve(self.client, camera)
        served = self.served[name]
        versions = ", ".join(map(str, sorted(served.versions)))
        self.console.print(f"  {name}: accuracy {served.accuracy:.3f} on {served.images:,} images (version {versions})")

    @contextmanager
    def _traffic(self, name: str, camera: Camera) -> Iterator[None]:
        with Background(self.client, camera, images_per_second=50) as traffic:
            yield
        self.served[name] = traffic.served

    def _release(self, before: Release | None) -> Release:
        """Wait for a candidate, approve it as the approver does, wait until it is live."""
        known = before.id if before else None
        approver = self.project.release.approvers[0]
        self.watch.until("a candidate awaits approval", self._waiting_approval, limit_seconds=6 * MINUTE)
        said = self.airflow.answer(
            self.project.name, user=approver, decision="Approve", reason="better on the figures shown; demo"
        )
        self.console.print(f"  {approver} approved {said}")

        def live() -> Release | None:
            found = self.stores.ledger.latest(Release, self.project.name)
            return found if found and found.id != known else None

        release = self.watch.until("the canary proves itself", live, limit_seconds=4 * MINUTE)
        if release.outcome != "promoted":
            raise StageError(f"version {release.version} was not promoted: {release.reason}")
        self.console.print(f"  version {release.version} is live: {release.reason}")
        return release

    def _waiting_approval(self) -> bool | None:
        looked_at = datetime.now(UTC) - timedelta(seconds=READING_SECONDS)
        return any(found.since < looked_at for found in self.airflow.pending_approvals(self.project.name)) or None

    def _reports(self) -> list[DriftReport]:
        return self.stores.ledger.all(DriftReport, self.project.name)

    def _clean_windows(self) -> list[DriftReport]:
        """Reports on the clean traffic: all of it, but for a rest that fills no window."""
        wanted = CLEAN[1] - CLEAN[0] - self.project.monitoring.window_samples

        def enough() -> list[DriftReport] | None:
            found = self._reports()
            return found if sum(report.window_samples for report in found) > wanted else None

        return self.watch.until("the monitor looks at clean traffic", enough, limit_seconds=3 * MINUTE)

    def _noticed(self, changed: Camera) -> TriggerDecision:
        """The retrain request; traffic goes on meanwhile, as it would."""

        def asked() -> TriggerDecision | None:
            decisions = self.stores.ledger.all(TriggerDecision, self.project.name)
            return next((decision for decision in decisions if decision.action == "retrain"), None)

        with self._traffic("until_noticed", changed):
            decision = self.watch.until("the monitor notices", asked, limit_seconds=4 * MINUTE)
        self.console.print(f"  retrain request: {decision.reasons[0]}")
        return decision

    def _drift(self, quiet: list[DriftReport], noticed: TriggerDecision) -> DriftFacts:
        deciding = self.stores.ledger.get(DriftReport, noticed.drift_report)
        known = {report.id for report in quiet}
        # A window that holds both the last clean and the first changed images is not a clean one.
        later = [r for r in self._reports() if r.id not in known and r.created_at <= deciding.created_at]
        return DriftFacts(
            clean_window=_window_facts(quiet, any(report.drifted for report in quiet)),
            changed_window=_window_facts(later, deciding.drifted),
            windows_to_decision=len(later),
        )

    def _facts(self, release: Release) -> ReleaseFacts:
        approval = self.stores.ledger.get(Approval, release.approval)
        facts = ApprovalFacts(by=approval.by, mode=approval.mode, decision=approval.decision, reason=approval.reason)
        return ReleaseFacts(
            version=release.version, model_sha256=release.model_sha256, approval=facts, canary=release.steps
        )

    def _links(self, release: Release, noticed: TriggerDecision) -> dict[str, str]:
        candidate = self.stores.ledger.get(Candidate, release.candidate)
        report = self.stores.ledger.get(DriftReport, noticed.drift_report)
        return {
            "Airflow": self.settings.need("airflow_url"),
            "MLflow": self.settings.need("mlflow_url"),
            "Ray": self.settings.need("ray_url"),
            "endpoint": f"{self.settings.need('endpoint_url')}/v2/models/{self.project.name}/infer",
            "evaluation": self._page(self.stores.ledger.get(Evaluation, candidate.evaluation).page_uri),
            "drift report": self._page(report.html_uri),
        }

    def _page(self, uri: str) -> str:
        """Where Airflow shows it to whoever may see the project."""
        return layout.link(self.airflow.url, self.project.name, uri)


def _shifted(part: tuple[int, int]) -> tuple[int, int]:
    """A range of the test images as a range of those behind the clean ones."""
    return part[0] - CLEAN[1], part[1] - CLEAN[1]


def _truthy(ask: Callable[[], bool]) -> Callable[[], bool | None]:
    """A question whose no means: ask again."""
    return lambda: ask() or None


def _window_facts(reports: list[DriftReport], drifted: bool) -> WindowFacts:
    views = {view.name: view.share for view in reports[-1].views} if reports else {}
    return WindowFacts(drifted=drifted, windows=len(reports), views=views)
