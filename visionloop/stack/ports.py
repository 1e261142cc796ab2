"""Ports on the loopback: what the user fixed, else what was used before, else the usual one, else any that is free."""

import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from visionloop.errors import StackError

LOOPBACK = "127.0.0.1"
SPARE = range(20_000, 32_000)
"""Where to look when the usual port is taken: below the range from which the kernel takes ports for connections."""


@dataclass
class Claims:
    """Ports promised to the services of this stack, from now until its supervisor ends.

    A claim is a socket in the abstract namespace: the kernel lets one process hold it, so two stacks that start at the
    same time never choose the same port, and it is gone with the process, whatever ends that.
    """

    held: dict[int, socket.socket] = field(default_factory=dict)

    def take(self, port: int) -> bool:
        """Claim `port`; False where another stack holds it."""
        if port in self.held:
            return False
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0visionloop/port/{port}")
        except OSError:
            claim.close()
            return False
        self.held[port] = claim
        return True

    def close(self) -> None:
        """Give all back."""
        for claim in self.held.values():
            claim.close()
        self.held.clear()


def choose(claims: Claims, *, fixed: int | None, setting: str, service: str, wanted: tuple[int | None, ...]) -> int:
    """Claim one port: `fixed` or StackError, else the first of `wanted` that is free, else a spare one."""
    if fixed is not None:
        if not is_free(fixed):
            raise StackError(f"{service}: port {fixed}, set by {setting}, is taken by {owner_of(fixed)}")
        if not claims.take(fixed):
            raise StackError(f"{service}: port {fixed}, set by {setting}, is promised to another embedded stack")
        return fixed
    spare = random.sample(SPARE, 200)
    for port in [*(w for w in wanted if w is not None), *spare]:
        if is_free(port) and claims.take(port):
            return port
    raise StackError(f"{service}: no free port between {SPARE.start} and {SPARE.stop}: end what uses them")


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback's `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except (OSError, OverflowError):
            return False
    return True


def owner_of(port: int) -> str:
    """Who listens on `port`, as text for a message."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr]
        pids = {c.pid for c in listening if c.pid and tuple(c.laddr)[1:2] == (port,)}
        names = {f"{psutil.Process(pid).name()} (pid {pid})" for pid in pids}
    except psutil.Error:
        names = set()
    return ", ".join(sorted(names)) or "a process of another user"


def remembered(ports: Mapping[str, int], key: str) -> int | None:
    """The port that `key` had when the stack ran last."""
    value = ports.get(key)
    return value if isinstance(value, int) else None
