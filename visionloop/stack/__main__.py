"""To try the stack without the command line: `python -m visionloop.stack up | down | status | doctor [--only a,b]`."""

import argparse
import sys

from visionloop.errors import VisionLoopError
from visionloop.settings import load_settings
from visionloop.stack import Event, doctor, down, status, up


def main() -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m visionloop.stack")
    parser.add_argument("command", choices=("up", "down", "status", "doctor"))
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--without", type=lambda text: text.split(","), default=())
    options = parser.parse_args()
    settings = load_settings()
    try:
        if options.command == "up":
            result = up(settings, only=options.only, without=options.without, on_event=_say)
        elif options.command == "down":
            result = down(settings, on_event=_say)
        elif options.command == "status":
            result = status(settings)
        else:
            checks = doctor(settings)
            for check in checks:
                print(f"{'ok ' if check.ok else 'BAD'} {check.name:24} {check.found}  {check.advice}")
            return 0 if all(check.ok for check in checks) else 1
    except VisionLoopError as error:
        print(error, file=sys.stderr)
        return 1
    for service in result.services:
        words = (service.state, service.pid or "-", service.address, service.version, f"{service.rss_mb} MB")
        print(f"{service.name:22}", *words, service.restarts, service.reason)
    print(f"{result.phase} {result.reason} {result.rss_mb} MB")
    return 0


def _say(event: Event) -> None:
    print(f"{event.seconds:6.1f} s  {event.service:22} {event.state} {event.reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
