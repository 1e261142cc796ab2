"""What a stage's outcome means for its DAG run: go on, or end here, green and with a visible reason."""

from collections.abc import Collection
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.bases.skipmixin import SkipMixin
from airflow.sdk.exceptions import AirflowSkipException


def reason_of(record: Any) -> str:
    """A record's own words for its outcome, in one line."""
    reasons = getattr(record, "reasons", None)
    if isinstance(reasons, dict):
        failed = [check.name for check in getattr(record, "checks", []) if not check.passed]
        counted = [f"{reason}: {count}" for reason, count in reasons.items()]
        return "; ".join([*(f"check {name} failed" for name in failed), *counted])
    return "; ".join(reasons) if reasons else str(getattr(record, "reason", ""))


class StageTask(BaseOperator, SkipMixin):
    """A task that ends with a stage's result.

    :param goes_on_with: outcomes after which the run goes on, None for a stage that has no outcome yet; unset: any.
        After another outcome a task with an outlet is skipped, because a skipped task emits no asset event; a task
        without one is green and what follows is skipped.
    """

    inherits_from_skipmixin = True

    def __init__(self, *, goes_on_with: Collection[str | None] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.goes_on_with = list(goes_on_with) if goes_on_with else None

    def settle(self, context: Context, value: Any, outcome: str | None, reason: str) -> Any:
        """Give `value` to the next tasks and to the assets' events, or end the run here."""
        ti = context["ti"]
        ti.xcom_push(key="outcome", value={"outcome": outcome, "reason": reason})
        if self.goes_on_with is None or outcome in self.goes_on_with:
            for asset in self.outlets:
                context["outlet_events"][asset].extra = {"record": value}
            return value
        self.log.warning("the run ends here: %s, %s", outcome, reason or "see the record")
        ti.xcom_push(key="return_value", value=value)
        if self.outlets:
            raise AirflowSkipException(f"{outcome}: {reason}")
        self.skip(ti=ti, tasks=context["task"].get_direct_relatives(upstream=False))
        return value
