"""Twenty releases in a row under load: nobody notices, and nothing is left behind in memory."""

from visionloop import stack

from .conftest import make_project
from .world import Traffic, World

RELEASES, SETTLED = 20, 5
QUICK = {"canary_percent": [50], "step_requests": 20, "max_error_rate": 0.2, "max_disagreement": 0.2}


def test_twenty_releases_under_load_fail_no_request_and_leave_no_memory_behind(running):
    project = make_project(running, "many")
    here = World(running, project.model_copy(update={"release": project.release.model_copy(update=QUICK)}))
    here.release(1)
    memory = []
    with Traffic(here) as traffic:
        for version in range(2, RELEASES + 2):
            done = here.release(version, bias=0.05 * (version % 2))
            assert (done.outcome, done.previous_version) == ("promoted", version - 1)
            assert traffic.take() <= {("stable", version - 1), ("canary", version), ("stable", version)}
            memory.append(resident_mib(here))
    assert traffic.failures == []
    assert sum(traffic.seen.values()) > 20 * RELEASES
    assert here.versions() == {("stable", RELEASES + 1): 40}
    settled, last = memory[SETTLED - 1], memory[-1]
    assert last < 1.1 * settled, f"MiB after each release: {memory}"


def resident_mib(here: World) -> float:
    """Of the lanes with their models' processes, of Envoy and the capture service."""
    kept = {"triton-stable", "triton-canary", "envoy", "capture"}
    found = [service for service in stack.status(here.servers.settings).services if service.name in kept]
    assert len(found) == len(kept)
    return sum(service.rss_mb for service in found)
