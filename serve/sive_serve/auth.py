"""API keys: who may ask."""

import hashlib
from collections.abc import Iterable, Mapping

from pydantic import SecretStr
from sive.errors import RequestError


def authorization(headers: Mapping[str, str]) -> str:
    """The ``Authorization`` of a request, empty when there is none; Anthropic's SDKs say ``x-api-key``."""
    key = headers.get("x-api-key")
    given = headers.get("authorization", "")
    return given if given or key is None else f"Bearer {key}"


class KeyRing:
    """The keys that open the gateway; an empty ring opens to everybody.

    Only digests are kept and compared, so neither a memory dump nor the time of a look-up shows a key.
    """

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = frozenset(_digest(key.get_secret_value().encode()) for key in keys)

    @property
    def is_open(self) -> bool:
        """Is no key needed?"""
        return not self._digests

    def check(self, authorization: str) -> None:
        """Look at an ``Authorization`` header (empty when there is none).

        Raises:
            RequestError: 401, when the key is missing or unknown.
        """
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and _digest(key.strip().encode("latin-1")) in self._digests:
            return
        message = "Incorrect API key provided." if key else "No API key: send 'Authorization: Bearer KEY'."
        raise RequestError(message, status=401, code="invalid_api_key")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
