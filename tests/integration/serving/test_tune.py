"""Tuning on a real lane: each setting is really loaded and asked, the lane is empty after it, a release goes first."""

import pytest

from visionloop.errors import StageError
from visionloop.records import Tuning
from visionloop.serving.tuning import DELAYS_US
from visionloop.stages import release, tune

from .conftest import make_project
from .world import Traffic, World

INPUTS = tune.Inputs(target_p99_ms=5_000, concurrency=8, images_per_request=4, seconds=0.5, rounds=1, cores=2)


def test_each_setting_is_loaded_asked_and_taken_away_again(own_servers, monkeypatch):
    here = World(own_servers, make_project(own_servers, "tuned"))
    here.release(1, busy=2)
    lane, loaded, real = here.stores.canary, [], tune.closed_loop

    def seen(address, model, images, **options):
        config = lane._client.get_model_config(model).config
        threads = config.parameters["intra_op_thread_count"].string_value
        delay = config.dynamic_batching.max_queue_delay_microseconds
        loaded.append((config.instance_group[0].count, int(threads), delay))
        assert lane.models() == []
        return real(address, model, images, **options)

    monkeypatch.setattr(tune, "closed_loop", seen)
    heard = []
    with Traffic(here) as traffic:
        found = tune.run(here.project, INPUTS, here.stores, report=heard.append)
    assert traffic.failures == []
    assert loaded == [(i, t, delay) for i, t in ((1, 1), (1, 2), (2, 1)) for delay in DELAYS_US]
    assert [(p.instances, p.threads, p.queue_delay_us) for p in found.points] == loaded
    assert found.points == heard
    assert all(p.images_per_second > 0 and 0 < p.p50_ms <= p.p99_ms and not p.failures for p in found.points)
    assert found.chosen in found.points
    assert here.stores.ledger.get(Tuning, here.stores.ledger.uri(found)) == found
    assert b"<svg" in here.stores.objects.get(here.stores.objects.key(found.page_uri))
    assert here.versions() == {("stable", 1): 40}


def test_a_release_in_progress_is_not_disturbed(own_servers):
    here = World(own_servers, make_project(own_servers, "untuned"))
    here.release(1)
    release.preflight(here.project, here.inputs(here.candidate(2, bias=0.5)), here.stores)
    with pytest.raises(StageError, match="in use by untuned"):
        tune.run(here.project, INPUTS, here.stores)
    assert here.stores.canary.served("untuned") == 2
