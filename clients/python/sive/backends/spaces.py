"""Hugging Face Spaces as the Hub sees them: where one is, and why it does not answer, in words."""

import re
from urllib.parse import quote, urlsplit

from sive.errors import UnavailableError
from sive.protocol import loads

HUB_URL = "https://huggingface.co"
HOST = ".hf.space"
WAKE_S = 30.0
"""A Space that sleeps or starts is not asked again before."""

_ON_ITS_WAY = {
    "SLEEPING": "the Space sleeps: being asked wakes it, which takes a minute or more",
    "BUILDING": "the Space is being built",
    "APP_STARTING": "the Space is starting",
}
_ONLY_ITS_OWNER = {
    "PAUSED": "the Space is paused: only its owner can restart it",
    "STOPPED": "the Space is stopped: only its owner can restart it",
    "SUSPENDED": "the Space is suspended: only its owner can restart it",
    "DELETING": "the Space is being deleted",
}


def space_url(space: str) -> str:
    """Where ``owner/name`` answers."""
    return "https://" + re.sub(r"[^a-z0-9]+", "-", space.lower()).strip("-") + HOST


def is_space(url: str) -> bool:
    """Is it a Space's own host, on a line that nobody reads along?"""
    parts = urlsplit(url)
    return parts.scheme == "https" and (parts.hostname or "").endswith(HOST)


def runtime_url(space: str | None, url: str, hub_url: str) -> str | None:
    """What tells how a Space does, by its name or by its host; None for an app that is no Space."""
    if space is not None:
        return f"{hub_url}/api/spaces/{quote(space)}/runtime"
    if not is_space(url):
        return None
    subdomain = (urlsplit(url).hostname or "").removesuffix(HOST)
    return f"{hub_url}/api/spaces/by-subdomain/{quote(subdomain)}"


def trouble(status: int, body: bytes) -> UnavailableError | None:
    """Why a Space does not answer, as the Hub's reply says; None when it says that it runs, or nothing."""
    if status in (401, 403, 404):
        return UnavailableError(
            "space_unknown",
            "the Hub shows us no such Space: check its name, and its token when it is private",
            needs_owner=True,
        )
    stage = _stage(body) if status == 200 else ""
    if stage in _ON_ITS_WAY:
        return UnavailableError(f"space_{stage.lower()}", _ON_ITS_WAY[stage], rest_s=WAKE_S)
    if stage in _ONLY_ITS_OWNER:
        return UnavailableError(f"space_{stage.lower()}", _ONLY_ITS_OWNER[stage], needs_owner=True)
    if stage.endswith("_ERROR") or stage == "NO_APP_FILE":
        message = f"the Space is broken ({stage}): its owner must mend it"
        return UnavailableError(f"space_{stage.lower()}", message, needs_owner=True)
    return None


def _stage(body: bytes) -> str:
    try:
        said = loads(body)
    except ValueError:
        return ""
    runtime = said.get("runtime", said) if isinstance(said, dict) else {}
    stage = runtime.get("stage") if isinstance(runtime, dict) else None
    # It names what is shown and logged: only what looks like one.
    return stage if isinstance(stage, str) and re.fullmatch(r"[A-Z_]{1,40}", stage) else ""
