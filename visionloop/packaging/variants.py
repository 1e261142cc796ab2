"""Chooses the variant that is served: the cheapest that passes the gate within the project's margin. Pure."""

from collections.abc import Sequence

from visionloop.project import Packaging
from visionloop.records import Trial, Variant

BASE = "fp32"
LEAST_SAVING = 0.1
"""Share of fp32's cost that a variant must save: a smaller difference may be the measurement's."""
MADE_FOR = {"int8": "cpu", "fp16": "gpu"}
TINY = 1e-12


def choose(trials: Sequence[Trial], policy: Packaging) -> list[Variant]:
    """All trials, fp32 first, at most one of them chosen, each with the reason.

    None is chosen when none passes the gate; fp32 needs no more than that.
    """
    base = next(trial for trial in trials if trial.name == BASE)
    ordered = [base, *(trial for trial in trials if trial is not base)]
    against = {trial.name: _against(trial, base, policy) for trial in ordered}
    standing = [trial for trial in ordered if not against[trial.name]]
    best = min(standing, key=lambda trial: (trial is base, _cost(trial)), default=None)
    return [_told(trial, against[trial.name], best, base) for trial in ordered]


def _against(trial: Trial, base: Trial, policy: Packaging) -> str:
    """Why this one may not be served, or nothing."""
    if trial.gate != "passed":
        return f"the gate rejects it: {'; '.join(trial.gate_reasons)}"
    if trial.name == BASE:
        return ""
    if MADE_FOR[trial.name] != policy.device:
        kinds = {"cpu": "a CPU", "gpu": "a GPU"}
        made_for, found = kinds[MADE_FOR[trial.name]], kinds[policy.device]
        return f"it is made for {made_for}, the lanes compute on {found} (packaging.device)"
    return _loss(trial, policy) or _saving(trial, base)


def _loss(trial: Trial, policy: Packaging) -> str:
    judged = [change for change in trial.changes if change.judged]
    worst = min(judged, key=lambda change: change.difference.value, default=None)
    if worst is None or worst.difference.value >= -policy.max_loss - TINY:
        return ""
    lost, may = -100 * worst.difference.value, 100 * policy.max_loss
    return f"it loses {lost:.2f} points in {worst.scenario}, {may:.2f} may be lost (packaging.max_loss)"


def _saving(trial: Trial, base: Trial) -> str:
    if trial.seconds_per_1000_images is None or base.seconds_per_1000_images is None:
        return "its cost is not known: the machine that packaged it has no such device (packaging.device)"
    if trial.seconds_per_1000_images <= (1 - LEAST_SAVING) * base.seconds_per_1000_images:
        return ""
    share = 100 * trial.seconds_per_1000_images / base.seconds_per_1000_images
    return f"it costs {share:.0f} % of fp32, at most {100 * (1 - LEAST_SAVING):.0f} % is worth a change"


def _told(trial: Trial, against: str, best: Trial | None, base: Trial) -> Variant:
    chosen = trial is best
    reason = against
    if chosen:
        reason = "no cheaper variant may be served" if trial is base else _for(trial, base)
    elif not against and best is not None:
        reason = f"{best.name} is cheaper"
    return Variant.model_validate({**dict(trial), "chosen": chosen, "reason": reason})


def _for(trial: Trial, base: Trial) -> str:
    share = 100 * _cost(trial) / _cost(base)
    lost = max((-change.difference.value for change in trial.changes if change.judged), default=0.0)
    return f"it costs {share:.0f} % of fp32 and loses at most {max(0.0, 100 * lost):.2f} points"


def _cost(trial: Trial) -> float:
    return float("inf") if trial.seconds_per_1000_images is None else trial.seconds_per_1000_images
