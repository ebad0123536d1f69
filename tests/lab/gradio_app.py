"""A real Gradio app with the functions that Spaces have; run by its own Python, prints where it listens.

``python tests/lab/gradio_app.py`` serves until killed. A message that begins with ``!`` asks for trouble.
"""

import socket
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

ANSWER = ("Bonjour, ", "l’œuvre ", "est — à ", "peu près — ", "né", "e 🌍\n", "ici.")
QUOTA = "You have exceeded your GPU quota (60s requested vs. 0s left). Try again in 0:09:48"


def speak(message: str) -> Iterator[str]:
    """The whole text so far, again and again."""
    if message == "!quota":
        raise gr.Error(QUOTA, title="ZeroGPU quota exceeded", print_exception=False)
    if message == "!breaks":
        raise ValueError("/home/user/secret.py broke")
    text = ""
    for word in ANSWER:
        text += word
        yield text
        time.sleep(0.02)
        if message == "!rewrites":
            yield "No. " + text
        if message == "!breaks off":
            raise ValueError("/home/user/secret.py broke")


def chat(message: str, history: list[Any]) -> Iterator[str]:
    """What ``gr.ChatInterface`` has; the history is the session's own."""
    yield from speak(message)


def chat_function(message: str, history: list[Any]) -> tuple[str, list[Any]]:
    """The message box, emptied, and the whole conversation with its answer."""
    *_, text = speak(message)
    said = {"role": "user", "content": message}, {"role": "assistant", "content": text}
    return "", [*history, *said]


def pair(message: str, history: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """The same, piece by piece; the first piece has no answer yet."""
    asked = [*history, {"role": "user", "content": message}]
    yield "", asked
    for text in speak(message):
        yield "", [*asked, {"role": "assistant", "content": text}]


def tuples(message: str, history: list[Any]) -> Iterator[list[Any]]:
    """As Gradio 4 gave it: pairs, here in a field of any JSON."""
    for text in speak(message):
        yield [*history, [message, text]]


def told(message: str, history: list[Any], system_prompt: str, temperature: float, style: str) -> str:
    """What it was told."""
    turns = [
        (turn["role"], "".join(part["text"] for part in turn["content"]))
        if isinstance(turn, dict)
        else tuple(turn)
        for turn in history
    ]
    return f"{message}|{turns}|{system_prompt}|{temperature}|{style}"


def slow(message: str) -> Iterator[str]:
    """A word every 50 ms; says when it is stopped."""
    try:
        for number in range(400):
            yield "mot " * number
            time.sleep(0.05)
    finally:
        print("slow was stopped", flush=True)


def rank(number: float) -> float:
    """No chat."""
    return number


with gr.Blocks() as app:
    box, bot, anything, out = gr.Textbox(label="message"), gr.Chatbot(), gr.JSON(), gr.Textbox()
    system, warmth, style = gr.Textbox(label="s"), gr.Slider(0, 2, value=0.7), gr.Textbox(value="plain")
    gr.Button().click(rank, [gr.Number()], [gr.Number()], api_name="rank")
    gr.Button().click(chat_function, [box, bot], [box, bot], api_name="/chat_function")
    gr.Button().click(pair, [box, bot], [box, bot], api_name="pair")
    gr.Button().click(tuples, [box, anything], [anything], api_name="tuples")
    gr.Button().click(told, [box, bot, system, warmth, style], [out], api_name="told")
    gr.Button().click(slow, [box], [out], api_name="slow")
    gr.ChatInterface(chat, api_name="chat")

if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, url, _ = app.queue().launch(
        server_name="127.0.0.1", server_port=port, quiet=True, prevent_thread_lock=True
    )
    print(f"gradio on {url.rstrip('/')}", flush=True)
    app.block_thread()
