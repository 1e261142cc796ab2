"""Whose request it was: the model from path or header, the trace from the caller's `traceparent`."""

import pytest

from visionloop.capture.exchange import Exchange

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "model"),
    [
        ({":path": "/v2/models/m/infer"}, "m"),
        ({":path": "/v2/models/a.b/versions/3/infer?x=/v2/models/n"}, "a.b"),
        ({":path": "/inference.GRPCInferenceService/ModelInfer", "x-model": "m"}, "m"),
        ({":path": "/v2/models/m/infer", "x-model": "forged"}, "m"),
        ({":path": "/elsewhere", "x-model": "forged"}, ""),
        ({}, ""),
    ],
)
def test_model(headers: dict[str, str], model: str) -> None:
    assert Exchange(request_headers=headers).model == model


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"01-{TRACE}-b7ad6b7169203331-00-later", TRACE),
        (f"00-{TRACE[:-1]}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", ""),
        ("", ""),
    ],
)
def test_trace(sent: str, found: str) -> None:
    assert Exchange(request_headers={"traceparent": sent}).trace_id == found


@pytest.mark.parametrize(
    ("host", "answered_by", "lane"),
    [
        ("127.0.0.1-shadow:8000", "", "shadow"),
        ("vision.example-shadow", "", "shadow"),
        ("vision.example", "", ""),
        ("vision-shadow.example", "", ""),
        ("vision.example-shadow", "stable", "stable"),  # no mirrored request: that answer went to a client
        ("", "canary", "canary"),
    ],
)
def test_lane(host: str, answered_by: str, lane: str) -> None:
    answer = {"x-lane": answered_by} if answered_by else {}
    assert Exchange(request_headers={":authority": host}, response_headers=answer).lane == lane
