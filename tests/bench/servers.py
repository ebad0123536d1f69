"""The servers that are compared, each as a block that starts and ends it."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.processes import (
    CACHE,
    KEY,
    ROOT,
    Missing,
    Served,
    clean_environment,
    free_port,
    running,
    wait_for_port,
    wait_for_text,
)

MODEL = "bench"
LISTED_MODEL = "bench-listed"
GUARDED_MODEL = "bench-guarded"
DEAD_FIRST_MODEL = "bench-dead-first"
LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"


@contextlib.contextmanager
def upstream(program: Path, *, core: int | None) -> Iterator[Served]:
    """Our upstream in C."""
    log = CACHE / f"upstream-{core}" / "output.txt"
    with running([program], log=log, core=core) as process:
        port = int(wait_for_text(r"(\d+)\n", process, log))
        yield Served("direct", port, process.pid)


@contextlib.contextmanager
def sive(
    config: str = "",
    *,
    name: str = "sive",
    core: int | None = None,
    program: Sequence[str | Path] = ("-m", "sive_serve.cli"),
    **environment: str,
) -> Iterator[Served]:
    """`sive serve` with a configuration; ``program``: what Python runs, given `serve` and its options."""
    home = CACHE / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "sive.toml").write_text(config)
    log = home / "output.txt"
    env = clean_environment(HOME=str(home), XDG_CACHE_HOME=str(home / "cache"), **environment)
    command = [sys.executable, *program, "serve", "--port", "0"]
    with running(command, log=log, core=core, environment=env) as process:
        port = int(wait_for_text(r"sive on http://\S+?:(\d+)/v1", process, log))
        yield Served(name, port, process.pid)


@contextlib.contextmanager
def sive_gateway(
    upstream_port: int,
    *,
    core: int,
    name: str = "sive",
    dead_port: int | None = None,
    program: Sequence[str | Path] = ("-m", "sive_serve.cli"),
) -> Iterator[Served]:
    """Sive as a gateway: API keys, metrics, and a second rung of equal weights to carry on what breaks off.

    With ``dead_port`` there is a model whose first backend is there, where nobody listens.
    """
    config = _GATEWAY % {"url": f"http://127.0.0.1:{upstream_port}/v1"}
    if dead_port is not None:
        config += _DEAD % {"url": f"http://127.0.0.1:{dead_port}/v1"}
    with sive(config, name=name, core=core, program=program, SIVE_API_KEYS=KEY) as served:
        yield served


_PODS = ", ".join(f'{{ backend = "{pod}", model = "fake", weights = "fake" }}' for pod in ("pod-a", "pod-b"))
_GATEWAY = f"""
[[backend]]
name = "pod-a"
url = "%(url)s"
resume = "tokens"
probe = "passive"

[[backend]]
name = "pod-b"
url = "%(url)s"
resume = "tokens"
probe = "passive"

[model.{MODEL}]
guard_json = false
route = [{_PODS}]

[model.{GUARDED_MODEL}]
route = [{_PODS}]
"""
_DEAD = f"""
[[backend]]
name = "dead"
url = "%(url)s"
resume = "tokens"
probe = "token"

[model.{DEAD_FIRST_MODEL}]
guard_json = false
route = [{{ backend = "dead", model = "fake", weights = "fake" }}, {_PODS}]
"""


@contextlib.contextmanager
def litellm(upstream_port: int, *, core: int) -> Iterator[Served]:
    """LiteLLM's proxy as its manual has it in production: one worker, a master key, a fallback, no database.

    A model name that is not in its price list, as no adapter's is, costs it more: both kinds are served.
    """
    if not LITELLM.is_file():
        how = f"python3 -m venv {LITELLM.parents[1].name} and install 'litellm[proxy]' into it"
        raise Missing(f"LiteLLM is not there: {how}")
    home = CACHE / "litellm"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.yaml").write_text(json.dumps(_litellm_config(upstream_port)))
    environment = clean_environment(
        HOME=str(home),
        LITELLM_LOCAL_MODEL_COST_MAP="True",
        LITELLM_LOG="ERROR",
        LITELLM_MODE="PRODUCTION",
    )
    port = free_port()
    command = [LITELLM, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    log = home / "output.txt"
    with running(command, log=log, core=core, environment=environment) as process:
        wait_for_port(port, process, log)
        yield Served("LiteLLM", port, process.pid)


def _litellm_config(upstream_port: int) -> dict[str, object]:
    def model(name: str, upstream_model: str) -> dict[str, object]:
        there = {"api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "sk-upstream"}
        return {"model_name": name, "litellm_params": {"model": f"openai/{upstream_model}", **there}}

    return {
        "model_list": [
            model(MODEL, "fake"),
            model(LISTED_MODEL, "gpt-4o-mini"),
            model("second", "fake"),
        ],
        "litellm_settings": {
            "num_retries": 1,
            "set_verbose": False,
            "telemetry": False,
            "fallbacks": [{MODEL: ["second"]}, {LISTED_MODEL: ["second"]}],
        },
        "general_settings": {"master_key": KEY, "disable_spend_logs": True},
    }


@contextlib.contextmanager
def nginx(upstream_port: int, *, core: int) -> Iterator[Served]:
    """Nginx as a bare reverse proxy: no keys, no fallback, no look into the body."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        raise Missing("nginx is not there: apt-get install nginx-light")
    home, port = CACHE / "nginx", free_port()
    home.mkdir(parents=True, exist_ok=True)
    (home / "nginx.conf").write_text(_NGINX % {"home": home, "port": port, "upstream": upstream_port})
    log = home / "output.txt"
    with running([program, "-c", home / "nginx.conf", "-e", "stderr"], log=log, core=core) as process:
        wait_for_port(port, process, log)
        yield Served("nginx", port, process.pid)


_NGINX = """
daemon off;
master_process off;
worker_processes 1;
pid %(home)s/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_buffer_size 64k;
  client_body_temp_path %(home)s/body;
  proxy_temp_path %(home)s/proxy;
  fastcgi_temp_path %(home)s/fastcgi;
  uwsgi_temp_path %(home)s/uwsgi;
  scgi_temp_path %(home)s/scgi;
  upstream pod { server 127.0.0.1:%(upstream)d; keepalive 512; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:%(port)d backlog=4096;
    location / {
      proxy_pass http://pod;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""
