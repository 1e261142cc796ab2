"""Tracing is off unless somebody names a collector, and then only for callers that trace."""

import pytest

from visionloop.errors import ConfigError
from visionloop.serving.tracing import trace_flags


@pytest.mark.parametrize("collector", [None, ""])
def test_off_by_default(collector: str | None) -> None:
    assert trace_flags("stable", collector) == []


def test_only_callers_traces_are_followed() -> None:
    flags = trace_flags("canary", "http://otel.monitoring:4318/v1/traces")
    assert "--trace-config=rate=0" in flags
    assert "--trace-config=opentelemetry,url=http://otel.monitoring:4318/v1/traces" in flags
    assert "--trace-config=opentelemetry,resource=service.name=visionloop-canary" in flags


@pytest.mark.parametrize("collector", ["127.0.0.1:4318", "ftp://host/v1", "http://", "http://host/v1,rate=1"])
def test_what_is_no_address_is_an_error(collector: str) -> None:
    with pytest.raises(ConfigError, match="expected traces to go to"):
        trace_flags("stable", collector)
