"""What Envoy starts with: bootstrap, the endpoint's listener, and where the lanes are. Light (stdlib and protobuf).

One listener speaks HTTP/1.1 and h2c gRPC. Clusters and routes come from files in the same folder, which Envoy watches:
a file that is renamed into it takes effect within milliseconds, and one that is invalid changes nothing.
"""

import base64
import copy
import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from visionloop.atomic import write_whole
from visionloop.errors import ConfigError
from visionloop.serving.addresses import LOOPBACK, Addresses
from visionloop.serving.envoy_capture import capture_filter
from visionloop.serving.envoy_clusters import render_clusters
from visionloop.serving.envoy_guard import request_guard
from visionloop.serving.envoy_limits import (
    BODY_LIMIT_BYTES,
    CLIENT_HEADER,
    DEFAULT,
    KEY_HEADER,
    Limits,
    overload,
    rate_filter,
    refusals,
    times,
)
from visionloop.serving.envoy_metrics import admin_cluster, metrics_listener, stats_config
from visionloop.serving.envoy_routes import (
    BUFFER_FILTER,
    EXTRACTION_FILTER,
    HEALTH,
    KEY_FILTER,
    read_routes,
    render_routes,
)

Json = dict[str, Any]
Keys = dict[str, str] | None

STATS_SECONDS = 1
"""So much older than its counters may a histogram be that Prometheus reads."""
NAMED = {"ModelInfer": ("model_name", "modelName"), "ModelReady": ("name", "name")}
"""gRPC methods that are routed by their model: the field with its name, and what JSON calls that field."""


def write_initial(folder: Path, addresses: Addresses, *, keys: Keys = None, limits: Limits = DEFAULT) -> None:
    """Write all that `envoy -c FOLDER/bootstrap.json` reads; models that had routes keep them, whatever the ports.

    `keys`: client -> API key; None: everybody who reaches the endpoint is answered. `limits` hold until the next start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = read_routes(_read(folder / "rds.json"))
    write_json(folder / "addresses.json", asdict(addresses))
    write_json(folder / "cds.json", render_clusters(models, addresses, version="initial"))
    write_json(folder / "rds.json", render_routes(models, version="initial"))
    resources = [listener(folder, addresses, keys, limits), *metrics_listener(addresses)]
    write_json(folder / "lds.json", {"version_info": "initial", "resources": resources})
    write_json(folder / "bootstrap.json", bootstrap(folder, addresses, limits))


def read_addresses(folder: Path) -> Addresses:
    """What `write_initial` was given. Raises FileNotFoundError where it never ran."""
    return Addresses(**json.loads((folder / "addresses.json").read_text()))


def change_keys(folder: Path, keys: Keys) -> None:
    """Let a running endpoint take other keys. Raises ConfigError where it was started without, or would be left so.

    A listener that begins or ends to ask for keys is a matter of a start: the loop's own servers must know of it too.
    """
    before = json.loads((folder / "lds.json").read_text())
    after = copy.deepcopy(before)
    filters = _filters_of(after["resources"][0])
    asked = filters[0]["name"] == KEY_FILTER
    if asked != (keys is not None):
        raise ConfigError(
            f"the endpoint was started {'with' if asked else 'without'} API keys: `visionloop down` first, then up"
        )
    if keys is not None:
        filters[0]["typed_config"]["credentials"] = _credentials(keys)
    if after != before:
        write_json(folder / "lds.json", {**after, "version_info": uuid.uuid4().hex})


def bootstrap(folder: Path, addresses: Addresses, limits: Limits = DEFAULT) -> Json:
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
        "overload_manager": overload(limits),
    }


def listener(folder: Path, addresses: Addresses, keys: Keys = None, limits: Limits = DEFAULT) -> Json:
    """The endpoint."""
    return {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "endpoint",
        "address": _address(addresses.listener_host, addresses.listener_port),
        "per_connection_buffer_limit_bytes": BODY_LIMIT_BYTES,
        "filter_chains": [
            {"filters": [{"name": "http", "typed_config": _connection_manager(folder, addresses, keys, limits)}]}
        ],
    }


def write_json(path: Path, value: Json) -> None:
    """Replace a file by rename, which is what Envoy watches for; a reader sees the old or the new one, whole."""
    write_whole(path, json.dumps(value, indent=1))


def _filters_of(endpoint: Json) -> list[Json]:
    found: list[Json] = endpoint["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    return found


def _connection_manager(folder: Path, addresses: Addresses, keys: Keys, limits: Limits) -> Json:
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
        "use_remote_address": True,  # who asks is who is connected, whatever x-forwarded-for says
        **times(limits),
        "local_reply_config": refusals(limits),
        "http_filters": _filters(addresses, keys, limits),
    }


def _filters(addresses: Addresses, keys: Keys, limits: Limits) -> list[Json]:
    capture = [capture_filter()] if addresses.capture_grpc else []
    return [
        *([_key_filter(keys, limits)] if keys is not None else []),  # first: a stranger's body is not even kept
        *rate_filter(limits, keyed=keys is not None),
        _health(),
        _decompressor(),
        _filter(BUFFER_FILTER, "buffer.v3.Buffer", max_request_bytes=BODY_LIMIT_BYTES),
        _field_extraction(),
        request_guard(),
        *capture,
        # After the model is known: the counts go to the cluster of the route.
        _filter("grpc_stats", "grpc_stats.v3.FilterConfig", stats_for_all_methods=True, enable_upstream_stats=True),
        _filter("router", "router.v3.Router"),
    ]


def _key_filter(keys: dict[str, str], limits: Limits) -> Json:
    """401 or UNAUTHENTICATED for who has no key; the key itself goes no further, the client's name where it counts."""
    named = {"header": CLIENT_HEADER} if limits.client_requests_per_second else {}
    return _filter(
        KEY_FILTER,
        "api_key_auth.v3.ApiKeyAuth",
        credentials=_credentials(keys),
        key_sources=[{"header": KEY_HEADER}],
        forwarding={**named, "hide_credentials": True},
    )


def _credentials(keys: dict[str, str]) -> list[Json]:
    return [{"key": key, "client": client} for client, key in sorted(keys.items())]


def _health() -> Json:
    """Who asks for health is answered as everybody is, and counted nowhere: these are no requests for an answer."""
    asked = {"name": ":path", "string_match": {"safe_regex": {"regex": HEALTH}}}
    return _filter("health", "health_check.v3.HealthCheck", pass_through_mode=True, headers=[asked])


def _decompressor() -> Json:
    """Bodies are unpacked here, before they are measured: a few bytes of gzip would be gigabytes in a lane."""
    library = {"@type": "type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip"}
    off = {"common_config": {"enabled": {"default_value": False, "runtime_key": "decompress.responses"}}}
    return _filter(
        "decompressor",
        "decompressor.v3.Decompressor",
        decompressor_library={"name": "gzip", "typed_config": {**library, "max_inflate_ratio": 1032}},
        request_direction_config={"advertise_accept_encoding": False},
        response_direction_config=off,
    )


def _field_extraction() -> Json:
    service = "inference.GRPCInferenceService"
    fields = {f"{service}.{method}": field for method, (field, _) in NAMED.items()}
    return _filter(
        EXTRACTION_FILTER,
        "grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        descriptor_set={"inline_bytes": base64.b64encode(descriptors()).decode()},
        extractions_by_method={name: {"request_field_extractions": {field: {}}} for name, field in fields.items()},
    )


def descriptors() -> bytes:
    """The part of KServe v2's gRPC service that names a model, as a serialized FileDescriptorSet."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

    files = FileDescriptorSet()
    file = files.file.add(name="visionloop_kserve.proto", package="inference", syntax="proto3")
    service = file.service.add(name="GRPCInferenceService")
    for method, (field, json_name) in NAMED.items():
        file.message_type.add(name=f"{method}Request").field.add(
            name=field,
            number=1,
            type=FieldDescriptorProto.TYPE_STRING,
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            json_name=json_name,
        )
        file.message_type.add(name=f"{method}Response")
        service.method.add(
            name=method, input_type=f".inference.{method}Request", output_type=f".inference.{method}Response"
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
