"""Asks the project's approvers whether a candidate may be released, and writes their answer down.

The decision is the `Approval` record that `visionloop.stages.approve` writes, not this task's state: whoever marks the
task green in the UI releases nothing, because the release verifies the record against the candidate's digest.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Asset, Context, Param
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput

from visionloop_airflow.evidence import body, subject

REASON = Param("", type="string", title="Why", description="Kept in the approval's record and on the model version")


class ReleaseApproval(ApprovalOperator):
    """Human in the loop, or `approval: automatic`, which is written down as such.

    :param project: name of the project.
    :param approvers: Airflow users who may answer.
    :param automatic: approve without asking.
    :param timeout_hours: nobody answered: rejected.
    :param candidates: asset whose event names the candidate.
    :param params: give it `{"reason": REASON}`, the field of the form.
    """

    template_fields: Sequence[str] = ()

    def __init__(
        self,
        *,
        project: str,
        approvers: Sequence[str],
        automatic: bool,
        timeout_hours: float,
        candidates: Asset,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            subject=f"Release a new version of {project}?",
            assigned_users=[{"id": name, "name": name} for name in approvers],
            response_timeout=timedelta(hours=timeout_hours),
            defaults=self.REJECT,
            **kwargs,
        )
        self.project = project
        self.automatic = automatic
        self.timeout_hours = timeout_hours
        self.candidates = candidates

    def execute(self, context: Context) -> Any:
        """Take an answer that exists, answer by itself where the project says so, or show the figures and ask."""
        from visionloop.records import Approval, Candidate, Evaluation

        stores, project = _open(self.project)
        uri = self._candidate(context, stores)
        known = [found for found in stores.ledger.all(Approval, self.project) if found.candidate == uri]
        last = max(known, key=lambda one: one.created_at, default=None)
        ended = self._ended(context, last, stores) if last else ""
        if last and not ended:
            self.log.info("%s was %s by %s before, which stands", uri, last.decision, last.by)
            return self._go_on(context, uri, last, stores)
        candidate = stores.ledger.get(Candidate, uri)
        shown = {"candidate": uri, "model_sha256": candidate.model_sha256}
        if last:
            shown["after"] = stores.ledger.uri(last)
        if self.automatic:
            reason = "the project file says approval: automatic, so nobody was asked"
            return self._decide(context, shown, "approved", "visionloop", reason, "automatic")
        evaluation = stores.ledger.get(Evaluation, candidate.evaluation)
        champion = stores.ledger.get(Candidate, evaluation.champion) if evaluation.champion else None
        told = body(candidate, evaluation, champion, project)
        late = f"Without an answer within {self.timeout_hours:g} hours it counts as rejected."
        self.subject, self.body = subject(candidate), "\n\n".join(filter(None, [ended, told, late]))
        self._nobody_approves_what_he_started(context)
        try:
            return super().execute(context)
        except TaskAwaitingInput as waiting:
            waiting.kwargs = {"shown": shown}
            raise

    def execute_complete(self, context: Context, event: dict[str, Any], shown: dict[str, str]) -> Any:
        """Somebody has answered, or the time is over: write it down."""
        answer = HITLOperator.execute_complete(self, context, event)
        decision = "approved" if answer["chosen_options"] == [self.APPROVE] else "rejected"
        who = answer["responded_by_user"]
        if who is None:
            reason = f"no approver answered within {self.timeout_hours:g} hours"
            return self._decide(context, shown, "rejected", "visionloop", reason, "automatic")
        reason = (answer["params_input"].get("reason") or "").strip() or "no reason given"
        return self._decide(context, shown, decision, who["id"], reason, "human")

    def _decide(self, context: Context, shown: dict[str, str], decision: str, by: str, reason: str, mode: str) -> Any:
        from visionloop.stages.approve import Inputs, run

        stores, project = _open(self.project)
        inputs = Inputs.model_validate({**shown, "decision": decision, "by": by, "reason": reason, "mode": mode})
        return self._go_on(context, shown["candidate"], run(project, inputs, stores), stores)

    def _go_on(self, context: Context, uri: str, approval: Any, stores: Any) -> Any:
        ti = context["ti"]
        given = {"candidate": uri, "approval": stores.ledger.uri(approval)}
        self.log.info("%s by %s (%s): %s", approval.decision, approval.by, approval.mode, approval.reason)
        ti.xcom_push(key="outcome", value={"outcome": approval.decision, "reason": approval.reason})
        if approval.decision == "rejected":
            ti.xcom_push(key="return_value", value=given)
            self.skip(ti=ti, tasks=context["task"].get_direct_relatives(upstream=False))
        return given

    def _candidate(self, context: Context, stores: Any) -> str:
        """The run's parameter, else the newest of what started the run and what the ledger has.

        An event that comes while a run is queued starts no run of its own, so the event alone may be behind.
        """
        from visionloop.records import Candidate

        named = context["params"].get("candidate")
        if named:
            return str(named)
        events = context["triggering_asset_events"]
        told = [event.extra.get("record") for event in events.get(self.candidates, ())]
        found = [stores.ledger.get(Candidate, uri) for uri in told if uri]
        latest = stores.ledger.latest(Candidate, self.project)
        known = [record for record in (*found, latest) if record is not None]
        if not known:
            raise AirflowFailException(f"{self.project} has no candidate: the train DAG makes one")
        return str(stores.ledger.uri(max(known, key=lambda record: record.created_at)))

    def _ended(self, context: Context, last: Any, stores: Any) -> str:
        """What became of an earlier try, in a run that somebody started by hand since; empty: the decision stands."""
        from visionloop.records import Release

        run = context["dag_run"]
        if run.run_type != "manual" or last.created_at >= run.run_after:
            return ""
        if last.decision == "rejected":
            return f"It was **rejected** before, by {last.by}: {last.reason}"
        mine = [one for one in stores.ledger.all(Release, self.project) if one.approval == stores.ledger.uri(last)]
        tries = [one for one in mine if one.outcome != "promoted"]
        return f"It was **{tries[-1].outcome.replace('_', ' ')}** before: {tries[-1].reason}" if tries else ""

    def _nobody_approves_what_he_started(self, context: Context) -> None:
        starter = context["dag_run"].triggering_user_name
        allowed = [user for user in self.assigned_users or [] if user["id"] != starter]
        if not allowed:
            raise AirflowFailException(
                f"{starter} started this run and is the only approver of {self.project}: "
                "let somebody else start it, or name a second approver in the project file"
            )
        self.assigned_users = allowed


def _open(name: str) -> tuple[Any, Any]:
    from visionloop.project import load_project, project_file
    from visionloop.settings import load_settings
    from visionloop.stores import connect

    settings = load_settings()
    return connect(settings), load_project(project_file(settings.projects, name))
