"""Connections to S3, GCS, Azure and web folders over obstore, and their errors in plain words."""

import atexit
import contextlib
import functools
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sive.config import process_environment
from sive.errors import AdapterError

from sive_adapters.part import Stat
from sive_adapters.sources import LOOPBACK, Kind, Source

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

WAY_IN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "https": "choose a folder that can be read without a login",
}
TRUE = ("1", "true", "yes", "on")

EXIT_S = 0.2

METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal")
"""Asked for credentials where the environment has none."""

_IN_WORDS = (
    (r"timed? ?out", "it did not answer in time"),
    (r"dns error|failed to lookup", "its name was not found"),
    (r"connection ?refused", "it refused the connection"),
    (r"certificate|invalidmessage|tls|handshake", "its certificate or TLS failed"),
    (
        r"reset|broken ?pipe|closed|incomplete|unexpected ?eof|interrupted|kind: body",
        "the connection was cut",
    ),
)
"""Where obstore has no class of its own for a failure, its text tells."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download waits, and how often it tries again; seconds.

    ``stall_s``: a connection that brings nothing for so long is given up. ``tries``: in a row, without a
    byte between them. ``changes``: so often an object may change while it is fetched.
    """

    connect_s: float = 10
    stall_s: float = 30
    tries: int = 6
    pause_s: float = 0.5
    longest_pause_s: float = 15
    changes: int = 3


class TransientError(Exception):
    """Something that may go better the next time; its text is fit for a person and holds no secret."""


class ChangedError(Exception):
    """The object is not the one that was looked at any more."""


class RangesRefusedError(Exception):
    """The server only gives whole objects."""


class MissingFileError(AdapterError):
    """There is no such object."""


def connect(source: Source, patience: Patience, environ: Mapping[str, str] | None = None) -> "ObjectStore":
    """Return obstore's store for a source; its credentials are the environment's.

    Raises:
        AdapterError: obstore is not installed, or the environment is not usable for this store.
    """
    try:
        from obstore import exceptions, store
    except ImportError as exc:
        raise AdapterError(f"{source} needs {exc.name}: pip install 'sive[adapters]'") from exc
    _finish_before_exit()
    environ = process_environment() if environ is None else environ
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=patience.connect_s),
        "read_timeout": timedelta(seconds=patience.stall_s),
        "timeout": timedelta(days=7),  # of a whole body; a slow line is no failure
        "allow_http": _may_be_plain(source, environ),
        "user_agent": "sive",
    }
    # Ours go on from the byte that was reached and know what is worth another try; obstore's make it slow
    # to say what is wrong.
    retry: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=patience.stall_s)}
    shared: dict[str, Any] = {"client_options": options, "retry_config": retry}
    try:
        if source.kind == "s3":
            return store.S3Store(source.root, config=_s3_config(environ), **shared)
        if source.kind == "gs":
            return store.GCSStore(source.root, config=_gcs_config(environ), **shared)
        if source.kind == "az":
            return store.AzureStore(source.root, **shared)
        return store.HTTPStore(source.root, **shared)
    except (exceptions.BaseError, ValueError) as exc:
        # What obstore says may quote a key; which variable it was is all that is needed.
        raise AdapterError(
            f"{source} cannot be reached with what the environment says ({_named_in(exc, environ)}): "
            f"{WAY_IN[source.kind]}"
        ) from None


@contextlib.contextmanager
def plain_errors(source: Source, name: str) -> Iterator[None]:
    """Turn obstore's errors into ours. What it says is not repeated: it may hold signed URLs.

    Raises:
        AdapterError: another try would not help.
        TransientError: it may.
        ChangedError: the object changed since it was looked at.
    """
    from obstore import exceptions

    where = f"{source}/{name}" if name else str(source)
    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError):
        raise MissingFileError(f"there is no {where}: correct the source, or upload it") from None
    except exceptions.PreconditionError:
        raise ChangedError from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError):
        raise _refused(source, where) from None
    except exceptions.NotSupportedError:
        raise RangesRefusedError from None
    except exceptions.BaseError as exc:
        raise _translated(source, where, str(exc)) from None


@functools.cache
def _finish_before_exit() -> None:
    """Give obstore's threads time to let go of Python when the process ends.

    One that has just handed over a result and still wants the GIL when the interpreter is taken down ends
    the process with SIGABRT: 6 of 60 that only looked at an object, with obstore 0.12.1.
    """
    atexit.register(time.sleep, EXIT_S)


def stat_of(meta: Mapping[str, Any]) -> Stat:
    """Return what obstore's metadata say of an object."""
    etag, modified = meta.get("e_tag"), meta.get("last_modified")
    if etag and not etag.endswith('"'):
        etag = f'"{etag}"'  # Azure lists it without quotes, and gives it with them
    # A store that states no time is given the epoch by obstore.
    is_stated = isinstance(modified, datetime) and modified.timestamp() > 0
    return Stat(int(meta["size"]), etag, str(modified) if is_stated else None)


def _translated(source: Source, where: str, text: str) -> Exception:
    if any(host in text for host in METADATA_SERVICES):
        return AdapterError(f"{where}: there are no credentials for it: {WAY_IN[source.kind]}")
    told = re.sub(r"https?://\S+|retry_timeout", "", text).lower()
    found = re.search(r"status code: ([3-5]\d\d)\b", told)
    status = int(found[1]) if found else 0
    if "received non-partial response" in told or status == 416:
        return RangesRefusedError()
    if "received redirect" in told or status in (301, 302, 307, 308):
        way_out = "set AWS_REGION to its region" if source.kind == "s3" else "write where it leads"
        return AdapterError(f"{where} is elsewhere, the store answers with a redirect: {way_out}")
    if status in (408, 425, 429) or status >= 500:
        return TransientError(f"the store answered {status}")
    if status:
        return AdapterError(f"{where} cannot be fetched: the store answered {status}")
    words = next((words for pattern, words in _IN_WORDS if re.search(pattern, told)), "the connection failed")
    return TransientError(words)


def _refused(source: Source, where: str) -> AdapterError:
    return AdapterError(f"{where}: the store refuses access: {WAY_IN[source.kind]}")


def _may_be_plain(source: Source, environ: Mapping[str, str]) -> bool:
    """Without TLS only on this machine, or where the environment says so itself."""
    if source.kind == "https":
        return urlsplit(source.root).hostname in LOOPBACK
    if source.kind == "az":
        return environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() in TRUE or _is_plain(
            environ.get("AZURE_STORAGE_ENDPOINT") or environ.get("AZURE_ENDPOINT")
        )
    if source.kind == "gs":
        return bool(environ.get("STORAGE_EMULATOR_HOST")) or _is_plain(environ.get("GOOGLE_BASE_URL"))
    return _is_plain(environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"))


def _is_plain(endpoint: str | None) -> bool:
    return bool(endpoint and endpoint.startswith("http://"))


def _s3_config(environ: Mapping[str, str]) -> Any:
    config: dict[str, Any] = {}
    if endpoint := environ.get("AWS_ENDPOINT_URL_S3"):
        config["endpoint"] = endpoint
    has_keys = any(
        environ.get(name)
        for name in (
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        )
    )
    # Where the metadata service of EC2 is turned off, nothing is left to sign with: the bucket is public.
    if not has_keys and environ.get("AWS_EC2_METADATA_DISABLED", "").lower() in TRUE:
        config["skip_signature"] = True
    return config


def _gcs_config(environ: Mapping[str, str]) -> Any:
    host = environ.get("STORAGE_EMULATOR_HOST", "")  # as Google's own libraries read it
    if not host:
        return {}
    return {"base_url": host if "://" in host else f"http://{host}", "skip_signature": True}


def _named_in(exc: Exception, environ: Mapping[str, str]) -> str:
    """Return the variables an error speaks of, without their values."""
    text = str(exc).lower()
    named = [name for name in environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]
    return ", ".join(name for name in sorted(named) if name.lower() in text) or type(exc).__name__


KINDS: tuple[Kind, ...] = ("s3", "gs", "az", "https")
"""What is fetched over obstore."""
