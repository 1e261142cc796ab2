"""Great Expectations behind one function: a table and what is expected of it -> which rows break what.

Facts that shape it: analytics must be switched off before the import; only the pandas engine is sound; progress bars
write to stderr.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx
from great_expectations import expectations as gxe
from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

from visionloop.errors import StageError

__all__ = ["Expected", "Result", "evaluate", "gxe", "render"]

VIEW = DefaultJinjaPageView()
"""One for all pages: it compiles its templates only once."""


@dataclass(frozen=True)
class Expected:
    """One expectation and what follows when it is broken."""

    name: str
    severity: Literal["error", "quarantine", "warn"]
    reason: str
    """Of the samples that it quarantines."""
    text: str
    """What is expected, for people."""
    expectation: Any
    """A column expectation of Great Expectations."""


@dataclass(frozen=True)
class Result:
    """What Great Expectations found."""

    expected: Expected
    passed: bool
    column: str
    failed_rows: list[int]
    raw: Any
    """The whole validation result that this one is a part of, for its page."""


def evaluate(frame: pd.DataFrame, expected: Sequence[Expected], *, name: str) -> list[Result]:
    """Validate a frame (index 0 to n-1) against column expectations; results in the order of `expected`.

    Raises StageError when Great Expectations could not compute one.
    """
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)  # by default it leaves a folder in /tmp
    context = gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe(name)
    for number, one in enumerate(expected):
        one.expectation.meta = {"number": number, "name": one.name}
    suite = gx.ExpectationSuite(name=name, expectations=[one.expectation for one in expected])
    definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
    # Numbers are written as numpy 1 did: the renderer shows their repr.
    with np.printoptions(legacy="1.25"):
        answer = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
        )
    by_number = {found.expectation_config.meta["number"]: found for found in answer.results}
    return [_result(one, by_number[number], answer) for number, one in enumerate(expected)]


def render(answer: Any) -> str:
    """Great Expectations' own HTML page of a validation result (`Result.raw`)."""
    with np.printoptions(legacy="1.25"):
        return str(VIEW.render(ValidationResultsPageRenderer().render(answer)))


def _result(expected: Expected, found: Any, answer: Any) -> Result:
    if found.exception_info and found.exception_info.get("raised_exception"):
        raise StageError(f"check {expected.name!r} could not be computed: {found.exception_info['exception_message']}")
    column = str(found.expectation_config.kwargs["column"])
    rows = [int(row) for row in found.result.get("unexpected_index_list") or []]
    return Result(expected, bool(found.success), column, rows, answer)
