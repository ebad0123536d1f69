"""Short-lived tokens: what a page holds instead of a key, minted by whoever shares a secret with the gateway.

``sive1.CLAIMS.MAC``, both base64url without padding. The MAC is HMAC-SHA256 over the ASCII bytes
``sive1.CLAIMS``: the version stands for the algorithm and is signed too, so there is none to choose. Claims:

- ``iat``, ``exp``: seconds since 1970, at most ``MAX_LIFETIME_S`` apart
- ``id``: one holder through all renewals, so that a token may cancel what its predecessor asked
- ``models``: served names it opens; all when left out
- ``origin``: the page it is for, as browsers send it; any when left out
"""

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import SecretStr
from sive.errors import RequestError
from sive.protocol import Json, loads

PREFIX = "sive1."
MAX_TOKEN_CHARS = 4096
MAX_LIFETIME_S = 3600
"""A token cannot be taken back, so none may live for longer, whatever it says of itself."""

MAX_SKEW_S = 60
"""How far the clock of who minted it may be ahead."""

OPEN_PATHS = re.compile(r"/v1/(chat/completions|completions|models(/.+)?|requests/[^/]+/cancel)")
"""What a token opens: asking its models, listing them and cancelling. What shows more needs a key."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token opens. ``models``: served names; None is all of them."""

    id: str
    expires_at: float
    models: frozenset[str] | None = None
    origin: str | None = None

    def opens(self, model: str) -> bool:
        """May this model be asked?"""
        return self.models is None or model in self.models

    def check_path(self, path: str) -> None:
        """Look whether the token may be used there.

        Raises:
            RequestError: 403.
        """
        if OPEN_PATHS.fullmatch(path) is None:
            message = f"a token opens chat, completions, models and cancelling: {path[:200]} needs an API key"
            raise RequestError(message, status=403, code="token_scope")


class Tokens:
    """Reads tokens; several secrets at once let one be replaced by the next.

    ``now``: seconds since 1970.
    """

    def __init__(self, secrets: Iterable[SecretStr], *, now: Callable[[], float] = time.time) -> None:
        self._secrets = [secret.get_secret_value().encode() for secret in secrets]
        self._now = now

    def __bool__(self) -> bool:
        """Is there a secret at all?"""
        return bool(self._secrets)

    def grant(self, token: str, origin: str) -> Grant:
        """What the token opens now, for a page of this origin (empty: the caller says none).

        Raises:
            RequestError: 401 ``invalid_token``, ``token_expired`` or ``token_not_yet_valid``; 403
                ``token_origin``.
        """
        grant, issued_at = self._read(token)
        now = self._now()
        if now >= grant.expires_at:
            raise _refused("the token has expired: ask for a new one", "token_expired")
        if issued_at > now + MAX_SKEW_S:
            raise _refused("the token is from the future: is a clock wrong?", "token_not_yet_valid")
        if grant.origin is not None and grant.origin != origin:
            message = f"the token is for pages of {grant.origin}, not of {origin[:200] or 'no origin'}"
            raise RequestError(message, status=403, code="token_origin")
        return grant

    def claimed(self, token: str) -> Grant | None:
        """What the token opens, expired or not, for whichever page; None when it is none of ours."""
        try:
            return self._read(token)[0]
        except RequestError:
            return None

    def _read(self, token: str) -> tuple[Grant, float]:
        """The claims of a token whose MAC is right, and when it was issued."""
        invalid = _refused("the token is not one that this gateway accepts", "invalid_token")
        if len(token) > MAX_TOKEN_CHARS or not token.startswith(PREFIX):
            raise invalid
        signed, _, mac = token.rpartition(".")
        # Nothing of the claims is looked at before the MAC is known to be right.
        if not self._is_signed(signed, mac):
            raise invalid
        try:
            return _claimed(loads(_decoded(signed.removeprefix(PREFIX))))
        except (ValueError, KeyError, TypeError) as exc:
            message = f"the token's claims are wrong: {exc}"
            raise _refused(message, "invalid_token") from exc

    def _is_signed(self, signed: str, mac: str) -> bool:
        try:
            theirs, message = _decoded(mac), signed.encode("ascii")
        except ValueError:
            return False
        # Each is tried, whichever it is: how long that takes says nothing of which one fits.
        ours = [hmac.digest(secret, message, hashlib.sha256) for secret in self._secrets]
        return sum(hmac.compare_digest(theirs, one) for one in ours) > 0


def _claimed(claims: Json) -> tuple[Grant, float]:
    if not isinstance(claims, dict):
        raise ValueError("no JSON object")
    issued_at, expires_at = (_seconds(claims, name) for name in ("iat", "exp"))
    if not 0 < expires_at - issued_at <= MAX_LIFETIME_S:
        raise ValueError(f"exp must be within {MAX_LIFETIME_S} s after iat")
    if not isinstance(claims["id"], str) or not _ID.fullmatch(claims["id"]):
        raise ValueError("id must be 1 to 128 letters, digits or ._:-")
    models, origin = claims.get("models"), claims.get("origin")
    if models is not None and not (isinstance(models, list) and all(isinstance(one, str) for one in models)):
        raise ValueError("models must be a list of names")
    if origin is not None and not isinstance(origin, str):
        raise ValueError("origin must be a string")
    named = None if models is None else frozenset(models)
    return Grant(claims["id"], expires_at, named, origin), issued_at


def _seconds(claims: Json, name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be seconds since 1970")
    return float(value)


def _decoded(text: str) -> bytes:
    """The bytes; only their one canonical spelling counts, so that there are no two tokens for one grant."""
    if _BASE64URL.fullmatch(text) is None:
        raise ValueError("no base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as exc:
        raise ValueError("no base64url") from exc
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise ValueError("base64url with stray bits")
    return data


def _refused(message: str, code: str) -> RequestError:
    return RequestError(message, status=401, code=code)
