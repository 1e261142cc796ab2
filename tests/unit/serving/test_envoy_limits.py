"""What the endpoint takes and how it refuses: the numbers of the settings, where Envoy looks for them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from visionloop.serving.envoy import bootstrap, change_keys, listener, write_initial
from visionloop.serving.envoy_limits import (
    BODY_LIMIT_BYTES,
    CLIENT_HEADER,
    DEFAULT,
    Limits,
    announced_too_large,
    overload,
    rate_filter,
    refusals,
    times,
)
from visionloop.settings import Settings
from visionloop.stack.envoy import _limits

from .test_envoy import ADDRESSES, ENTRY, KEYS, envoy_says, hosts, plain, whole

OWN = Limits(
    headers_seconds=3.0,
    request_seconds=7.5,
    idle_seconds=11.0,
    max_connections=99,
    heap_mib=300,
    client_requests_per_second=20,
)


def manager(folder: Path, limits: Limits, keys: dict[str, str] | None = None) -> dict[str, Any]:
    return listener(folder, ADDRESSES, keys, limits)["filter_chains"][0]["filters"][0]["typed_config"]


def test_each_limit_has_a_setting_of_the_same_default() -> None:
    assert _limits(Settings()) == DEFAULT
    given = {f"endpoint_{field.name}": getattr(OWN, field.name) for field in fields(Limits)}
    assert _limits(Settings.model_validate(given)) == OWN


def test_slow_clients_are_waited_for_as_long_as_the_settings_say(tmp_path: Path) -> None:
    found = manager(tmp_path, OWN)
    assert found["request_headers_timeout"] == "3.0s"
    assert found["request_timeout"] == "7.5s"
    assert found["common_http_protocol_options"] == {"idle_timeout": "11.0s"}
    assert times(OWN).items() <= found.items()


def test_the_process_has_bounds_of_its_own(tmp_path: Path) -> None:
    heap, connections = (m["typed_config"] for m in overload(OWN)["resource_monitors"])
    assert heap["max_heap_size_bytes"] == 300 * 1024 * 1024
    assert connections["max_active_downstream_connections"] == 99
    assert bootstrap(tmp_path, ADDRESSES, OWN)["overload_manager"] == overload(OWN)


def test_who_asks_is_who_is_connected(tmp_path: Path) -> None:
    """Else a client would choose its own count by x-forwarded-for."""
    assert manager(tmp_path, OWN)["use_remote_address"] is True


def test_no_client_is_counted_unless_asked_for(tmp_path: Path) -> None:
    assert rate_filter(DEFAULT, keyed=False) == []
    assert "rate" not in [found["name"] for found in manager(tmp_path, DEFAULT)["http_filters"]]


@pytest.mark.parametrize(
    ("keyed", "action", "own"),
    [
        (False, {"remote_address": {}}, []),
        (True, {"request_headers": {"header_name": CLIENT_HEADER, "descriptor_key": "client"}}, ["visionloop"]),
    ],
)
def test_each_client_has_a_bucket_and_the_loop_has_no_bottom(keyed: bool, action: dict, own: list[str]) -> None:
    [found] = rate_filter(OWN, keyed=keyed)
    config = found["typed_config"]
    assert config["rate_limits"] == [{"actions": [action]}]
    *exempt, each = config["descriptors"]
    assert each["token_bucket"] == {"max_tokens": 40, "tokens_per_fill": 20, "fill_interval": "1s"}
    assert "value" not in each["entries"][0]  # any client's
    assert [entry["entries"][0]["value"] for entry in exempt] == own
    assert all(entry["token_bucket"]["tokens_per_fill"] > 1_000_000 for entry in exempt)
    assert config["rate_limited_as_resource_exhausted"]


def test_strangers_are_refused_before_they_are_counted_and_both_before_a_body_is_kept(tmp_path: Path) -> None:
    names = [found["name"] for found in manager(tmp_path, OWN, KEYS)["http_filters"]]
    assert names[:5] == ["api_key", "rate", "health", "decompressor", "buffer"]
    assert names.index("buffer") < names.index("lua") < names.index("capture") < names.index("router")


def test_a_clients_name_goes_further_only_where_it_is_counted(tmp_path: Path) -> None:
    for limits, named in ((DEFAULT, {}), (OWN, {"header": CLIENT_HEADER})):
        config = manager(tmp_path, limits, KEYS)["http_filters"][0]["typed_config"]
        assert config["forwarding"] == {**named, "hide_credentials": True}


def test_other_keys_leave_the_limits_as_they_were(tmp_path: Path) -> None:
    write_initial(tmp_path, ADDRESSES, keys=KEYS, limits=OWN)
    change_keys(tmp_path, {**KEYS, "door": "door-key-door-key-door"})
    [after] = json.loads((tmp_path / "lds.json").read_text())["resources"]
    assert after == listener(tmp_path, ADDRESSES, {**KEYS, "door": "door-key-door-key-door"}, OWN)


def said(*flags: str, status: int | None = None) -> list[tuple[str, int, str]]:
    """What is said to gRPC and to everybody else, for one status or some flags."""
    wanted: dict[str, Any] = {"response_flag_filter": {"flags": list(flags)}}
    if status:
        value = {"default_value": status, "runtime_key": f"refusal.{status}"}
        wanted = {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
    found = []
    for mapper in refusals(OWN)["mappers"]:
        parts = mapper["filter"].get("and_filter", {}).get("filters", [mapper["filter"]])
        if parts[0] == wanted and len(parts) == 2:
            text = mapper["body_format_override"]["text_format_source"]["inline_string"]
            found.append(("grpc", int(mapper["headers_to_add"][0]["header"]["value"]), text))
        elif parts[0] == wanted:
            found.append(("http", 0, mapper["body_format_override"]["json_format"]["error"]))
    return found


@pytest.mark.parametrize(
    ("which", "code", "words"),
    [
        ({"status": 413}, 8, "at most 16777216 bytes"),
        ({"status": 429}, 8, "at most 20 requests a second"),
        ({"status": 431}, 8, "at most 7 KiB"),
        ({"status": 408}, 4, "within 7.5 s"),
        ({"status": 504}, 4, "within 7.5 s"),
        ({"status": 503}, 8, "takes no request now"),
    ],
)
def test_a_refusal_says_the_limit_to_grpc_with_its_status_and_to_http_as_json(
    which: dict[str, int], code: int, words: str
) -> None:
    (first, grpc_status, text), (second, _, json_text) = said(**which)
    assert (first, second) == ("grpc", "http")  # the first that matches is taken
    assert grpc_status == code
    assert words in text
    assert words in json_text


@pytest.mark.parametrize(("flag", "code"), [("UT", 4), ("UO", 8), ("UH", 14), ("DPE", 3)])
def test_what_envoy_calls_by_a_flag_is_said_in_words(flag: str, code: int) -> None:
    (_, grpc_status, text), (_, _, json_text) = said(flag)
    assert grpc_status == code
    assert text == json_text


def test_who_is_too_full_says_when_to_ask_again_and_nobody_else() -> None:
    """So clients that are told to wait do, and an overloaded lane is not helped by ten tries of each."""
    mappers = refusals(OWN)["mappers"]
    found = [{one["header"]["key"]: one["header"]["value"] for one in mapper["headers_to_add"]} for mapper in mappers]
    again = [heads for heads in found if set(heads) & {"retry-after", "grpc-retry-pushback-ms"}]
    assert again == [{"grpc-status": "8", "grpc-retry-pushback-ms": "1000"}, {"retry-after": "1"}] * 2
    texts = [json.dumps(mapper) for mapper, heads in zip(mappers, found, strict=True) if heads in again]
    assert [("too many requests" in text, "takes no request now" in text) for text in texts] == [
        *[(True, False)] * 2,
        *[(False, True)] * 2,
    ]


def test_a_models_own_time_out_is_told_from_any_other() -> None:
    filters = [json.dumps(mapper["filter"]) for mapper in refusals(DEFAULT)["mappers"]]
    assert filters.index(next(f for f in filters if '"UT"' in f)) < filters.index(
        next(f for f in filters if "504" in f)
    )


def test_a_length_is_refused_from_the_first_byte_that_is_too_many() -> None:
    [length] = announced_too_large("/")["headers"]
    assert length["name"] == "content-length"
    assert length["range_match"]["start"] == 2 * BODY_LIMIT_BYTES + 1 == 33_554_433


def test_nothing_waits_for_a_body_that_is_refused_by_its_length() -> None:
    [refused] = [route for route in hosts(ENTRY) if route.get("direct_response", {}).get("status") == 413]
    off = {name for name, config in refused["typed_per_filter_config"].items() if config["disabled"]}
    assert off == {"capture", "buffer", "envoy.filters.http.grpc_field_extraction", "lua"}
    places = [n for n, route in enumerate(hosts(ENTRY)) if "metadata" in route]
    assert hosts(ENTRY).index(refused) < min(places)


def test_envoy_takes_these_too(tmp_path: Path) -> None:
    document = whole(tmp_path)
    endpoint = plain(listener(tmp_path, ADDRESSES, KEYS, OWN))
    config = endpoint["filter_chains"][0]["filters"][0]["typed_config"]
    del config["rds"]
    before = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    config["route_config"] = before["route_config"]
    document["static_resources"]["listeners"] = [endpoint]
    document["overload_manager"] = overload(OWN)
    assert envoy_says(document, tmp_path) == "OK"
    document["overload_manager"]["actions"][0]["planted"] = True
    assert "planted" in envoy_says(document, tmp_path)


def test_a_wrong_setting_is_refused_by_name() -> None:
    for name, value in (("heap_mib", 255), ("max_connections", 0), ("request_seconds", 0), ("headers_seconds", 0)):
        with pytest.raises(ValueError, match=f"endpoint_{name}"):
            Settings.model_validate({f"endpoint_{name}": value})
    assert Settings(endpoint_heap_mib=256, endpoint_max_connections=1).endpoint_heap_mib == 256
