"""What people do in Airflow's UI, in a real browser: see the circle, read the evidence, approve with a reason."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.integration.airflow.conftest import PROJECT, Loop, TrainRun
from visionloop.errors import ConfigError
from visionloop.records import Approval, Candidate

RELEASE = f"{PROJECT}__release"
APPROVER = "release-manager"
REASON = "figures are fine; belt-1 was looked at by hand"
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "no chromium: `make browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


def page_of(chromium: Browser, loop: Loop, user: str, path: str) -> Page:
    """A page of Airflow after the login of a user."""
    page = chromium.new_page(viewport={"width": 1500, "height": 950})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(loop.airflow.url + path)
    page.locator("input[name=username]").fill(user)
    page.locator("input[type=password]").fill(loop.password(user))
    page.get_by_role("button", name="Sign in").click()
    return page


@pytest.fixture(scope="module")
def waiting(loop: Loop, trained: TrainRun) -> str:
    """A release run that waits for its approver."""
    run = loop.run(RELEASE)
    loop.task(RELEASE, run, "approve", "awaiting_input")
    return run


def test_the_asset_graph_shows_the_circle(chromium: Browser, loop: Loop, trained: TrainRun) -> None:
    page = page_of(chromium, loop, "viewer", "/assets")
    page.get_by_role("link", name=f"visionloop://{PROJECT}/champion").click()
    graph = page.locator(".react-flow")
    for dag in ("data", "train", "release", "monitor"):
        expect(graph.get_by_text(f"{PROJECT}__{dag}", exact=True)).to_be_visible(timeout=PATIENCE_MS)
    for asset in ("snapshot", "candidate", "champion", "retrain"):
        expect(graph.get_by_text(f"visionloop://{PROJECT}/{asset}", exact=True)).to_be_visible()
    champion = page.url.rpartition("/")[2]
    expect(graph.get_by_test_id(f"rf__edge-dag:{RELEASE}-asset:{champion}")).to_have_count(1)
    expect(graph.get_by_test_id(f"rf__edge-asset:{champion}-dag:{PROJECT}__monitor")).to_have_count(1)
    expect(graph.locator(".react-flow__edge")).to_have_count(8)
    page.close()


def test_nobody_else_may_approve(loop: Loop, waiting: str) -> None:
    with pytest.raises(ConfigError, match=f"its approvers are {APPROVER}"):
        loop.airflow.answer(PROJECT, user="admin", decision="Approve", reason="I am the administrator")


def test_an_approver_reads_the_evidence_and_approves_with_a_reason(chromium: Browser, loop: Loop, waiting: str) -> None:
    page = page_of(chromium, loop, APPROVER, "/required_actions")
    page.get_by_role("link", name=f"Release {PROJECT} version 1?").click()
    expect(page.get_by_role("row", name="overall accuracy critical")).to_contain_text("passed")
    candidate = loop.stores.ledger.latest(Candidate, PROJECT)
    assert candidate is not None
    expect(page.get_by_text(candidate.model_sha256)).to_be_visible()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Evaluation page").click()
    expect(opened.value.get_by_text("The gate lets this model pass")).to_be_visible()
    approve = page.get_by_role("button", name="Approve")
    expect(approve).to_be_disabled()  # not without a reason
    page.locator("[name=element_reason]").fill(REASON)
    approve.click()
    assert loop.task(RELEASE, waiting, "approve", "success", "failed") == "success"
    page.close()
    approval = loop.stores.ledger.latest(Approval, PROJECT)
    assert approval is not None
    said = (approval.decision, approval.by, approval.mode, approval.reason, approval.model_sha256)
    assert said == ("approved", APPROVER, "human", REASON, candidate.model_sha256)
    tags = loop.stores.registry.version(PROJECT, 1).tags
    assert tags["visionloop.decision"] == "approved"
    assert tags["visionloop.decided_by"] == APPROVER
    assert tags["visionloop.decision_reason"] == REASON


def test_a_release_whose_task_fails_for_good_is_called_off_and_its_run_is_red(loop: Loop, waiting: str) -> None:
    loop.airflow.set_task_state(RELEASE, waiting, "preflight", "failed")
    assert loop.ended(RELEASE, waiting) == "failed"
    states = loop.airflow.task_states(RELEASE, waiting)
    assert (states["call_off"], states["promote"], states["released"]) == (
        "success",
        "upstream_failed",
        "upstream_failed",
    )
