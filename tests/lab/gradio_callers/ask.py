"""Asks a Space as ``gradio_client`` does: calls as JSON on stdin, what became of each as JSON on stdout.

A call: ``{"name": a name, a number or none, "data": [...] or {...}, "cancel_after": how many outputs}``.
"""

import json
import sys
import time
from typing import Any


def ask(client: Any, call: dict[str, Any]) -> dict[str, Any]:
    """One call, its outputs as they came and its result or error."""
    data = call["data"]
    args, named = ([], data) if isinstance(data, dict) else (data, {})
    name = call.get("name")
    function = {"fn_index": name} if isinstance(name, int) else {"api_name": name}
    try:
        job = client.submit(*args, **function, **named)
        if "cancel_after" in call:
            while len(job.outputs()) < call["cancel_after"]:
                time.sleep(0.01)
            return {"outputs": [list(output) for output in job.outputs()], "cancelled": job.cancel()}
        return {"result": list(job.result(timeout=60)), "outputs": [list(one) for one in job.outputs()]}
    except Exception as exc:  # whatever this client raises is what is looked at
        return {"error": str(exc), "kind": type(exc).__name__}


def main() -> None:
    """``ask.py URL [TOKEN]``."""
    from gradio_client import Client

    url, token = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    calls = json.load(sys.stdin)
    try:
        client = Client(url, token=token, verbose=False, analytics_enabled=False, download_files=False)
    except Exception as exc:  # as above
        print(json.dumps([{"error": str(exc), "kind": type(exc).__name__}]))
        return
    print(json.dumps([ask(client, call) for call in calls]))


if __name__ == "__main__":
    main()
