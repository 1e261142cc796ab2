"""Takes the README's pictures from a demo that runs: start `visionloop demo --keep`, then this beside it.

    python tools/take_screenshots.py --home .visionloop/demo docs/images

It waits for the second release's approval, then for the end of the demo. With a demo that has ended it takes all
pictures but the approval's.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from playwright.sync_api import Page, sync_playwright

from visionloop.settings import Settings, load_settings
from visionloop.stores.airflow import PendingApproval, open_airflow

PROJECT = "fashion"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
WAIT_SECONDS = 900.0
T = TypeVar("T")


def main() -> None:
    """Log in, wait, take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--home", type=Path, default=Path(".visionloop/demo"))
    given = parser.parse_args()
    report = given.home / "report.json"
    settings = until(lambda: started(given.home))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 1180})
        until(lambda: log_in(page, settings))
        if not report.exists():
            approval(page, settings, until(lambda: second_release(settings)), given.out / "approval.png")
        links = json.loads(until(lambda: report.read_text() if report.exists() else None))["links"]
        assets(page, settings, given.out / "assets.png")
        for name in ("evaluation", "drift report"):
            page.set_viewport_size({"width": 1080, "height": 1000})
            page.goto(links[name])
            page.get_by_role("heading").first.wait_for()
            page.screenshot(path=given.out / f"{name.split()[0]}.png")
        browser.close()


def started(home: Path) -> Settings | None:
    """Settings of a stack that has come up."""
    try:
        settings = load_settings({"VISIONLOOP_HOME": str(home)})
    except OSError:
        return None
    return settings if settings.airflow_url else None


def log_in(page: Page, settings: Settings) -> bool | None:
    """As the user who may see everything."""
    airflow = open_airflow(settings)
    try:
        page.goto(f"{airflow.url}/auth/login")
    except Exception:  # the server is still starting
        return None
    users = json.loads(Path(settings.need("airflow_users")).read_text())
    page.locator("input[name=username]").fill("admin")
    page.locator("input[name=password]").fill(users["admin"])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "login" not in url)
    return True


def second_release(settings: Settings) -> PendingApproval | None:
    """The approval that has a champion to show beside the challenger."""
    waiting = open_airflow(settings).pending_approvals(PROJECT)
    return next((found for found in waiting if "version 2" in found.subject), None)


def approval(page: Page, settings: Settings, found: PendingApproval, path: Path) -> None:
    """What an approver sees."""
    run = open_airflow(settings).run_link(found.dag, found.run_id)
    page.goto(f"{run}/tasks/approve/required_actions")
    page.get_by_role("cell", name="overall").first.wait_for()
    page.screenshot(path=path)


def assets(page: Page, settings: Settings, path: Path) -> None:
    """The asset graph, without the panels beside it."""
    page.set_viewport_size({"width": 1800, "height": 860})
    page.goto(f"{settings.airflow_url}/assets")
    page.get_by_text(f"visionloop://{PROJECT}/candidate").first.click()
    graph = page.locator(".react-flow")
    graph.get_by_text(f"{PROJECT}__monitor").wait_for()
    page.screenshot(path=path)


def until(found: Callable[[], T | None]) -> T:
    """The first answer that is not None."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        answer = found()
        if answer is not None:
            return answer
        time.sleep(0.3)
    raise SystemExit(f"nothing came within {WAIT_SECONDS:.0f} s: does `visionloop demo --keep` run?")


if __name__ == "__main__":
    main()
