"""The embedded servers on one machine: start, stop, look. Nothing is started or read at import."""

from visionloop.stack.doctor import doctor
from visionloop.stack.launch import down, log_path, status, up
from visionloop.stack.status import Check, Event, ServiceStatus, StackStatus

__all__ = ["Check", "Event", "ServiceStatus", "StackStatus", "doctor", "down", "log_path", "status", "up"]
