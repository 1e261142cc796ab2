"""What Prometheus may read of Envoy: which names become which labels, which families are shown, and nothing else."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from visionloop.serving.envoy import bootstrap, change_keys, read_addresses, write_initial
from visionloop.serving.envoy_metrics import BUCKETS_MS, TAGS, families, metrics_listener

from .test_envoy import ADDRESSES

OPEN = replace(ADDRESSES, metrics_port=8502)


def labelled(name: str) -> tuple[str, dict[str, str]]:
    """As Envoy does it: the first group of each expression leaves the name, the second is the label's value."""
    found = {tag: match for tag, regex in TAGS.items() if (match := re.search(regex, name))}
    gone = {at for match in found.values() for at in range(*match.span(1))}
    left = "".join(letter for at, letter in enumerate(name) if at not in gone)
    return left, {tag: match[2] for tag, match in found.items()}


@pytest.mark.parametrize(
    ("name", "left", "labels"),
    [
        (
            "cluster.fashion/stable/http.upstream_rq_completed",
            "cluster.upstream_rq_completed",
            {"model": "fashion", "lane": "stable", "protocol": "http", "envoy.cluster_name": "fashion/stable/http"},
        ),
        (
            "cluster.a.b-c_d/canary-first/grpc.grpc.inference.GRPCInferenceService.ModelInfer.14",
            "cluster.grpc",
            {
                **{"model": "a.b-c_d", "lane": "canary", "protocol": "grpc", "grpc_status": "14"},
                "envoy.cluster_name": "a.b-c_d/canary-first/grpc",
            },
        ),
        (
            "cluster.stable/http.upstream_rq_time",
            "cluster.upstream_rq_time",
            {"lane": "stable", "protocol": "http", "envoy.cluster_name": "stable/http"},
        ),
        ("cluster.capture.upstream_rq_503", "cluster.upstream_rq_503", {"envoy.cluster_name": "capture"}),
        ("http.endpoint.downstream_rq_too_large", "http.endpoint.downstream_rq_too_large", {}),
    ],
)
def test_pieces_of_a_name_become_labels(name: str, left: str, labels: dict[str, str]) -> None:
    assert labelled(name) == (left, labels)


@pytest.mark.parametrize(
    "name",
    [
        *("cluster.m/stable/http.upstream_rq_completed", "cluster.m/canary-first/grpc.upstream_rq_503"),
        *("cluster.a.b/stable/http.upstream_rq_time", "cluster.stable/http.upstream_rq_completed"),
        "cluster.m/stable/grpc.grpc.inference.GRPCInferenceService.ModelInfer.0",
        *("cluster.capture.upstream_rq_pending_overflow", "http.endpoint.ext_proc.streams_started"),
        *("http.endpoint.downstream_rq_4xx", "http.endpoint.api_key_auth.unauthorized", "server.uptime"),
    ],
)
def test_a_scrape_sees_what_matters(name: str) -> None:
    assert re.search(families(), name)


@pytest.mark.parametrize(
    "name",
    [
        *("http.admin.downstream_rq_total", "cluster.admin.upstream_rq_completed", "runtime.load_success"),
        *("cluster.m/stable/http.external.upstream_rq_completed", "cluster.m/stable/http.upstream_cx_total"),
        *("listener.127.0.0.1_8000.http.endpoint.downstream_rq_4xx", "http.metrics.downstream_rq_completed"),
    ],
)
def test_and_nothing_else(name: str) -> None:
    assert not re.search(families(), name)


def test_without_a_port_there_is_no_listener_and_no_way_to_the_admin_interface(tmp_path: Path) -> None:
    assert metrics_listener(ADDRESSES) == []
    assert bootstrap(tmp_path, ADDRESSES)["static_resources"] == {"clusters": []}


def test_one_exact_question_is_answered() -> None:
    [made] = metrics_listener(replace(OPEN, metrics_host="0.0.0.0"))
    assert made["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8502}
    first, last = made["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
    headers = {header["name"]: header["string_match"] for header in first["match"]["headers"]}
    assert headers == {":method": {"exact": "GET"}, ":path": {"exact": "/metrics"}}  # `:path` has the query in it
    assert first["route"]["prefix_rewrite"].startswith("/stats/prometheus?usedonly&filter=")
    assert last == {"match": {"prefix": "/"}, "direct_response": {"status": 404}}


def test_other_keys_leave_the_listener_as_it_is(tmp_path: Path) -> None:
    write_initial(tmp_path, OPEN, keys={"a": "k" * 32})
    assert read_addresses(tmp_path) == OPEN
    before = (tmp_path / "lds.json").read_text()
    change_keys(tmp_path, {"b": "l" * 32})
    assert '"name": "metrics"' in before
    assert '"name": "metrics"' in (tmp_path / "lds.json").read_text()


def test_a_quantile_is_known_to_a_half_of_its_value_and_a_third_below_a_second() -> None:
    assert sorted(set(BUCKETS_MS)) == BUCKETS_MS
    above = [(low, high) for low, high in itertools.pairwise(BUCKETS_MS) if 3 <= low < 2000]
    assert all(high / low <= (1.5 if low >= 1000 else 4 / 3) for low, high in above)
