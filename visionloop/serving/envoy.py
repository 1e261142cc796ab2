"""What Envoy starts with: bootstrap, the endpoint's listener, and where the lanes are. Light (stdlib and protobuf).

One listener speaks HTTP/1.1 and h2c gRPC. Clusters and routes come from files in the same folder, which Envoy watches:
a file that is renamed into it takes effect within milliseconds, and one that is invalid changes nothing.
"""

import base64
import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionloop.atomic import write_whole
from visionloop.errors import ConfigError
from visionloop.serving.addresses import LOOPBACK, Addresses
from visionloop.serving.envoy_clusters import render_clusters
from visionloop.serving.envoy_metrics import admin_cluster, metrics_listener, stats_config
from visionloop.serving.envoy_routes import CAPTURE_FILTER, KEY_FILTER, KEY_HEADER, read_routes, render_routes

Json = dict[str, Any]
Keys = dict[str, str] | None

BODY_LIMIT_BYTES = 16 << 20
"""Larger requests get 413; a body must fit into Envoy's buffers to be sent again to the other lane."""
IDLE_SECONDS = 60
STATS_SECONDS = 1
"""So much older than its counters may a histogram be that Prometheus reads."""
CAPTURE_PAUSE_SECONDS = 1.0
CAPTURED_HEADERS = (
    *(":path", ":status", "content-type", "content-encoding", "grpc-encoding", "grpc-status"),
    *("inference-header-content-length", "x-request-id", "x-lane", "x-latency-us", "x-model", "traceparent"),
)
"""All that the capture service sees of a request's head: no credentials."""
MODEL_FROM_BODY = """
function envoy_on_request(request)
  local found = request:streamInfo():dynamicMetadata():get("envoy.filters.http.grpc_field_extraction")
  local name = found and found["model_name"]
  if type(name) == "table" then name = name[1] end
  if name then
    request:headers():replace("x-model", name)
    request:clearRouteCache()
  end
end
"""
"""gRPC has the model's name in the body; routes read headers."""


def write_initial(folder: Path, addresses: Addresses, *, keys: Keys = None) -> None:
    """Write all that `envoy -c FOLDER/bootstrap.json` reads; models that had routes keep them, whatever the ports.

    `keys`: client -> API key; None: everybody who reaches the endpoint is answered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = read_routes(_read(folder / "rds.json"))
    write_json(folder / "addresses.json", asdict(addresses))
    write_json(folder / "cds.json", render_clusters(models, addresses, version="initial"))
    write_json(folder / "rds.json", render_routes(models, version="initial"))
    write_json(folder / "lds.json", _listeners(folder, addresses, keys, version="initial"))
    write_json(folder / "bootstrap.json", bootstrap(folder, addresses))


def read_addresses(folder: Path) -> Addresses:
    """What `write_initial` was given. Raises FileNotFoundError where it never ran."""
    return Addresses(**json.loads((folder / "addresses.json").read_text()))


def change_keys(folder: Path, keys: Keys) -> None:
    """Let a running endpoint take other keys. Raises ConfigError where it was started without, or would be left so.

    A listener that begins or ends to ask for keys is a matter of a start: the loop's own servers must know of it too.
    """
    before = json.loads((folder / "lds.json").read_text())
    asked = any(found["name"] == KEY_FILTER for found in _filters_of(before["resources"][0]))
    if asked != (keys is not None):
        raise ConfigError(
            f"the endpoint was started {'with' if asked else 'without'} API keys: `visionloop down` first, then up"
        )
    after = _listeners(folder, read_addresses(folder), keys, version=uuid.uuid4().hex)
    if after["resources"] != before["resources"]:
        write_json(folder / "lds.json", after)


def bootstrap(folder: Path, addresses: Addresses) -> Json:
    """Admin on loopback; everything else from watched files."""
    return {
        "node": {"id": "visionloop", "cluster": "visionloop"},
        "admin": {"address": _address(LOOPBACK, addresses.admin_port)},
        "stats_config": stats_config(),
        "stats_flush_interval": f"{STATS_SECONDS}s",
        "static_resources": {"clusters": admin_cluster(addresses)},
        "dynamic_resources": {
            "lds_config": _watched(folder, "lds.json"),
            "cds_config": _watched(folder, "cds.json"),
        },
    }


def listener(folder: Path, addresses: Addresses, keys: Keys = None) -> Json:
    """The endpoint."""
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "endpoint",
        "address": _address(addresses.listener_host, addresses.listener_port),
        "per_connection_buffer_limit_bytes": BODY_LIMIT_BYTES,
        "filter_chains": [
            {"filters": [{"name": "http", "typed_config": _connection_manager(folder, addresses, keys)}]}
        ],
    }


def write_json(path: Path, value: Json) -> None:
    """Replace a file by rename, which is what Envoy watches for; a reader sees the old or the new one, whole."""
    write_whole(path, json.dumps(value, indent=1))


def _listeners(folder: Path, addresses: Addresses, keys: Keys, *, version: str) -> Json:
    return {"version_info": version, "resources": [listener(folder, addresses, keys), *metrics_listener(addresses)]}


def _filters_of(endpoint: Json) -> list[Json]:
    found: list[Json] = endpoint["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    return found


def _connection_manager(folder: Path, addresses: Addresses, keys: Keys) -> Json:
    return {
        "@type": _http("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "endpoint",
        "codec_type": "AUTO",
        "rds": {"route_config_name": "routes", "config_source": _watched(folder, "rds.json")},
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "stream_idle_timeout": f"{IDLE_SECONDS}s",
        "request_headers_timeout": f"{IDLE_SECONDS}s",
        "http_filters": _filters(addresses, keys),
    }


def _filters(addresses: Addresses, keys: Keys) -> list[Json]:
    capture = [_capture_filter()] if addresses.capture_grpc else []
    return [
        *([_key_filter(keys)] if keys is not None else []),  # first: a stranger's body is not even kept
        _filter("buffer", "buffer.v3.Buffer", max_request_bytes=BODY_LIMIT_BYTES),
        _field_extraction(),
        _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": MODEL_FROM_BODY}),
        *capture,
        # After the model is known: the counts go to the cluster of the route.
        _filter("grpc_stats", "grpc_stats.v3.FilterConfig", stats_for_all_methods=True, enable_upstream_stats=True),
        _filter("router", "router.v3.Router"),
    ]


def _key_filter(keys: dict[str, str]) -> Json:
    """401 or UNAUTHENTICATED for who has no key; the key itself goes no further."""
    return _filter(
        KEY_FILTER,
        "api_key_auth.v3.ApiKeyAuth",
        credentials=[{"key": key, "client": client} for client, key in sorted(keys.items())],
        key_sources=[{"header": KEY_HEADER}],
        forwarding={"hide_credentials": True},
    )


def _capture_filter() -> Json:
    """Bodies are copied to the capture service and nobody waits for it: it may be slow, stopped or dead."""
    modes = {
        **{"request_header_mode": "SEND", "request_body_mode": "STREAMED", "request_trailer_mode": "SKIP"},
        **{"response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND"},
    }
    return _filter(
        CAPTURE_FILTER,
        "ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "capture"}},
        failure_mode_allow=True,
        observability_mode=True,
        # What the service has not read by then is lost, so it may pause for a second; the streams that are open
        # meanwhile are bounded by the cluster's limit, above which requests are not captured.
        deferred_close_timeout=f"{CAPTURE_PAUSE_SECONDS}s",
        processing_mode=modes,
        forward_rules={"allowed_headers": {"patterns": [{"exact": name} for name in CAPTURED_HEADERS]}},
    )


def _field_extraction() -> Json:
    method = "inference.GRPCInferenceService.ModelInfer"
    return _filter(
        "envoy.filters.http.grpc_field_extraction",
        "grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(descriptors()).decode()},
        extractions_by_method={method: {"request_field_extractions": {"model_name": {}}}},
    )


def descriptors() -> bytes:
    """The part of KServe v2's gRPC service that names a model, as a serialized FileDescriptorSet."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

    files = FileDescriptorSet()
    file = files.file.add(name="visionloop_kserve.proto", package="inference", syntax="proto3")
    request = file.message_type.add(name="ModelInferRequest")
    request.field.add(
        name="model_name",
        number=1,
        type=FieldDescriptorProto.TYPE_STRING,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        json_name="modelName",
    )
    file.message_type.add(name="ModelInferResponse")
    service = file.service.add(name="GRPCInferenceService")
    service.method.add(
        name="ModelInfer", input_type=".inference.ModelInferRequest", output_type=".inference.ModelInferResponse"
    )
    return bytes(files.SerializeToString())


def _filter(name: str, kind: str, **config: Any) -> Json:
    return {"name": name, "typed_config": {"@type": _http(f"http.{kind}"), **config}}


def _http(kind: str) -> str:
    return f"type.googleapis.com/envoy.extensions.filters.{kind}"


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _watched(folder: Path, name: str) -> Json:
    source = {"path": str(folder / name), "watched_directory": {"path": str(folder)}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _read(path: Path) -> Json:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
