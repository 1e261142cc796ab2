"""Ray job: run one stage of one project and leave where its record lies.

python -m ray_jobs.run_stage ingest --project fashion --inputs JSON --result URI
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_type_hints

from visionloop.errors import VisionLoopError
from visionloop.project import Project, load_project, project_file
from visionloop.records import Record
from visionloop.settings import load_settings
from visionloop.stores import Stores, connect

# Not `approve`: a person decides, in Airflow or by REST, and no job may say that one did.
STAGES = {
    "ingest": "visionloop.stages.ingest:run",
    "validate": "visionloop.stages.validate:run",
    "snapshot": "visionloop.stages.snapshot:run",
    "train": "visionloop.stages.train:run",
    "evaluate": "visionloop.stages.evaluate:run",
    "gate": "visionloop.stages.gate:run",
    "package": "visionloop.stages.package:run",
    "preflight": "visionloop.stages.release:preflight",
    "shadow": "visionloop.stages.release:shadow",
    "canary": "visionloop.stages.release:canary",
    "promote": "visionloop.stages.release:promote",
    "call_off": "visionloop.stages.release:call_off",
    "window": "visionloop.stages.monitor:window",
    "drift": "visionloop.stages.monitor:drift",
    "trigger": "visionloop.stages.trigger:run",
}

log = logging.getLogger("visionloop.job")


def parse_arguments(argv: list[str] | None = None, *, stage: str | None = None) -> argparse.Namespace:
    """The arguments that every job takes; `stage` fixes the first one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if stage is None:
        parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--project", required=True, help="name of the project")
    parser.add_argument("--inputs", required=True, type=json.loads, help="JSON object of the stage's inputs")
    parser.add_argument("--result", help="URI in the object store for the outcome")
    return parser.parse_args(argv, argparse.Namespace(stage=stage) if stage else None)


def run(arguments: argparse.Namespace, **options: Any) -> int:
    """Run the stage and write the result; a user's fault ends in one line and exit code 1."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("botocore", "urllib3", "great_expectations", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    settings = load_settings()
    try:
        project = load_project(project_file(settings.projects, arguments.project))
        stores = connect(settings)
        record = _call(STAGES[arguments.stage], project, arguments.inputs, stores, options)
        if arguments.result:
            write_result(stores, arguments.result, record)
    except VisionLoopError as error:
        log.error("%s: %s", type(error).__name__, error)
        return 1
    return 0


def write_result(stores: Stores, uri: str, record: Any) -> None:
    """Leave `{uri, kind, id, outcome, action}` for the task that waits; what is no record is written whole."""
    if isinstance(record, Record):
        outcome = getattr(record, "outcome", None) or getattr(record, "action", None)
        result = {"uri": stores.ledger.uri(record), "kind": record.kind, "id": record.id, "outcome": outcome}
    else:
        result = {"uri": None, "kind": type(record).__name__, "value": record.model_dump(mode="json")}
    stores.objects.put(stores.objects.key(uri), json.dumps(result).encode(), "application/json")
    log.info("result %s", json.dumps(result))


def _call(target: str, project: Project, inputs: dict[str, Any], stores: Stores, options: dict[str, Any]) -> Any:
    module_name, _, function_name = target.partition(":")
    module = import_module(module_name)
    function: Callable[..., Any] = getattr(module, function_name)
    kind = get_type_hints(function)["inputs"]
    return function(project, kind.model_validate(inputs), stores, **options)


if __name__ == "__main__":
    sys.exit(run(parse_arguments()))
