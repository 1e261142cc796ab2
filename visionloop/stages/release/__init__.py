"""An approved candidate's way into service: preflight, shadow, canary, promote; and rollback, the way back.

Each takes up where a killed process stopped: how far a release came stands in the project's `rollout` document, what
came of it in its `Release` record. A finished release returns its record from every function.
"""

from visionloop.stages.release.doctor import examine, repair
from visionloop.stages.release.ending import call_off
from visionloop.stages.release.inputs import Inputs, RollbackInputs
from visionloop.stages.release.orders import Ended, Status, history, order, status
from visionloop.stages.release.preflight import preflight
from visionloop.stages.release.promotion import promote
from visionloop.stages.release.shadow import shadow
from visionloop.stages.release.steps import canary
from visionloop.stages.release.way_back import abort, foresee, rollback

__all__ = [
    "Ended",
    "Inputs",
    "RollbackInputs",
    "Status",
    "abort",
    "call_off",
    "canary",
    "examine",
    "foresee",
    "history",
    "order",
    "preflight",
    "promote",
    "repair",
    "rollback",
    "shadow",
    "status",
]
