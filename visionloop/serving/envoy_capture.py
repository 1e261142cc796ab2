"""What Envoy copies to the capture service: of the requests that clients send, and of those that it mirrors."""

import re
from typing import Any

from visionloop.serving.envoy_routes import CAPTURE_FILTER

Json = dict[str, Any]

PAUSE_SECONDS = 1.0
HEADERS = (
    *(":path", ":status", "content-type", "content-encoding", "grpc-encoding", "grpc-status"),
    *("inference-header-content-length", "x-request-id", "x-lane", "x-latency-us", "x-model", "traceparent"),
)
"""All that the capture service sees of a request's head: no credentials."""
AUTHORITY = ":authority"
"""Looked at in mirrored requests only, where Envoy appends `-shadow` to the host; their answers name no lane."""
MIRRORED = re.compile(r".*-shadow(:\d+)?")

SHADOW = "shadow"
"""The lane of a mirrored request's capture: the candidate's answer, which no client got."""


def capture_filter(*, mirrored: bool = False) -> Json:
    """Bodies are copied to the capture service and nobody waits for it: it may be slow, stopped or dead."""
    modes = {
        **{"request_header_mode": "SEND", "request_body_mode": "STREAMED", "request_trailer_mode": "SKIP"},
        **{"response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND"},
    }
    allowed = [*HEADERS, *([AUTHORITY] if mirrored else [])]
    config = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "capture"}},
        "failure_mode_allow": True,
        "observability_mode": True,
        # What the service has not read by then is lost, so it may pause for a second; the streams that are open
        # meanwhile are bounded by the cluster's limit, above which requests are not captured.
        "deferred_close_timeout": f"{PAUSE_SECONDS}s",
        "processing_mode": modes,
        "forward_rules": {"allowed_headers": {"patterns": [{"exact": name} for name in allowed]}},
    }
    return {"name": CAPTURE_FILTER, "typed_config": config}
