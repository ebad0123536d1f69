"""``POST /api/infer``: a prompt in, a result out, as the first inference service had it."""

from fastapi import APIRouter, Request
from sive.errors import RequestError
from sive.protocol import Json

from sive_serve.asgi import JsonResponse, json_body, while_here
from sive_serve.doors.answers import Answer, Question, default_model, known_model, options
from sive_serve.doors.callers import refused
from sive_serve.gateway import Gateway


def routes(gateway: Gateway) -> APIRouter:
    """The one route; its ``/health`` is the gateway's own."""
    router = APIRouter()

    @router.post("/api/infer")
    async def infer(request: Request) -> JsonResponse:
        try:
            asked = await json_body(request, max_bytes=gateway.settings.gateway.max_body_bytes)
            with Answer(gateway, question(gateway, asked), request.headers, stream=False) as answer:
                result = await while_here(request, answer.whole())
                return JsonResponse({"result": result}, headers=await answer.headers())
        except RequestError as problem:
            return refused(gateway, problem)

    return router


def question(gateway: Gateway, asked: Json) -> Question:
    """What ``{"prompt"}`` asks.

    Raises:
        RequestError: 400 without a prompt, 404 for a model that is not served.
    """
    prompt = asked.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestError("'prompt' must be a text that is not empty", param="prompt", code="invalid_type")
    model = known_model(gateway, asked.get("model") or default_model(gateway), "model")
    return Question(model, [{"role": "user", "content": prompt}], options(asked))
