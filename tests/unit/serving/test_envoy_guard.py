"""Every way to a lane is guarded, readiness has clusters of its own, and Envoy takes the programs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from visionloop.project import Serving
from visionloop.serving.envoy_clusters import cluster_names
from visionloop.serving.envoy_guard import CLIENT_MISTAKES, ON_ANSWER, ON_REQUEST, answer_guard, request_guard
from visionloop.serving.envoy_routes import ModelRoute, read_routes, render_routes

from .test_envoy import ENTRY, clusters, envoy_says, hosts, whole

OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def guards(cluster: dict[str, Any]) -> list[str]:
    filters = cluster["typed_extension_protocol_options"][OPTIONS].get("http_filters", [])
    return [found["name"] for found in filters]


def test_a_clients_mistake_is_known_on_every_way_to_a_lane() -> None:
    found = clusters(ENTRY)
    assert guards(found.pop("capture")) == []
    assert len(found) == 4 + len(cluster_names("m"))
    for name, cluster in found.items():
        capture = ["capture"] if "/shadow/" in name else []
        assert guards(cluster) == [*capture, "lua", "envoy.filters.http.upstream_codec"], name


def test_what_a_backend_says_of_its_own_faults_is_none_of_the_clients() -> None:
    """Ours begin with the exception's type, or name an input; onnxruntime's with its own brackets."""
    for own in ("RuntimeError: Unable to parse 'x'", "input 'image' has shape [1]", "[ONNXRuntimeError] : 2"):
        assert not any(own.startswith(mistake) for mistake in CLIENT_MISTAKES)


@pytest.mark.parametrize("script", [ON_REQUEST, ON_ANSWER])
def test_envoy_reads_a_program_when_it_starts(tmp_path: Path, script: str) -> None:
    """So `envoy_says` would have told of a wrong one."""
    document = whole(tmp_path)
    used = [scripts(request_guard()), scripts(answer_guard()[0])]
    assert script in used
    manager = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    [lua] = [found for found in manager["http_filters"] if found["name"] == "lua"]
    lua["typed_config"]["default_source_code"]["inline_string"] = script
    assert envoy_says(document, tmp_path) == "OK"
    lua["typed_config"]["default_source_code"]["inline_string"] = script + "end"
    assert "script load error" in envoy_says(document, tmp_path)


def scripts(lua: dict[str, Any]) -> str:
    return lua["typed_config"]["default_source_code"]["inline_string"]


@pytest.mark.parametrize(("stable", "behind"), [(100, "stable"), (1, "stable"), (0, "any")])
def test_ready_asks_for_the_stable_lane_unless_all_goes_to_the_canary(stable: int, behind: str) -> None:
    """A request that the weights send to the stable lane has no other."""
    asked = [route for route in hosts(replace(ENTRY, stable=stable, canary=100 - stable)) if is_ready(route)]
    assert [route["route"]["cluster"] for route in asked] == [f"m/ready/{behind}/http", f"m/ready/{behind}/grpc"]
    assert {route["route"]["timeout"] for route in asked} == {"2.0s"}
    places = [n for n, route in enumerate(hosts(ENTRY)) if "metadata" in route]
    assert max(n for n, route in enumerate(hosts(ENTRY)) if is_ready(route)) < min(places)


def is_ready(route: dict[str, Any]) -> bool:
    return "/ready/" in route.get("route", {}).get("cluster", "")


def test_only_lanes_that_answer_inferences_are_asked_whether_they_are_ready() -> None:
    found = clusters(ENTRY)
    assert set(cluster_names("m")) <= set(found)
    for protocol in ("http", "grpc"):
        ready = found[f"m/ready/stable/{protocol}"]
        asked = [
            found[name]["health_checks"][0]["http_health_check"] for name in (f"m/canary/{protocol}", ready["name"])
        ]
        assert asked[0] == asked[1]
        assert ready["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
        behind = found[f"m/ready/any/{protocol}"]["cluster_type"]["typed_config"]["clusters"]
        assert behind == [f"m/canary/{protocol}", f"m/ready/stable/{protocol}"]


def test_alive_is_answered_by_the_endpoint_itself() -> None:
    [live] = [route for route in hosts(ENTRY) if route["match"].get("path") == "/v2/health/live"]
    assert live["direct_response"] == {"status": 200}


def test_each_cluster_of_a_model_has_its_limit_the_aggregate_too() -> None:
    for name, cluster in clusters(replace(ENTRY, max_in_flight=7)).items():
        if name.startswith("m/"):
            [limits] = cluster["circuit_breakers"]["thresholds"]
            assert set(limits.values()) == {7}, name
    [limits] = clusters(ENTRY)["m/canary-first/grpc"]["circuit_breakers"]["thresholds"]
    assert set(limits.values()) == {1024}


def test_a_table_from_before_the_limit_has_the_usual_one() -> None:
    document = render_routes({"m": ENTRY}, version="old")
    for route in document["resources"][0]["virtual_hosts"][0]["routes"]:
        route.get("metadata", {}).get("filter_metadata", {}).get("visionloop", {}).pop("max_in_flight", None)
    assert read_routes(document) == {"m": ModelRoute(**{**vars(ENTRY), "max_in_flight": 1024})}


@pytest.mark.parametrize(("value", "good"), [(0, False), (1, True), (16_384, True), (16_385, False)])
def test_how_many_may_be_under_way(value: int, good: bool) -> None:
    if good:
        assert Serving(max_in_flight=value).max_in_flight == value
    else:
        with pytest.raises(ValueError, match="max_in_flight"):
            Serving(max_in_flight=value)
