"""Decides whether a request is sent once more, and after which pause. Pure.

An inference may be repeated: it changes nothing. But a request that the server judged (wrong, unknown, not allowed)
will be judged the same again, one whose time is over has none left, and a server that is overloaded is not helped by
more of the same: it is asked again only when it says when (`grpc-retry-pushback-ms`, gRPC proposal A6). What is left is
a server that was not there.
"""

from collections.abc import Mapping

MOST_TRIES = 10
"""Of one request, the first included: with the pauses they outlast the restart of an endpoint that was killed."""
FIRST_PAUSE_SECONDS = 0.1
"""Before the second try; it doubles with each."""
LONGEST_PAUSE_SECONDS = 1.0
PUSHBACK = "grpc-retry-pushback-ms"


def pause_before_retry(
    code: str,
    *,
    tries: int,
    left_seconds: float,
    luck: float,
    heads: Mapping[str, str] | None = None,
    most_tries: int = MOST_TRIES,
) -> float | None:
    """Seconds to wait before the next try, None for none.

    `code` is gRPC's name of the failure, `tries` how many there were, `left_seconds` what the deadline leaves, `luck`
    from 0 to 1 spreads the clients of a server that comes back over the second half of the pause, `heads` are the
    failure's metadata.
    """
    pushback = (heads or {}).get(PUSHBACK)
    if tries >= most_tries or code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        return None
    if pushback is not None:
        pause = int(pushback) / 1000 if pushback.isdecimal() else None
    elif code == "UNAVAILABLE":
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1), LONGEST_PAUSE_SECONDS) * (0.5 + 0.5 * luck)
    else:
        pause = None
    return pause if pause is not None and pause < left_seconds else None
