"""API keys of the endpoint's clients: a file of `client: key` lines. No error and no log ever shows a key.

The loop's own probes are the client `visionloop`. A client's own file may hold nothing but its key.
"""

import os
import re
import secrets
import stat
from pathlib import Path

from visionloop.atomic import write_whole
from visionloop.errors import ConfigError

OWN = "visionloop"
"""The client that the loop itself is: its probes, `visionloop predict` on the endpoint's machine."""
CLIENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
KEY = re.compile(r"[\x21-\x39\x3b-\x7e]{16,256}")
"""Printable ASCII but the colon."""
LARGEST_BYTES = 1 << 20


def read_keys(path: Path) -> dict[str, str]:
    """Client -> key. Raises ConfigError for a broken file, one that others may read, or one without the loop's own."""
    mode = stat.S_IMODE(_stat(path).st_mode)
    if mode & 0o037:
        raise ConfigError(f"{path} holds API keys and has mode {mode:04o}: `chmod 600` it, others must not read it")
    keys = _parsed(_read(path), path)
    if OWN not in keys:
        raise ConfigError(f"{path} has no key for {OWN}, which the loop's own probes use: add a line `{OWN}: KEY`")
    return keys


def read_key(path: Path) -> str:
    """The key that a client sends: all that its file holds, or the loop's own of the endpoint's file."""
    text = _read(path).strip()
    if ":" in text:
        keys = _parsed(text, path)
        if OWN not in keys:
            raise ConfigError(f"{path} has no key for {OWN}: expected one key, or a line `{OWN}: KEY`")
        return keys[OWN]
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ConfigError(f"{path} holds no API key: expected one line of ASCII without spaces")
    return text


def add_key(path: Path, client: str) -> str:
    """Give a client a new key and return it; a file that is not there is made, with the loop's own key."""
    keys = read_keys(path) if path.exists() else {OWN: _new()}
    if client in keys:
        raise ConfigError(f"{client} has a key in {path}: remove it first, then add it again")
    if not CLIENT.fullmatch(client):
        raise ConfigError(f"expected a client's name of small letters, digits, dots and hyphens, found {client[:80]!r}")
    keys[client] = _new()
    _write(path, keys)
    return keys[client]


def remove_key(path: Path, client: str) -> None:
    """Take a client's key away. Raises ConfigError for a client that has none, and for the loop's own."""
    keys = read_keys(path)
    if client == OWN:
        raise ConfigError(f"the loop's own probes need the key of {OWN}")
    if client not in keys:
        raise ConfigError(f"{client} has no key in {path} (known: {', '.join(sorted(keys))})")
    del keys[client]
    _write(path, keys)


def _parsed(text: str, path: Path) -> dict[str, str]:
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        client, _, key = (part.strip() for part in line.partition(":"))
        if not CLIENT.fullmatch(client) or not KEY.fullmatch(key):
            raise ConfigError(f"{path}:{number}: expected `client: key`, the key of at least 16 characters without `:`")
        if client in keys or key in keys.values():
            raise ConfigError(f"{path}:{number}: this client or this key stands there twice")
        keys[client] = key
    return keys


def _read(path: Path) -> str:
    if _stat(path).st_size > LARGEST_BYTES:
        raise ConfigError(f"{path} is too large for a file of API keys")
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigError(f"the API key in {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} holds no API key: it is not ASCII text") from None


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ConfigError(f"the API key in {path} cannot be read: {error.strerror}") from None


def _new() -> str:
    return secrets.token_urlsafe(32)


def _write(path: Path, keys: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{client}: {key}\n" for client, key in sorted(keys.items())))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
