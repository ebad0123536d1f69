"""A real Gradio app with the old Space's function, for the virtual environment that has Gradio.

    python tests/lab/space.py PORT

It says what ``WORDS`` has, one word at a time; the messages ``boom`` and ``told`` raise.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

WORDS = ("Deus ", "sive ", "Natura — é")
APART_S = 0.08


def chat_function(message: str, history: Any) -> Iterator[tuple[str, Any]]:
    """(message, history) -> (message, history), cumulative."""
    import gradio

    if message == "boom":
        raise ValueError("it broke")
    if message == "told":
        raise gradio.Error("it is said so")
    said = ""
    for word in WORDS:
        said += word
        time.sleep(APART_S)
        yield said, [*(history or []), [message, said]]


def main() -> None:
    """Serve until killed."""
    import gradio

    with gradio.Blocks() as blocks:
        message, history = gradio.Textbox(label="Message"), gradio.JSON(label="History")
        button = gradio.Button("send")
        both = [message, history]
        button.click(chat_function, both, both, api_name="/chat_function")
    blocks.queue().launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True, share=False)


if __name__ == "__main__":
    main()
