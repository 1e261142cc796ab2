"""Runs one stage of the loop, as a Ray job or, where it is light, in Airflow's worker."""

import json
import shlex
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException

from visionloop import layout
from visionloop_airflow.operator import RayJobOperator
from visionloop_airflow.settle import StageTask, reason_of

RUN_STAGE = "ray_jobs.run_stage"


class StageOperator(StageTask, RayJobOperator):
    """`python -m ray_jobs.run_stage STAGE --project P --inputs JSON --result URI` on the Ray cluster.

    :param project: name of the project.
    :param stage: name of the stage.
    :param inputs: the stage's inputs, URIs of records; templated, so that they come from the tasks before.
    :param module: entry point that takes the same arguments without the stage's name.
    """

    template_fields = ("inputs",)

    def __init__(self, *, project: str, stage: str, inputs: Any, module: str = RUN_STAGE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = project
        self.stage = stage
        self.inputs = inputs
        self.module = module

    def execute(self, context: Context) -> Any:
        """Run the job, unless the task before failed and left nothing to work on."""
        if self.inputs is None:
            raise AirflowSkipException(f"{self.stage} has nothing to work on: the task before it left nothing")
        return super().execute(context)

    def command(self, submission_id: str) -> str:
        """The stage's command line; its result goes to a place of this job's own."""
        stage = [self.stage] if self.module == RUN_STAGE else []
        inputs = json.dumps(self.inputs, sort_keys=True)
        given = ["--project", self.project, "--inputs", inputs, "--result", self._result_uri(submission_id)]
        return shlex.join(["python", "-m", self.module, *stage, *given])

    def finish(self, context: Context, submission_id: str) -> Any:
        """Read what the job left, and go on or end the run."""
        stores = _stores()
        result = json.loads(stores.objects.get(stores.objects.key(self._result_uri(submission_id))))
        if result["uri"]:
            reason = reason_of(stores.ledger.read(result["uri"]))
            return self.settle(context, result["uri"], result["outcome"], reason)
        value = result["value"]
        return self.settle(context, value, value.get("outcome"), str(value.get("reason", "")))

    def _result_uri(self, submission_id: str) -> str:
        objects = _stores().objects
        return str(objects.uri(f"{layout.checked(self.project)}/jobs/{submission_id}.json"))


class LightStageOperator(StageTask):
    """Runs a stage in the worker's own process, where its imports and its work are light.

    :param target: `module:function` of the stage.
    """

    template_fields = ("inputs",)
    ui_color = "#eef3e2"

    def __init__(self, *, project: str, target: str, inputs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.project = project
        self.target = target
        self.inputs = inputs

    def execute(self, context: Context) -> Any:
        """Call the stage; its record's URI is the task's value."""
        from importlib import import_module

        from visionloop.project import load_project, project_file

        stores = _stores()
        project = load_project(project_file(stores.settings.projects, self.project))
        module, _, name = self.target.partition(":")
        function = getattr(import_module(module), name)
        record = function(project, function.__annotations__["inputs"].model_validate(self.inputs), stores)
        outcome = getattr(record, "outcome", None) or getattr(record, "action", None)
        return self.settle(context, stores.ledger.uri(record), outcome, reason_of(record))


def _stores() -> Any:
    from visionloop.settings import load_settings
    from visionloop.stores import connect

    return connect(load_settings())
