"""What is asked of a running vLLM beside answers: load and unload adapters, read the identity probe."""

from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
from sive.errors import AdapterError, EngineError
from sive_adapters import identity

LOAD_S = 300.0
"""A 550 MB adapter is read from a network disk in a minute; vLLM answers when it is in a slot."""

PROBE_S = 120.0
"""A prefill of 40 tokens, behind whatever else the engine is doing."""

ASK_S = 10.0


class EngineClient:
    """vLLM's own API on loopback; ``url`` ends in ``/v1``."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.AsyncClient(base_url=url.removesuffix("/v1"), timeout=ASK_S, trust_env=False)

    async def __aenter__(self) -> "EngineClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def version(self) -> str:
        """Return vLLM's version.

        Raises:
            EngineError: the engine does not answer.
        """
        said = await self._ask("GET", "/version")
        return str(said.json().get("version", "unknown"))

    async def models(self) -> set[str]:
        """Return the names the engine serves now.

        Raises:
            EngineError: the engine does not answer.
        """
        listed = (await self._ask("GET", "/v1/models")).json()
        return {str(model["id"]) for model in listed["data"]}

    async def load(self, name: str, path: Path) -> None:
        """Load the adapter in a folder under a name nobody has; the folder may not change afterwards.

        Raises:
            EngineError: vLLM does not take it; the text says why.
        """
        body = {"lora_name": name, "lora_path": str(path)}
        await self._ask("POST", "/v1/load_lora_adapter", body, timeout_s=LOAD_S)

    async def unload(self, name: str) -> None:
        """Forget a name; what runs under it finishes. One that is not there is not missed.

        Raises:
            EngineError: the engine does not answer.
        """
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, fine=(200, 404))

    async def read_probe(self, model: str) -> identity.Fingerprint:
        """Let a model read the identity probe.

        Raises:
            EngineError: the engine does not answer.
            AdapterError: what it answers is no reading.
        """
        body = {
            "model": model,
            "prompt": identity.PROBE_TEXT,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": identity.TOP_LOGPROBS,
        }
        reply = await self._ask("POST", "/v1/completions", body, timeout_s=PROBE_S)
        try:
            read = reply.json()["choices"][0].get("prompt_logprobs")
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            raise AdapterError(f"the engine answers the probe with something else: {exc!r}") from exc
        return identity.of_prompt_logprobs(read)

    async def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float = ASK_S,
        fine: tuple[int, ...] = (200,),
    ) -> httpx2.Response:
        try:
            reply = await self._http.request(method, path, json=body, timeout=timeout_s)
        except httpx2.TimeoutException as exc:
            raise EngineError(f"the engine does not answer {path} within {timeout_s:.0f} s") from exc
        except (httpx2.HTTPError, RuntimeError) as exc:  # RuntimeError: closed, because the engine is gone
            raise EngineError(f"the engine does not answer {path}: {exc or type(exc).__name__}") from exc
        if reply.status_code not in fine:
            raise EngineError(_said(reply))
        return reply


def _said(reply: httpx2.Response) -> str:
    """One line of what vLLM says is wrong."""
    try:
        message = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = reply.text
    return f"the engine answered {reply.status_code}: {' '.join(str(message).split())[:300]}"
