"""How soon a backend is left alone when its caller leaves in the middle of an answer."""

import http.client
import json
import time

from tests.bench import servers
from tests.bench.processes import Missing
from tests.lab import manners
from tests.lab.hosts import Hosts
from tests.lab.upstream import Upstream

PATIENCE_S = 5.0
CONFIG = """
[gateway]
stall_s = 60
[[backend]]
name = "lab"
url = "{url}"
probe = "passive"
[model.m]
route = [{{ backend = "lab", model = "lab" }}]
"""


def seconds(times: int) -> list[float]:
    """From the caller's close to the end of file at the backend, so many times."""
    with Hosts() as hosts:
        host = hosts.add(manners.speaks(breaks=manners.silence, when=manners.after(3)))
        with servers.sive(CONFIG.format(url=host.url), name="sive-leaving") as sive:
            return [_leave(sive.port, host) for _ in range(times)]


def _leave(port: int, host: Upstream) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "?"}]}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    reply = connection.getresponse()
    reply.readline()
    left_at = time.monotonic()
    reply.close()
    connection.close()
    while (closed_at := host.seen[-1].left_at) is None:
        if time.monotonic() > left_at + PATIENCE_S:
            raise Missing("the backend was never closed")
        time.sleep(0.0005)
    return closed_at - left_at
