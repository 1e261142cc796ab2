"""Envoy's files: valid messages, clusters for every route, weights that say what they mean, and whole at any moment."""

import base64
import gzip
import json
import re
import stat
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visionloop import layout
from visionloop.errors import ConfigError
from visionloop.serving.addresses import Addresses
from visionloop.serving.envoy import bootstrap, change_keys, descriptors, listener, read_addresses, write_initial
from visionloop.serving.envoy import write_json as write_whole
from visionloop.serving.envoy_clusters import cluster_names, render_clusters
from visionloop.serving.envoy_routes import ModelRoute, read_routes, render_routes
from visionloop.stack.service import servers_folder

ADDRESSES = Addresses(
    listener_port=8500,
    admin_port=8501,
    stable_grpc="127.0.0.1:1",
    stable_http="127.0.0.1:2",
    canary_grpc="canary.serving.svc:3",
    canary_http="canary.serving.svc:4",
    capture_grpc="127.0.0.1:5",
)
ENTRY = ModelRoute("m", stable=90, canary=10, timeout_ms=5000, capture_percent=100.0, image=(28, 28, 1))


def hosts(*entries: ModelRoute) -> list[dict[str, Any]]:
    """The routes, in the order in which Envoy looks at them."""
    document = render_routes({e.model: e for e in entries}, version="v")
    return document["resources"][0]["virtual_hosts"][0]["routes"]


def of_model(*entries: ModelRoute) -> list[dict[str, Any]]:
    return [route for route in hosts(*entries) if "metadata" in route]


def weights(route: dict[str, Any]) -> dict[str, int]:
    return {c["name"]: c["weight"] for c in route["route"]["weighted_clusters"]["clusters"]}


def captures(route: dict[str, Any]) -> bool:
    return "typed_per_filter_config" not in route


def clusters(*entries: ModelRoute, addresses: Addresses = ADDRESSES) -> dict[str, dict[str, Any]]:
    document = render_clusters({e.model: e for e in entries}, addresses, version="v")
    return {cluster["name"]: cluster for cluster in document["resources"]}


entries = st.builds(
    lambda stable, **given: ModelRoute(stable=stable, canary=100 - stable, **given),
    st.integers(0, 100),
    model=st.sampled_from(["m", "n", "screws-2"]),
    timeout_ms=st.integers(1, 60_000),
    capture_percent=st.floats(0, 100),
    image=st.tuples(st.integers(8, 512), st.integers(8, 512), st.sampled_from([1, 3])),
)


@given(st.lists(entries, max_size=3))
def test_the_table_is_its_own_memory(models: list[ModelRoute]) -> None:
    wanted = {entry.model: entry for entry in models}
    document = json.loads(json.dumps(render_routes(wanted, version="v7")))
    assert read_routes(document) == wanted
    assert document["version_info"] == "v7"


@pytest.mark.parametrize("document", [{}, {"resources": []}, {"resources": [{"virtual_hosts": [{}]}]}])
def test_what_is_no_table_has_no_models(document: dict[str, Any]) -> None:
    assert read_routes(document) == {}


@pytest.mark.parametrize(("stable", "canary"), [(50, 49), (50, 51), (-1, 101), (101, -1)])
def test_weights_are_percent_and_together_a_hundred(stable: int, canary: int) -> None:
    with pytest.raises(ConfigError, match=rf"weights of m: expected .* = 100, found {stable} \+ {canary}"):
        replace(ENTRY, stable=stable, canary=canary)


@given(entries)
def test_every_route_leads_to_clusters_that_exist(entry: ModelRoute) -> None:
    known = clusters(entry)
    assert set(cluster_names(entry.model)) <= set(known)
    for route in hosts(entry):
        action = route.get("route", {})
        assert set(weights(route)) <= set(known) if "weighted_clusters" in action else True
        assert action.get("cluster", "stable/http") in known
    for first, then in (("canary", "stable"), ("stable", "canary")):  # who fails is followed by the other
        behind = known[f"{entry.model}/{first}-first/grpc"]["cluster_type"]["typed_config"]["clusters"]
        assert behind == [f"{entry.model}/{first}/grpc", f"{entry.model}/{then}/grpc"]
        assert set(behind) <= set(known)


def test_both_protocols_have_the_weights_with_the_canary_last() -> None:
    """Last: a session that is in at 10 % stays in at 30 %."""
    found = [list(weights(route).items()) for route in of_model(ENTRY)]
    http = [("m/stable-first/http", 90), ("m/canary-first/http", 10)]
    grpc = [("m/stable-first/grpc", 90), ("m/canary-first/grpc", 10)]
    assert found == [http, grpc, http, grpc]


def test_nobody_stands_in_for_the_stable_lane_but_a_canary_with_traffic() -> None:
    """What is loaded in the canary lane before that has not been looked at."""
    assert [*weights(of_model(replace(ENTRY, stable=100, canary=0))[0])] == ["m/stable/http", "m/canary-first/http"]


def test_a_lane_without_another_is_waited_for_and_asked_once_where_its_model_fails() -> None:
    """Else one request that a model cannot answer would be as many as there are tries."""
    alone, both = (of_model(e)[0]["route"]["retry_policy"] for e in (replace(ENTRY, stable=100, canary=0), ENTRY))
    assert {"5xx", "internal"} & set(alone["retry_on"].split(",")) == set()
    assert {"5xx", "internal"} <= set(both["retry_on"].split(","))
    assert set(alone["retry_on"].split(",")) < set(both["retry_on"].split(","))
    assert both["num_retries"] < 5 < alone["num_retries"]
    assert "per_try_timeout" not in alone  # nobody else would be faster


def test_a_lane_is_cut_short_while_there_is_another() -> None:
    for timeout_ms, a_third in ((30_000, "10.000s"), (1_000, "0.333s")):
        policy = of_model(replace(ENTRY, timeout_ms=timeout_ms))[0]["route"]["retry_policy"]
        assert (policy["per_try_timeout"], policy["num_retries"]) == (a_third, 3)


@pytest.mark.parametrize(
    ("percent", "captured", "millionths"),
    [(0.0, 0, None), (0.001, 2, 100), (10.0, 2, 100_000), (100.0, 2, 1_000_000)],
)
def test_what_is_captured(percent: float, captured: int, millionths: int | None) -> None:
    routes = of_model(replace(ENTRY, capture_percent=percent))
    sampled = [route for route in routes if captures(route)]
    assert (len(sampled), len(routes)) == (captured, captured + 2)
    for route in sampled:
        share = route["match"]["runtime_fraction"]["default_value"]
        assert share == {"numerator": millionths, "denominator": "MILLION"}
        no_probe = route["match"]["headers"][-1]
        assert (no_probe["name"], no_probe["invert_match"]) == ("x-visionloop-probe", True)


def test_only_what_is_captured_is_mirrored_and_only_while_it_is_asked_for() -> None:
    assert not any("request_mirror_policies" in route["route"] for route in of_model(ENTRY))
    for route in of_model(replace(ENTRY, mirrored=True, capture_percent=10.0)):
        found = [policy["cluster"] for policy in route["route"].get("request_mirror_policies", [])]
        assert found == ([f"m/shadow/{'grpc' if 'grpc' in route['match'] else 'http'}"] if captures(route) else [])


def test_mirrored_requests_have_a_small_limit_of_their_own_and_their_answers_are_captured() -> None:
    cluster = clusters(ENTRY)["m/shadow/grpc"]
    assert cluster["circuit_breakers"]["thresholds"][0]["max_requests"] == 64
    [options] = cluster["typed_extension_protocol_options"].values()
    assert options["http_filters"][0]["name"] == "capture"
    assert options["http_filters"][-1]["name"].endswith("upstream_codec")
    allowed = options["http_filters"][0]["typed_config"]["forward_rules"]["allowed_headers"]["patterns"]
    assert {"exact": ":authority"} in allowed
    assert not {"authorization", "x-api-key", "cookie"} & {pattern["exact"] for pattern in allowed}


def test_what_is_not_a_models_is_never_captured() -> None:
    assert [route for route in hosts(ENTRY) if captures(route) and "metadata" not in route] == []


def test_without_a_model_only_the_stable_lane_is_asked() -> None:
    found = hosts()
    assert {r["route"]["cluster"] for r in found if "route" in r} == {"stable/http", "stable/grpc"}
    assert found[-1]["direct_response"]["status"] == 404
    assert set(clusters()) == {"stable/http", "stable/grpc", "canary/http", "canary/grpc", "capture"}


def test_what_changes_models_is_closed_before_anything_else_matches() -> None:
    found = hosts(ENTRY)
    closed = [n for n, r in enumerate(found) if r.get("direct_response", {}).get("status") == 403]
    assert closed == list(range(len(closed)))
    matches = [found[n]["match"] for n in closed]
    assert {"prefix": "/inference.GRPCInferenceService/Repository"} in matches
    assert closed_paths() == [match["safe_regex"]["regex"] for match in matches if "safe_regex" in match]


def closed_paths() -> list[str]:
    closed = [route["match"] for route in hosts(ENTRY) if route.get("direct_response", {}).get("status") == 403]
    return [match["safe_regex"]["regex"] for match in closed if "safe_regex" in match]


def is_closed(path: str) -> bool:
    """Envoy compares the whole path, without the query."""
    return any(re.fullmatch(regex, path) for regex in closed_paths())


WORDS = [
    *("repository", "trace", "logging", "systemsharedmemory", "cudasharedmemory", "setting", "index", "load", "unload"),
    *(
        "models",
        "versions",
        "infer",
        "generate",
        "ready",
        "live",
        "health",
        "stats",
        "config",
        "register",
        "status",
        "v2",
    ),
]
"""Of Triton's paths: a project may be called any of them."""
names = st.one_of(st.sampled_from(WORDS), st.from_regex(layout.NAME, fullmatch=True))
versions = st.sampled_from(["", "/versions/1", "/versions/12"])
CONTROL = [
    *("/v2/repository/index", "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload"),
    *("/v2/repository/{}/index", "/v2/repository/{}/models/{}/load", "/v2/trace/setting", "/v2/logging"),
    *(f"/v2/{kind}sharedmemory/{what}" for kind in ("system", "cuda") for what in ("status", "register", "unregister")),
    *(f"/v2/{kind}sharedmemory/region/{{}}/register" for kind in ("system", "cuda")),
    *("/v2/models/{}/trace/setting", "/v2/models/{}/versions/3/trace/setting"),
]


@given(names, versions, st.sampled_from(["", "/infer", "/generate", "/generate_stream", "/ready", "/config", "/stats"]))
def test_a_project_may_be_called_anything(name: str, version: str, what: str) -> None:
    assert not is_closed(f"/v2/models/{name}{version}{what}")


@given(names, st.sampled_from(CONTROL))
def test_what_changes_models_is_closed_whatever_they_are_called(name: str, path: str) -> None:
    assert is_closed(path.replace("{}", name))


def test_models_do_not_see_each_others_requests() -> None:
    for route in of_model(ENTRY, replace(ENTRY, model="n", stable=100, canary=0)):
        [name] = {name.split("/")[0] for name in weights(route)}
        if "grpc" in route["match"]:
            wanted = {"name": "x-model", "string_match": {"exact": name}}
            assert wanted in route["match"]["headers"]
        else:
            assert route["match"]["path_separated_prefix"] == f"/v2/models/{name}"


def test_only_a_canary_is_watched_and_may_be_avoided() -> None:
    """The stable lane has no other to fall back to: it is asked whatever its state."""
    found = clusters(ENTRY)
    for name in ("m/stable/http", "m/stable/grpc", "stable/http"):
        assert "health_checks" not in found[name]
        assert "outlier_detection" not in found[name]
    for name in ("m/canary/http", "m/canary/grpc"):
        assert found[name]["health_checks"]
        assert found[name]["outlier_detection"]["consecutive_5xx"] == 2
        assert endpoint_of(found[name])["health_check_config"] == {"port_value": 4}


def endpoint_of(cluster: dict[str, Any]) -> dict[str, Any]:
    [found] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return found["endpoint"]


def test_an_answer_says_which_lane_gave_it() -> None:
    for name, cluster in clusters(ENTRY).items():
        if "load_assignment" in cluster and name != "capture":
            [found] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            expected = "canary" if "/shadow/" in name else name.split("/")[-2]
            assert found["metadata"]["filter_metadata"]["lanes"]["lane"] == expected


def test_names_are_resolved_and_numbers_are_not() -> None:
    found = clusters(ENTRY)
    assert (found["stable/http"]["type"], found["canary/http"]["type"]) == ("STATIC", "STRICT_DNS")


@pytest.mark.parametrize("side", [8, 1024])
def test_health_is_an_inference_of_a_black_image_which_is_small_at_any_size(side: int) -> None:
    entry = replace(ENTRY, image=(side, side, 3))
    [check] = clusters(entry)["m/canary/grpc"]["health_checks"]
    asked = check["http_health_check"]
    assert asked["path"] == "/v2/models/m/infer"
    headers = {one["header"]["key"]: one["header"]["value"] for one in asked["request_headers_to_add"]}
    assert headers["content-encoding"] == "gzip"
    packed = base64.b64decode(asked["send"]["binary"])
    body, head = gzip.decompress(packed), int(headers["inference-header-content-length"])
    assert len(packed) < 8 << 10
    assert body[head:] == bytes(side * side * 3)
    assert json.loads(body[:head])["inputs"][0]["shape"] == [1, side, side, 3]


def test_a_model_that_nobody_asks_about_is_checked_once_in_two_seconds() -> None:
    """Two clusters, one for each protocol; and at most twice a second with a canary, and all asked for."""
    found = clusters(ENTRY)
    checks = {name: one["health_checks"][0] for name, one in found.items() if "health_checks" in one}
    assert set(checks) == {f"m/{part}/{p}" for part in ("canary", "ready/stable") for p in ("http", "grpc")}
    unused = {name: float(check["no_traffic_healthy_interval"][:-1]) for name, check in checks.items()}
    assert sum(1 / unused[f"m/ready/stable/{p}"] for p in ("http", "grpc")) == 0.5
    assert sum(1 / float(check["interval"][:-1]) for check in checks.values()) == 2.0
    for check in checks.values():  # who waits for a lane that is ill hears of it as soon as before
        assert (check["unhealthy_interval"], check["no_traffic_interval"]) == ("1s", "1s")
        assert check["healthy_threshold"] == 1


@pytest.mark.parametrize(
    ("timeout_ms", "patience"),
    [(1_000, "2.0s"), (10_000, "2.0s"), (20_000, "4.0s"), (40_000, "8.0s"), (60_000, "8.0s")],
)
def test_a_check_waits_behind_what_a_slow_model_computes(timeout_ms: int, patience: str) -> None:
    [check] = clusters(replace(ENTRY, timeout_ms=timeout_ms))["m/canary/http"]["health_checks"]
    assert check["timeout"] == patience


def test_without_capture_there_is_neither_filter_nor_cluster(tmp_path: Path) -> None:
    quiet = replace(ADDRESSES, capture_grpc=None)
    assert "capture" not in clusters(ENTRY, addresses=quiet)
    assert "capture" not in filters(tmp_path, quiet)
    assert "capture" in filters(tmp_path, ADDRESSES)


KEYS = {"visionloop": "own-key-own-key-own-key", "belt": "belt-key-belt-key-belt"}


def test_keys_are_asked_for_before_anything_else_and_go_no_further(tmp_path: Path) -> None:
    assert "api_key" not in filters(tmp_path, ADDRESSES)
    assert filters(tmp_path, ADDRESSES, KEYS)[0] == "api_key"
    manager = listener(tmp_path, ADDRESSES, KEYS)["filter_chains"][0]["filters"][0]["typed_config"]
    config = manager["http_filters"][0]["typed_config"]
    assert {found["client"]: found["key"] for found in config["credentials"]} == KEYS
    assert config["forwarding"] == {"hide_credentials": True}


def test_only_health_needs_no_key() -> None:
    keyless = [route["match"] for route in hosts(ENTRY) if "api_key" in route.get("typed_per_filter_config", {})]
    assert keyless == [
        {"path": "/v2/health/live"},
        {"path_separated_prefix": "/v2/health"},
        {"path": "/inference.GRPCInferenceService/ServerLive", "grpc": {}},
        {"path": "/inference.GRPCInferenceService/ServerReady", "grpc": {}},
        {"prefix": "/grpc.health.v1.Health/", "grpc": {}},
    ]


def test_keys_change_without_a_start_but_begin_and_end_with_one(tmp_path: Path) -> None:
    folder = tmp_path / "envoy"
    write_initial(folder, ADDRESSES, keys=KEYS)
    first = (folder / "lds.json").read_text()
    change_keys(folder, dict(KEYS))
    assert (folder / "lds.json").read_text() == first  # nothing to take in, no connection drained
    change_keys(folder, {**KEYS, "door": "door-key-door-key-door"})
    assert "door-key-door-key-door" in (folder / "lds.json").read_text()
    assert json.loads(first)["version_info"] != json.loads((folder / "lds.json").read_text())["version_info"]
    with pytest.raises(ConfigError, match="started with API keys: `visionloop down` first"):
        change_keys(folder, None)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    write_initial(folder, ADDRESSES)
    with pytest.raises(ConfigError, match="started without API keys"):
        change_keys(folder, KEYS)
    assert "own-key" not in "".join(path.read_text() for path in folder.iterdir())


def filters(folder: Path, addresses: Addresses, keys: dict[str, str] | None = None) -> list[str]:
    manager = listener(folder, addresses, keys)["filter_chains"][0]["filters"][0]["typed_config"]
    return [found["name"] for found in manager["http_filters"]]


def test_no_credentials_reach_the_capture_service(tmp_path: Path) -> None:
    manager = listener(tmp_path, ADDRESSES)["filter_chains"][0]["filters"][0]["typed_config"]
    [capture] = [f["typed_config"] for f in manager["http_filters"] if f["name"] == "capture"]
    allowed = {pattern["exact"] for pattern in capture["forward_rules"]["allowed_headers"]["patterns"]}
    assert allowed.isdisjoint({"authorization", "cookie", "x-api-key"})
    assert {"x-lane", "x-request-id", ":status"} <= allowed
    assert capture["observability_mode"]  # nobody waits


def test_every_file_is_one_that_envoy_takes(tmp_path: Path) -> None:
    """A wrong field, enum, extension or cluster of a route is an error here, not at the start."""
    assert envoy_says(whole(tmp_path), tmp_path) == "OK"
    assert envoy_says(whole(tmp_path, KEYS), tmp_path) == "OK"


@pytest.mark.parametrize("part", ["listeners", "clusters"])
def test_a_wrong_field_would_be_found(tmp_path: Path, part: str) -> None:
    wrong = whole(tmp_path)
    wrong["static_resources"][part][0]["planted"] = True
    assert "planted" in envoy_says(wrong, tmp_path)


def whole(folder: Path, keys: dict[str, str] | None = None) -> dict[str, Any]:
    """All files as one: what Envoy validates does not follow files that it would watch."""
    endpoint = listener(folder, ADDRESSES, keys)
    manager = endpoint["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"], endpoint["@type"]
    manager["route_config"] = plain(*render_routes({"m": ENTRY}, version="v")["resources"])
    document = {key: part for key, part in bootstrap(folder, ADDRESSES).items() if key != "dynamic_resources"}
    document["static_resources"] = {"listeners": [endpoint], "clusters": [*map(plain, clusters(ENTRY).values())]}
    return document


def plain(resource: dict[str, Any]) -> dict[str, Any]:
    """Without the type that a file of resources gives each."""
    return {key: part for key, part in resource.items() if key != "@type"}


def envoy_says(document: dict[str, Any], folder: Path) -> str:
    """OK, or what the server that would read it says against it."""
    (folder / "whole.json").write_text(json.dumps(document))
    binary = str(servers_folder() / "envoy/envoy/_bin/envoy")
    command = [binary, "-c", str(folder / "whole.json"), "--mode", "validate", "--log-level", "error"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return said.stdout.strip().rpartition(" ")[2] if said.returncode == 0 else said.stderr


def test_the_descriptors_name_the_model_as_kserve_does() -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from tritonclient.grpc import service_pb2

    [file] = FileDescriptorSet.FromString(descriptors()).file
    [field] = next(m for m in file.message_type if m.name == "ModelInferRequest").field
    known = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["model_name"]
    assert (field.name, field.number, field.type) == (known.name, known.number, known.type)
    assert service_pb2.ModelInferRequest.DESCRIPTOR.full_name == f"{file.package}.ModelInferRequest"


def test_models_keep_their_routes_when_ports_change(tmp_path: Path) -> None:
    folder = tmp_path / "envoy"
    write_initial(folder, ADDRESSES)
    assert {p.name for p in folder.iterdir()} == {f"{n}.json" for n in ("bootstrap", "lds", "cds", "rds", "addresses")}
    assert read_addresses(folder) == ADDRESSES
    write_whole(folder / "rds.json", render_routes({"m": ENTRY}, version="later"))
    moved = replace(ADDRESSES, canary_grpc="127.0.0.1:77")
    write_initial(folder, moved)
    assert read_routes(json.loads((folder / "rds.json").read_text())) == {"m": ENTRY}
    found = {c["name"]: c for c in json.loads((folder / "cds.json").read_text())["resources"]}
    assert endpoint_of(found["m/canary/grpc"])["address"]["socket_address"]["port_value"] == 77
    assert read_addresses(folder) == moved


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_table_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "rds.json").write_text(text)
    write_initial(tmp_path, ADDRESSES)
    assert read_routes(json.loads((tmp_path / "rds.json").read_text())) == {}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, end, broken = tmp_path / "rds.json", threading.Event(), []
    write_whole(path, {"rows": [0] * 5000})

    def read() -> None:
        while not end.is_set():
            try:
                broken.extend([] if len(set(json.loads(path.read_text())["rows"])) == 1 else ["mixed"])
            except (OSError, ValueError) as error:
                broken.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write_whole(path, {"rows": [number] * 5000})
    end.set()
    reader.join()
    assert broken == []


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rds.json"
    write_whole(path, {"a": 1})
    with pytest.raises(TypeError):
        write_whole(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["rds.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_whatever_lies_there_never_keeps_the_endpoint_from_starting(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "rds.json").write_bytes(data)
    write_initial(tmp_path, ADDRESSES)
