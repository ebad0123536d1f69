"""The functions of the old Space as Gradio describes them: ``/config`` and ``/info``; pure."""

from typing import Any

from sive.config import FunctionSettings
from sive.errors import RequestError
from sive.protocol import Json

VERSION = "6.31.0"
"""Whose protocol this is: clients choose by it how they cancel."""

API_PREFIX = "/gradio_api"
TEXTBOX, HISTORY = 1, 2
ANY_JSON: Json = {"type": {}, "description": "any valid json"}


class Functions:
    """The configured functions; one whose name begins with a slash is there without it too.

    The old Space's ``api_name`` was ``/chat_function``, which makes ``//chat_function`` its literal endpoint;
    clients were written with either.
    """

    def __init__(self, functions: tuple[FunctionSettings, ...]) -> None:
        self._functions = functions

    def named(self, name: str) -> FunctionSettings:
        """The function of this name, however many slashes it is written with.

        Raises:
            RequestError: 404, it names those that are there.
        """
        for function in self._functions:
            if function.name.strip("/") == name.strip("/"):
                return function
        known = ", ".join(f"/{function.name}" for function in self._functions) or "none"
        raise RequestError(f"there is no function {name[:200]!r}; known are {known}", status=404)

    def run(self, name: str, index: Any) -> FunctionSettings:
        """What ``run/NAME`` calls: Gradio 3 named none, and wrote ``predict`` and an index.

        Raises:
            RequestError: 404, there is none.
        """
        names = [function.name.strip("/") for function in self._functions]
        is_nameless = name.strip("/") == "predict" and "predict" not in names
        return self.at(index) if is_nameless else self.named(name)

    def at(self, index: Any) -> FunctionSettings:
        """The function with this ``fn_index``; the first when none is given.

        Raises:
            RequestError: 404, there is none.
        """
        number = 0 if index is None else index
        if (
            isinstance(number, int)
            and not isinstance(number, bool)
            and 0 <= number < 2 * len(self._functions)
        ):
            return self._functions[number // 2]
        raise RequestError(f"there is no function with fn_index {str(index)[:40]}", status=404)

    def config(self) -> Json:
        """``/config``; without ``root``, so that a client keeps the address it came by."""
        dependencies = [
            _dependency(index, name, function, is_alias=bool(index % 2))
            for index, name, function in self._all()
        ]
        ids = [dependency["id"] for dependency in dependencies]
        layout = {"id": 0, "children": [{"id": TEXTBOX}, {"id": HISTORY}]}
        page = {"layout": layout, "components": [TEXTBOX, HISTORY], "dependencies": ids}
        return {
            "version": VERSION,
            "api_prefix": API_PREFIX,
            "protocol": "sse_v3",
            "mode": "blocks",
            "app_id": 1,
            "title": "sive",
            "space_id": None,
            "enable_queue": True,
            "show_error": True,
            "connect_heartbeat": False,
            "analytics_enabled": False,
            "dev_mode": False,
            "run_history": False,  # else @gradio/client keeps what was asked in the browser's storage
            "max_file_size": None,
            "username": None,
            "css": None,
            "js": None,
            "theme": "default",
            "stylesheets": [],
            "components": [
                _component(TEXTBOX, "textbox", {"label": "Message"}, {"type": "string"}),
                _component(HISTORY, "json", {"label": "History"}, ANY_JSON),
            ],
            "dependencies": dependencies,
            "layout": layout,
            "pages": [["", "Home", True]],
            "page": {"": page},
        }

    def info(self) -> Json:
        """``/info``: what each function takes and returns, under every name it has."""
        named = {f"/{name}": _endpoint(function) for _, name, function in self._all()}
        return {"named_endpoints": named, "unnamed_endpoints": {}}

    def _all(self) -> list[tuple[int, str, FunctionSettings]]:
        found = []
        for number, function in enumerate(self._functions):
            found.append((2 * number, function.name, function))
            if function.name.startswith("/"):
                found.append((2 * number + 1, function.name[1:], function))
        return found


def _dependency(index: int, name: str, function: FunctionSettings, *, is_alias: bool) -> Json:
    return {
        "id": index,
        "api_name": name,
        # Clients that name no function take the only public one.
        "api_visibility": "undocumented" if is_alias else "public",
        "targets": [],
        "inputs": [TEXTBOX, HISTORY, *([TEXTBOX] if function.philosopher else [])],
        "outputs": [TEXTBOX, HISTORY],
        "backend_fn": True,
        "js": None,
        "queue": True,
        "batch": False,
        "max_batch_size": 4,
        "cancels": [],
        "types": {"generator": True, "cancel": False},
        "collects_event_data": False,
        "trigger_after": None,
        "trigger_only_on_success": False,
        "trigger_mode": "once",
        "show_progress": "full",
        "scroll_to_output": False,
        "rendered_in": None,
        "connection": "sse",
        "time_limit": None,
        "stream_every": 0.5,
    }


def _component(number: int, kind: str, props: Json, api_info: Json) -> Json:
    return {
        "id": number,
        "type": kind,
        "props": props,
        "skip_api": False,
        "key": None,
        "component_class_id": kind,
        "api_info": api_info,
        "api_info_as_input": api_info,
        "api_info_as_output": api_info,
        "example_inputs": None,
    }


def _endpoint(function: FunctionSettings) -> Json:
    message = _value("Message", "Textbox", {"type": "string"}, "str")
    history = _value("History", "Json", ANY_JSON, "list")
    parameters = [
        message | {"parameter_name": "message", "parameter_has_default": False, "parameter_default": None},
        history | {"parameter_name": "history", "parameter_has_default": True, "parameter_default": []},
    ]
    if function.philosopher:
        philosopher = _value("Philosopher", "Textbox", {"type": "string"}, "str")
        default = {"parameter_has_default": True, "parameter_default": function.model}
        parameters.append(philosopher | {"parameter_name": "philosopher"} | default)
    return {"parameters": parameters, "returns": [message, history], "description": ""}


def _value(label: str, component: str, kind: Json, python: str) -> Json:
    python_type = {"type": python, "description": ""}
    return {"label": label, "type": kind, "python_type": python_type, "component": component}
