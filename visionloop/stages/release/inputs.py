"""What the functions of a release are given."""

from visionloop.records import Frozen


class Inputs(Frozen):
    """Of preflight, canary and promote."""

    candidate: str
    """URI."""
    approval: str
    """URI of the decision about it."""


class RollbackInputs(Frozen):
    """Of rollback."""

    to_version: int | None = None
    """Unset: the version that served before the present one; or, while a canary runs, the present one."""
    by: str
    reason: str
