"""The contract of a batch: a Great Expectations suite over its table, and what follows from each broken expectation.

Two questions, asked one after the other. About every sample: may it enter? If not, it is quarantined under the first
reason that holds (the checks stand in that order). Then about the batch as a whole, given the first answers: is it
large, clean and balanced enough? If not, it is refused and nothing enters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from visionloop.data.expectations import Expected, Result, evaluate, gxe
from visionloop.data.page import page
from visionloop.project import Contract
from visionloop.records import Check

COLUMNS = ("path", "sample_id", "label", "group", "size_bytes", "height", "width", "channels", "brightness", "error")
"""What the contract needs of the ingest table: everything except the images and the metadata."""


@dataclass(frozen=True)
class Terms:
    """What a batch is held against."""

    contract: Contract
    classes: Sequence[str]
    group_by: str | None
    known_labels: Mapping[str, str]
    """Sample id -> label of the samples that the dataset has already."""


@dataclass(frozen=True)
class Verdict:
    """The answers. `reasons[i]` is the reason why row i is quarantined, or ""; so is `details[i]` in a sentence."""

    outcome: Literal["accepted", "refused"]
    reasons: list[str]
    details: list[str]
    checks: list[Check]
    html: str


def judge(table: pa.Table, terms: Terms, *, title: str) -> Verdict:
    """Hold the ingest table (COLUMNS, a row per delivered image) against the contract."""
    frame = _frame(table, terms)
    samples = evaluate(frame, _about_samples(terms), name="samples")
    reasons, details = _quarantined(frame, samples)
    accepted = np.array([not reason for reason in reasons], bool)
    summary = _summary(frame, accepted)
    batch = evaluate(summary, _about_batch(terms.contract), name="batch")
    checks = [_sample_check(result, len(frame)) for result in samples]
    checks += [_batch_check(result, summary) for result in batch]
    refused = any(check.severity == "error" and not check.passed for check in checks)
    outcome: Literal["accepted", "refused"] = "refused" if refused else "accepted"
    return Verdict(outcome, reasons, details, checks, page(title, outcome, checks, [samples, batch]))


def _about_samples(terms: Terms) -> list[Expected]:
    """In the order in which reasons are given."""
    contract = terms.contract
    low, high = contract.brightness
    classes = [escape(name) for name in terms.classes]
    checks = [
        _sample("decodable", "undecodable", "an image that decodes", gxe.ExpectColumnValuesToBeNull(column="error")),
        _sample("labelled", "no_label", "a label", gxe.ExpectColumnValuesToNotBeNull(column="label")),
        _sample(
            "known class",
            "unknown_label",
            f"one of the {len(classes)} classes",
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=classes),
        ),
        _sample(
            "large enough",
            "too_small",
            f"sides of at least {contract.min_side} pixels",
            gxe.ExpectColumnValuesToBeBetween(column="short_side", min_value=contract.min_side),
        ),
        _sample(
            "small enough",
            "too_large",
            f"sides of at most {contract.max_side} pixels",
            gxe.ExpectColumnValuesToBeBetween(column="long_side", max_value=contract.max_side),
        ),
        _sample(
            "exposed",
            "brightness",
            f"a mean grey value from {low:g} to {high:g}",
            gxe.ExpectColumnValuesToBeBetween(column="brightness", min_value=low, max_value=high),
        ),
        _sample(
            "one label an image",
            "conflicting_labels",
            "one label for the same image in the batch",
            gxe.ExpectColumnValuesToBeBetween(column="labels_of_image", max_value=1),
        ),
        _sample(
            "label as known",
            "label_differs_from_dataset",
            "the label that the dataset has for this image",
            gxe.ExpectColumnValuesToBeNull(column="label_in_dataset"),
        ),
        Expected("delivered once", "warn", "", "no image twice", gxe.ExpectColumnValuesToBeUnique(column="sample_id")),
    ]
    if terms.group_by:
        expectation = gxe.ExpectColumnValuesToNotBeNull(column="group")
        checks.insert(3, _sample("grouped", "no_group", f"metadata `{terms.group_by}`", expectation))
    return checks


def _about_batch(contract: Contract) -> list[Expected]:
    def at_least(column: str, least: int) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=least)

    def at_most(column: str, most: float) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(column=column, max_value=most)

    share, balance, least = contract.max_quarantine_share, contract.max_class_share, contract.min_samples
    return [
        Expected("enough samples", "error", "", f"at least {least}", at_least("delivered", least)),
        Expected("something to learn from", "error", "", "at least 1 accepted", at_least("accepted", 1)),
        Expected("clean enough", "error", "", f"at most {share:g} quarantined", at_most("quarantined_share", share)),
        Expected("balanced", "error", "", f"no class above {balance:g}", at_most("largest_class_share", balance)),
        Expected("every class", "warn", "", "no class without samples", at_most("missing_classes", 0)),
    ]


def _sample(name: str, reason: str, expected: str, expectation: Any) -> Expected:
    return Expected(name, "quarantine", reason, expected, expectation)


def _frame(table: pa.Table, terms: Terms) -> pd.DataFrame:
    """The batch's table with what the checks need beside its own columns. Labels are escaped: they reach a page."""
    frame: pd.DataFrame = table.select(list(COLUMNS)).to_pandas()
    frame["label"] = frame["label"].map(escape, na_action="ignore").replace("", None)
    frame["group"] = frame["group"].replace("", None)
    frame["short_side"] = frame[["height", "width"]].min(axis=1)
    frame["long_side"] = frame[["height", "width"]].max(axis=1)
    frame["labels_of_image"] = frame.groupby("sample_id")["label"].transform("nunique")
    known = frame["sample_id"].map({key: escape(label) for key, label in terms.known_labels.items()})
    frame["label_in_dataset"] = known.where(known.notna() & (known != frame["label"])).astype(object)
    frame.attrs["classes"] = [escape(name) for name in terms.classes]
    return frame


def _summary(frame: pd.DataFrame, accepted: NDArray[np.bool_]) -> pd.DataFrame:
    """The batch in one row."""
    shares = frame["label"][accepted].value_counts(normalize=True)
    return pd.DataFrame(
        {
            "delivered": [len(frame)],
            "accepted": [int(accepted.sum())],
            "quarantined_share": [1.0 - float(accepted.mean())],
            "largest_class_share": [float(shares.max()) if len(shares) else np.nan],
            "missing_classes": [len(set(frame.attrs["classes"]) - set(shares.index))],
        }
    )


def _quarantined(frame: pd.DataFrame, results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Reason and detail of each row, from the first check that it broke."""
    reasons, details = [""] * len(frame), [""] * len(frame)
    errors = frame["error"].tolist()
    for result in results:
        if result.expected.severity != "quarantine":
            continue
        values = frame[result.column]
        for at in result.failed_rows:
            if not reasons[at]:
                reasons[at] = errors[at] or result.expected.reason
                found = unescape(str(values.iat[at]))
                details[at] = f"{result.column} is {found}, expected {result.expected.text}"
    return reasons, details


def _sample_check(result: Result, rows: int) -> Check:
    failed = len(result.failed_rows)
    return _check(result, f"{failed} of {rows} samples break it", failed)


def _batch_check(result: Result, summary: pd.DataFrame) -> Check:
    return _check(result, f"{summary[result.column].iat[0]:.6g}", 0)


def _check(result: Result, observed: str, failed_samples: int) -> Check:
    return Check(
        name=result.expected.name,
        severity=result.expected.severity,
        passed=result.passed,
        observed=observed,
        expected=result.expected.text,
        failed_samples=failed_samples,
    )
