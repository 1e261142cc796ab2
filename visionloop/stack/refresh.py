"""`up` on a running stack: the servers take in what the project files say now, new projects and new approvers."""

import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime

from visionloop.errors import StackError
from visionloop.stack.service import Context, Launch, Service


def refresh(running: Iterable[Service], ctx: Context) -> dict[str, datetime]:
    """Tell the running services; returns those that the supervisor starts anew for it, and the time before that."""
    now = datetime.now(UTC)
    return {service.name: now for service in running if not service.refresh(ctx, _run)}


def _run(launch: Launch) -> None:
    """Run a command to its end. Raises StackError with its last words."""
    done = subprocess.run(launch.argv, env=launch.env, cwd=launch.cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise StackError(f"`{' '.join(launch.argv[:2])}` ended with status {done.returncode}: {words[-1]}")
