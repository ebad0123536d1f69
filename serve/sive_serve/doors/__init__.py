"""The doors of the older services: their clients change one URL, and the gateway answers them."""

from fastapi import APIRouter

from sive_serve.doors import chat, gradio, infer
from sive_serve.gateway import Gateway


def routes(gateway: Gateway) -> APIRouter:
    """All of them; ``/api/infer`` before Gradio's ``/api/NAME``."""
    router = APIRouter()
    for door in (infer, chat, gradio):
        router.include_router(door.routes(gateway))
    return router
