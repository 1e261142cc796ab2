"""The object store: `s3://` by boto3 or `file://` by the file system, with conditional writes in both.

Keys are relative to the root; URIs are absolute. A write is whole or absent, never half.
"""

import configparser
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from visionloop.atomic import PART_PREFIX, whole_file
from visionloop.errors import ConfigError, Conflict, IntegrityError, NotFound, StoreError
from visionloop.records import Candidate
from visionloop.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CHUNK_BYTES = 1 << 20
TRIES = 12
"""With boto3's back-off these ride out about a minute without the server."""


@dataclass(frozen=True)
class ObjectInfo:
    """One line of a listing."""

    key: str
    size_bytes: int
    modified: datetime


class Objects(Protocol):
    """What the loop asks of an object store. Raises NotFound, Conflict, or StoreError (server out of reach)."""

    root: str

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        """Write or overwrite; returns the URI."""

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        """Write only where nothing is; raises Conflict otherwise."""

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Overwrite only what `get_tagged` returned with `etag`; raises Conflict otherwise."""

    def get(self, key: str) -> bytes:
        """Read whole."""

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """Read whole, with the tag that `replace` asks for."""

    def open(self, key: str) -> BinaryIO:
        """Read as a stream; the caller closes it."""

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below a prefix, by key."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the first path segment below a prefix that ends with a slash."""

    def upload(self, path: Path, key: str) -> str:
        """Write a file's bytes; returns the URI."""

    def download(self, key: str, path: Path) -> None:
        """Write an object into a file, atomically."""

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""

    def exists(self, key: str) -> bool:
        """Is there an object?"""

    def uri(self, key: str) -> str:
        """Absolute form of a key."""

    def key(self, uri: str) -> str:
        """Key of a URI; raises ConfigError for a URI of another store."""

    def storage_options(self) -> dict[str, str]:
        """What Lance needs to reach the same store."""


def open_objects(settings: Settings) -> Objects:
    """The object store that `VISIONLOOP_STORE` names."""
    root = settings.need("store").rstrip("/")
    if root.startswith("file://"):
        return FileObjects(Path(root.removeprefix("file://")))
    if root.startswith("s3://"):
        return S3Objects(root, settings)
    raise ConfigError(f"VISIONLOOP_STORE is {root!r}: expected s3://bucket or file:///folder")


class _Addressed:
    """URIs and keys, the same for every kind of store."""

    root: str

    def uri(self, key: str) -> str:
        return f"{self.root}/{key}"

    def key(self, uri: str) -> str:
        if not uri.startswith(self.root + "/"):
            raise ConfigError(f"{uri} does not lie in the object store {self.root}")
        return uri.removeprefix(self.root + "/")


def get_verified(objects: Objects, uri: str, sha256: str) -> bytes:
    """The bytes at `uri`. Raises IntegrityError when they are not those that a record vouches for."""
    data = objects.get(objects.key(uri))
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(f"{uri}: expected SHA-256 {sha256}, found {found}: it was changed")
    return data


def get_artifact(objects: Objects, candidate: Candidate, name: str) -> bytes:
    """A candidate's file. Raises IntegrityError when it has none of that name, or not the one that it vouches for."""
    artifact = candidate.artifacts.get(name)
    if artifact is None:
        raise IntegrityError(f"candidate {candidate.id} has no {name}, only {', '.join(candidate.artifacts)}")
    return get_verified(objects, artifact.uri, artifact.sha256)


class S3Objects(_Addressed):
    """A bucket of S3 or of a server that speaks it."""

    def __init__(self, root: str, settings: Settings) -> None:
        self.root = root
        self.bucket, _, self._prefix = root.removeprefix("s3://").partition("/")
        self._endpoint = settings.s3_endpoint
        self._credentials = _read_credentials(settings.s3_credentials)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        with self._speaking(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, ContentType=content_type)
        return self.uri(key)

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        with self._speaking(key):
            self._client.put_object(
                Bucket=self.bucket, Key=self._full(key), Body=data, ContentType=content_type, IfNoneMatch="*"
            )
        return self.uri(key)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        with self._speaking(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, IfMatch=etag)
        return self.uri(key)

    def get(self, key: str) -> bytes:
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        with self._speaking(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._full(key))
            return answer["Body"].read(), answer["ETag"]

    def open(self, key: str) -> BinaryIO:
        with self._speaking(key):
            return cast(BinaryIO, self._client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"])

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._full(prefix))
        with self._speaking(prefix):
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(self._relative(item["Key"]), item["Size"], item["LastModified"])

    def folders(self, prefix: str) -> list[str]:
        full = self._full(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full, Delimiter="/")
        with self._speaking(prefix):
            return sorted(
                item["Prefix"][len(full) :].rstrip("/") for page in pages for item in page.get("CommonPrefixes", [])
            )

    def upload(self, path: Path, key: str) -> str:
        with self._speaking(key):
            self._client.upload_file(str(path), self.bucket, self._full(key))
        return self.uri(key)

    def download(self, key: str, path: Path) -> None:
        with self._speaking(key), whole_file(path) as part:
            self._client.download_file(self.bucket, self._full(key), str(part))

    def delete(self, key: str) -> None:
        with self._speaking(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def exists(self, key: str) -> bool:
        try:
            with self._speaking(key):
                self._client.head_object(Bucket=self.bucket, Key=self._full(key))
        except NotFound:
            return False
        return True

    def storage_options(self) -> dict[str, str]:
        options = dict(self._credentials)
        if self._endpoint:
            options |= {"aws_endpoint": self._endpoint, "aws_region": "us-east-1"}
            options["allow_http"] = str(self._endpoint.startswith("http://")).lower()
        return options

    @property
    def _client(self) -> "S3Client":
        # A client a process: boto3's are thread-safe, but not across a fork.
        if getattr(self, "_pid", None) != os.getpid():
            self._pid, self._made = os.getpid(), self._connect()
        return self._made

    def _connect(self) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": TRIES},
            connect_timeout=3,
            read_timeout=60,
            max_pool_connections=32,
            s3={"addressing_style": "path"} if self._endpoint else {},
        )
        credentials: dict[str, Any] = dict(self._credentials)
        region = "us-east-1" if self._endpoint else None
        return boto3.client("s3", endpoint_url=self._endpoint, region_name=region, config=config, **credentials)

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _relative(self, full: str) -> str:
        return full.removeprefix(self._prefix + "/") if self._prefix else full

    @contextmanager
    def _speaking(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise _translated(error, self.uri(key)) from error
        except (BotoCoreError, Boto3Error) as error:
            where = self._endpoint or "AWS"
            raise StoreError(f"S3 at {where} cannot be reached for {self.uri(key)}: {error}") from error


def _translated(error: Any, uri: str) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}:
        return NotFound(f"{uri} does not exist ({code})")
    if code in {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}:
        return Conflict(f"{uri} was written by somebody else first")
    return StoreError(f"S3 refused {uri}: {error}")


def _read_credentials(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    parser = configparser.ConfigParser()
    try:
        parser.read_string(path.read_text())
        profile = parser["default"]
        return {name: profile[name] for name in ("aws_access_key_id", "aws_secret_access_key")}
    except (OSError, configparser.Error, KeyError) as error:
        raise ConfigError(f"VISIONLOOP_S3_CREDENTIALS: {path} is no AWS credentials file: {error}") from None


class FileObjects(_Addressed):
    """A folder. Conditional writes hold among processes of one machine (an advisory lock)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = f"file://{folder}"

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        with whole_file(self._path(key)) as part:
            part.write_bytes(data)
        return self.uri(key)

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> str:
        path = self._path(key)
        with self._locked():
            if path.exists():
                raise Conflict(f"{self.uri(key)} was written by somebody else first")
            return self.put(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        with self._locked():
            if self.get_tagged(key)[1] != etag:
                raise Conflict(f"{self.uri(key)} was written by somebody else first")
            return self.put(key, data)

    def get(self, key: str) -> bytes:
        with self.open(key) as stream:
            return stream.read()

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        data = self.get(key)
        return data, hashlib.sha256(data).hexdigest()

    def open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError):
            raise NotFound(f"{self.uri(key)} does not exist") from None

    def scan(self, prefix: str) -> Iterator[ObjectInfo]:
        top = self._path(prefix.rpartition("/")[0])
        files = (
            Path(base) / name for base, _, names in os.walk(top) for name in names if not name.startswith(PART_PREFIX)
        )
        for key, path in sorted((path.relative_to(self.folder).as_posix(), path) for path in files):
            if key.startswith(prefix):
                stat = path.stat()
                yield ObjectInfo(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def folders(self, prefix: str) -> list[str]:
        top = self._path(prefix)
        return sorted(entry.name for entry in top.iterdir() if entry.is_dir()) if top.is_dir() else []

    def upload(self, path: Path, key: str) -> str:
        with whole_file(self._path(key)) as part:
            shutil.copyfile(path, part)
        return self.uri(key)

    def download(self, key: str, path: Path) -> None:
        with self.open(key) as stream, whole_file(path) as part, part.open("wb") as out:
            shutil.copyfileobj(stream, out, CHUNK_BYTES)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def storage_options(self) -> dict[str, str]:
        return {}

    def _path(self, key: str) -> Path:
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise ConfigError(f"{key!r} is no key of {self.root}")
        return self.folder / key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{PART_PREFIX}lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
