"""Captured requests as rows: one per image, in files by model, version and lane, with or without images."""

import re
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import pytest

from tests.unit.serving.wire import ANSWERS, IMAGES
from visionloop.capture.rows import SCHEMA, keeps_image, make_files
from visionloop.serving.kserve import read_inference

from .traffic import exchange

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def pair(request_id: str = "r1", lane: str = "stable", version: int = 7):
    made = exchange(request_id, lane=lane)
    inference = read_inference(*made.messages())
    return made, inference.__class__(inference.model, version, inference.images, inference.probabilities)


def test_a_row_for_each_image() -> None:
    [file] = make_files([pair()], now=NOW, image_share=lambda model: 1.0)
    assert file.table.schema == SCHEMA
    rows = file.table.to_pylist()
    assert [row["prediction"] for row in rows] == ANSWERS.argmax(axis=1).tolist()
    assert [row["confidence"] for row in rows] == pytest.approx(ANSWERS.max(axis=1).tolist())
    for row, image, answer in zip(rows, IMAGES, ANSWERS, strict=True):
        assert (np.frombuffer(row["image"], np.uint8).reshape(4, 5, 1) == image).all()
        assert row["probabilities"] == pytest.approx(answer.tolist())
        assert (row["request_id"], row["model"], row["version"], row["lane"]) == ("r1", "m", 7, "stable")
        assert (row["height"], row["width"], row["channels"]) == (4, 5, 1)
        assert (row["status"], row["latency_ms"]) == (200, 2.5)


def test_a_key_tells_what_is_inside() -> None:
    [file] = make_files([pair(), pair("r2")], now=NOW, image_share=lambda model: 1.0)
    pattern = r"m/captures/version=7/lane=stable/hour=2026030405/1772600767000-[0-9a-f-]{36}-n6\.parquet"
    assert re.fullmatch(pattern, file.key)
    [other] = make_files([pair(), pair("r2")], now=NOW, image_share=lambda model: 1.0)
    assert other.key != file.key  # two services never overwrite each other


def test_a_file_for_each_version_and_lane() -> None:
    pairs = [pair("a"), pair("b", "canary", 8), pair("c"), pair("d", "stable", 8)]
    files = make_files(pairs, now=NOW, image_share=lambda model: 1.0)
    assert {file.key.split("/hour=")[0]: file.table.num_rows for file in files} == {
        "m/captures/version=7/lane=stable": 6,
        "m/captures/version=8/lane=canary": 3,
        "m/captures/version=8/lane=stable": 3,
    }


def test_without_images_the_rest_is_there() -> None:
    [file] = make_files([pair()], now=NOW, image_share=lambda model: 0.0)
    assert file.table["image"].null_count == 3
    assert file.table["prediction"].null_count == 0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_share_of_requests_that_keep_their_images(share: float) -> None:
    kept = [keeps_image(str(uuid4()), share) for _ in range(2000)]
    assert abs(np.mean(kept) - share) < (0.05 if 0 < share < 1 else 1e-9)


def test_who_keeps_images_at_a_small_share_keeps_them_at_a_larger_one() -> None:
    for number in range(200):
        assert keeps_image(str(number), 0.5) or not keeps_image(str(number), 0.3)
