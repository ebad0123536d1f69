"""``POST /chat`` and ``GET /init/{philosopher}``: the small REST apps with a philosopher a request."""

from typing import Any

from fastapi import APIRouter, Request
from sive.errors import RequestError
from sive.protocol import Json

from sive_serve.asgi import JsonResponse, json_body, while_here
from sive_serve.doors.answers import Answer, Question, default_model, known_model, options
from sive_serve.doors.callers import refused
from sive_serve.doors.history import messages, with_answer
from sive_serve.gateway import Gateway


def routes(gateway: Gateway) -> APIRouter:
    """Both, with the philosopher in the path or in the body, or nobody named."""
    router = APIRouter()

    @router.post("/chat")
    @router.post("/chat/{philosopher}")
    async def chat(request: Request, philosopher: str = "") -> JsonResponse:
        try:
            asked = await json_body(request, max_bytes=gateway.settings.gateway.max_body_bytes)
            if philosopher:
                asked["philosopher"] = philosopher
            turn = question(gateway, asked)
            with Answer(gateway, turn, request.headers, stream=False) as answer:
                text = await while_here(request, answer.whole())
                return JsonResponse(answered(turn.model, asked, text), headers=await answer.headers())
        except RequestError as problem:
            return refused(gateway, problem)

    @router.get("/init")
    @router.get("/init/{philosopher}")
    @router.post("/init/{philosopher}")
    async def init(philosopher: str = "") -> JsonResponse:
        try:
            name = known_model(gateway, philosopher or default_model(gateway), "philosopher")
        except RequestError as problem:
            return refused(gateway, problem)
        return JsonResponse(greeted(gateway, name))

    return router


def question(gateway: Gateway, asked: Json) -> Question:
    """What ``{message, history, philosopher}`` asks.

    Raises:
        RequestError: 400 or 422 for what is missing or of another shape, 404 for an unknown philosopher.
    """
    message: Any = asked.get("message")
    if not isinstance(message, str) or not message.strip():
        raise RequestError("'message' must be a text that is not empty", param="message", code="invalid_type")
    name = known_model(gateway, asked.get("philosopher") or default_model(gateway), "philosopher")
    return Question(name, messages(asked.get("history"), message), options(asked))


def answered(philosopher: str, asked: Json, text: str) -> Json:
    """The answer under both names that clients look for, and the history with it."""
    history = with_answer(asked.get("history"), asked["message"], text)
    return {"message": text, "reply": text, "history": history, "philosopher": philosopher}


def greeted(gateway: Gateway, name: str) -> Json:
    """The beginning of a conversation."""
    settings = gateway.settings
    configured = settings.model.get(name)
    greeting = (configured and configured.greeting) or f"Bonjour, je suis {name}. De quoi parlons-nous ?"
    history = [[None, greeting]] if settings.compat.greeting_in_history else []
    return {"message": greeting, "greeting": greeting, "history": history, "philosopher": name}
