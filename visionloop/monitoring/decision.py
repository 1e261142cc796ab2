"""Does the loop have to turn? A pure function of the evidence: nothing, or a retrain request, with reasons. Light."""

from datetime import datetime, timedelta
from typing import Literal

from visionloop.project import Monitoring
from visionloop.records import DriftReport, Frozen, id_of

Action = Literal["none", "retrain"]

MIN_WINDOW_SHARE = 0.5
"""A window with less than this share of `window_samples` (images are sampled, files get lost) decides nothing."""


class Evidence(Frozen):
    """What the decision rests on."""

    report: DriftReport
    champion: str | None
    """The candidate that serves now (id or URI), None before the first release."""
    open_request: str | None
    """URI of the retrain request that is open, None when there is none."""
    last_release_at: datetime | None
    last_request_at: datetime | None
    now: datetime


def decide(evidence: Evidence, policy: Monitoring) -> tuple[Action, list[str]]:
    """`retrain` when the window is drifted and nothing speaks against it; the first reason is the decisive one."""
    against = [reason for reason in _against(evidence, policy) if reason]
    seen = _seen(evidence.report, policy)
    if against:
        return "none", [*against, *seen]
    return "retrain", seen


def _against(evidence: Evidence, policy: Monitoring) -> list[str | None]:
    return [
        _too_small(evidence.report, policy),
        _not_drifted(evidence.report, policy),
        _of_another_model(evidence),
        _already_open(evidence),
        _cooling_down(evidence, policy),
    ]


def _too_small(report: DriftReport, policy: Monitoring) -> str | None:
    needed = MIN_WINDOW_SHARE * policy.window_samples
    if report.window_samples >= needed:
        return None
    return f"the window is too small: {report.window_samples} samples with an image, at least {needed:.0f} are needed"


def _not_drifted(report: DriftReport, policy: Monitoring) -> str | None:
    if report.drifted:
        return None
    changed = sum(view.drifted for view in report.views)
    return f"no drift: {changed} of {len(report.views)} views changed, {policy.min_views} would be drift"


def _of_another_model(evidence: Evidence) -> str | None:
    about = id_of(evidence.report.candidate)
    if evidence.champion is None:
        return f"no model is released, the report is about candidate {about}"
    serves = id_of(evidence.champion)
    return None if serves == about else f"the report is about candidate {about}, meanwhile {serves} serves"


def _already_open(evidence: Evidence) -> str | None:
    return f"retrain request {id_of(evidence.open_request)} is open already" if evidence.open_request else None


def _cooling_down(evidence: Evidence, policy: Monitoring) -> str | None:
    cooldown = timedelta(minutes=policy.cooldown_minutes)
    for what, at in (("release", evidence.last_release_at), ("retrain request", evidence.last_request_at)):
        if at is not None and evidence.now - at < cooldown:
            ends = (at + cooldown).isoformat(timespec="seconds")
            return f"cooldown of {policy.cooldown_minutes:g} minutes since the last {what}: until {ends}"
    return None


def _seen(report: DriftReport, policy: Monitoring) -> list[str]:
    """One line per view, the drifted ones first."""
    views = sorted(report.views, key=lambda view: not view.drifted)
    return [
        f"{view.name} view {'changed' if view.drifted else 'unchanged'}: {view.drifted_columns} of {view.columns} "
        f"columns (limit {view.threshold:.0%}); {view.detail}"
        for view in views
    ]
