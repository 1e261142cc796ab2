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
