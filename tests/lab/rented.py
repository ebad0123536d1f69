"""Small programs with the documented manners of rented hosts: Replicate, RunPod, the Hub, Gradio."""

import json
from dataclasses import dataclass, field

from tests.lab.upstream import Exchange, Json, Manner, answers, chunk, event

WORDS = ("Bonjour, ", "l’œuvre ", "est — à ", "peu près — ", "né", "e 🌍\n", "ici.")
TEXT = "".join(WORDS)


@dataclass
class Replicate:
    """Predictions over HTTP, their output as server-sent events.

    ``status``: how a prediction begins. ``ends``: the reason in its last event, None for a good end.
    ``stream_at``: another host for its events. ``holds``: events come, but no end. ``boots``: no events.
    ``drops``: they end without the last. ``refuses``: the status that there is instead of events.
    """

    status: str = "starting"
    ends: str | None = None
    stream_at: str | None = None
    streams: bool = True
    holds: bool = False
    boots: bool = False
    drops: bool = False
    refuses: int = 0
    says: tuple[str, ...] = WORDS
    cancelled: list[str] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        path, method = exchange.seen.path, exchange.seen.method
        if method == "POST" and path.endswith("/cancel"):
            self.cancelled.append(path.split("/")[-2])
            await exchange.json({"status": "canceled"})
        elif method == "POST" and path.endswith("/predictions"):
            await exchange.json(self._prediction(exchange), 201)
        elif method == "GET" and path.startswith("/v1/streams/"):
            await self._events(exchange)
        else:
            missing = {"detail": "The requested resource could not be found.", "status": 404}
            await exchange.json(missing, 404)

    def _prediction(self, exchange: Exchange) -> Json:
        name, host = f"p{exchange.number}", f"http://{exchange.seen.headers['host']}"
        urls = {"get": f"{host}/v1/predictions/{name}", "cancel": f"{host}/v1/predictions/{name}/cancel"}
        if self.streams:
            urls["stream"] = f"{self.stream_at or host}/v1/streams/{name}"
        output = list(self.says) if self.status == "succeeded" else None
        return {"id": name, "status": self.status, "urls": urls, "output": output, "error": None}

    async def _events(self, exchange: Exchange) -> None:
        if self.refuses:
            await exchange.json({"detail": "no"}, self.refuses)
            return
        await exchange.head()
        if self.boots:
            await exchange.gone.wait()
            return
        for number, word in enumerate(self.says):
            data = "\n".join(f"data: {line}" for line in word.split("\n"))
            await exchange.piece(f"event: output\nid: {number}:0\n{data}\n\n".encode())
        if self.holds:
            await exchange.gone.wait()
            return
        if self.drops:
            await exchange.end()
            return
        if self.ends == "error":
            await exchange.piece(b'event: error\ndata: {"detail": "CUDA: /src/predict.py"}\n\n')
        reason = {} if self.ends is None else {"reason": self.ends}
        await exchange.piece(f"event: done\ndata: {json.dumps(reason)}\n\n".encode())
        await exchange.end()


@dataclass
class RunpodQueue:
    """RunPod's queue with a worker that takes OpenAI's requests; ``status``: how a job stands when asked.

    ``refuses``: what the worker says instead of an answer.
    """

    status: str = "COMPLETED"
    refuses: Json | None = None
    cancelled: list[str] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.seen.path.partition("?")[0]
        if "/cancel/" in path:
            self.cancelled.append(path.rsplit("/", 1)[1])
            await exchange.json({"id": "j1", "status": "CANCELLED"})
            return
        said: Json = {"id": "j1", "status": self.status}
        if self.status == "COMPLETED":
            message = {"role": "assistant", "content": TEXT}
            counted = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "c1", "object": "chat.completion", "created": 1, "model": "up"}
            said["output"] = [self.refuses or answer | {"choices": [choice], "usage": counted}]
        await exchange.json(said)


def hub(stage: str, *, by_subdomain: bool = False) -> Manner:
    """The Hub's runtime API, for one Space."""

    async def manner(exchange: Exchange) -> None:
        runtime = {"stage": stage, "hardware": {"current": None, "requested": "zero-a10g"}}
        await exchange.json({"id": "owner/name", "runtime": runtime} if by_subdomain else runtime)

    return manner


@dataclass
class Gradio:
    """A Gradio app of another version than the real one: where its API lies, and what its events are."""

    prefix: str = ""
    events: tuple[tuple[str, object], ...] = ()
    info: Json = field(default_factory=dict)
    status: int = 200

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        path = exchange.seen.path
        if not path.startswith(f"{self.prefix}/"):
            await exchange.json({"detail": "Not Found"}, 404)
        elif path == f"{self.prefix}/info":
            await exchange.json(self.info)
        elif exchange.seen.method == "POST":
            await exchange.json({"event_id": "e1"}, self.status)
        else:
            await exchange.head()
            for name, data in self.events:
                if name == "hold":
                    await exchange.gone.wait()
                await exchange.piece(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
            await exchange.end()


async def openrouter(exchange: Exchange) -> None:
    """As OpenRouter: comments until the provider speaks and between its words."""
    if not exchange.body.get("stream"):
        return await answers(*WORDS)(exchange)
    working = b": OPENROUTER PROCESSING\n\n"
    await exchange.head()
    await exchange.piece(working)
    for word in WORDS:
        await exchange.piece(event(chunk(exchange, {"role": "assistant", "content": word})) + working)
    await exchange.event(chunk(exchange, {}, "stop"))
    counted = {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14}
    await exchange.event({**chunk(exchange, {}), "choices": [], "usage": counted})
    return await exchange.done()


def in_pieces(manner: Manner) -> Manner:
    """Another's manner, every transfer chunk of it a byte long."""

    async def dripping(exchange: Exchange) -> None:
        whole = exchange.piece

        async def piece(data: bytes) -> None:
            for at in range(len(data)):
                await whole(data[at : at + 1])

        exchange.piece = piece  # type: ignore[method-assign]  # this one exchange alone
        await manner(exchange)

    return dripping


def routed(*, html: bool) -> Manner:
    """Answers 200 to everything: with a page, or with nothing."""

    async def manner(exchange: Exchange) -> None:
        await exchange.head(200, "text/html" if html else "application/json")
        if html:
            await exchange.piece(b"<html><h1>Preparing Space</h1></html>")
        await exchange.end()

    return manner
