"""API keys and tokens: who may ask, and for what."""

import hashlib
from collections.abc import Iterable, Mapping

from pydantic import SecretStr
from sive.errors import RequestError

from sive_serve.tokens import PREFIX, Grant, Tokens


def authorization(headers: Mapping[str, str]) -> str:
    """The ``Authorization`` of a request, empty when there is none; Anthropic's SDKs say ``x-api-key``."""
    key = headers.get("x-api-key")
    given = headers.get("authorization", "")
    return given if given or key is None else f"Bearer {key}"


class KeyRing:
    """The keys that open the gateway; an empty ring opens to everybody. ``variable``: where they are from.

    Only digests are kept and compared, so neither a memory dump nor the time of a look-up shows a key.
    """

    def __init__(self, keys: Iterable[SecretStr], variable: str) -> None:
        self._variable = variable
        self._digests = frozenset(_digest(key.get_secret_value().encode()) for key in keys)

    @property
    def is_open(self) -> bool:
        """Is no key needed?"""
        return not self._digests

    def opens(self, key: str) -> bool:
        """Is it one of them?"""
        return _digest(key.encode("latin-1")) in self._digests

    def check(self, authorization: str) -> None:
        """Look at an ``Authorization`` header (empty when there is none).

        Raises:
            RequestError: 401, when the key is missing or unknown.
        """
        if self.is_open or self.opens(_bearer(authorization)):
            return
        message = (
            f"No API key: send 'Authorization: Bearer KEY', KEY being one of this server's {self._variable}."
        )
        if authorization.partition(" ")[2]:
            message = f"Incorrect API key provided: it is none of this server's {self._variable}."
        raise RequestError(message, status=401, code="invalid_api_key")


class Access:
    """Who may ask what: keys open everything, tokens what they name; with neither, everybody may all."""

    def __init__(self, keys: KeyRing, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens

    @property
    def is_open(self) -> bool:
        """Is neither key nor token needed?"""
        return self._keys.is_open and not self._tokens

    def check(self, headers: Mapping[str, str], path: str) -> None:
        """Look at who comes; ``headers`` by lower-case name.

        Raises:
            RequestError: 401, when key or token is missing or no good; 403, when the token is for
                something else.
        """
        given = authorization(headers)
        token = self._token(given)
        if token:
            self._tokens.grant(token, headers.get("origin", "")).check_path(path)
        elif self._tokens and self._keys.is_open:
            raise RequestError(
                "No token: ask the page's own site for one.", status=401, code="invalid_api_key"
            )
        else:
            self._keys.check(given)

    def grant(self, authorization: str) -> Grant | None:
        """What a token opens that ``check`` has seen; None: all there is."""
        token = self._token(authorization)
        return self._tokens.claimed(token) if token else None

    def caller(self, authorization: str) -> str:
        """Whoever this is: the same for one key however it is written, and for all tokens with one ``id``."""
        if (grant := self.grant(authorization)) is not None:
            return f"token {grant.id}"
        return _digest((_bearer(authorization) or authorization).encode("latin-1")).hex()

    def _token(self, authorization: str) -> str:
        """The token in this header; empty when there is none, or nobody here reads tokens."""
        if not self._tokens:
            return ""
        key = _bearer(authorization)
        return key if key.startswith(PREFIX) and not self._keys.opens(key) else ""


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
