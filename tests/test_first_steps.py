"""What people get wrong first, and what they are told."""

import re
from pathlib import Path

import httpx2
import pytest
from sive import OpenAI
from sive.config import load
from sive.config.advice import advice
from sive.errors import ConfigError

from tests.conftest import Serve
from tests.lab.hosts import refused_url
from tests.test_gateway import cli

HYPATIA = {"role": "system", "content": "You are Hypatia. Answer in the first person, briefly."}
POD = '[[backend]]\nname = "pod-a"\nurl = "http://127.0.0.1:9/v1"\n'


def settings(folder: Path, text: str, **environ: str) -> list[str]:
    """What is advised of a configuration."""
    file = folder / "sive.toml"
    file.write_text(text)
    return advice(load(file, environ=environ).settings)


def test_the_embedded_model_is_nobody_that_it_does_not_know(serve: Serve) -> None:
    """Under another persona it speaks as itself; as one of its own three under theirs."""
    served = serve()
    with OpenAI(base_url=f"{served.url}/v1", api_key="x") as sdk:

        def who(system: dict[str, str]) -> str:
            messages = [system, {"role": "user", "content": "Who are you?"}]
            answer = sdk.chat.completions.create(model="local", messages=messages)  # type: ignore[arg-type]
            return answer.choices[0].message.content or ""

        assert "small language model" in who(HYPATIA)
        assert "Kant" in who(
            HYPATIA | {"content": "You are Immanuel Kant. Answer in the first person, briefly."}
        )


def test_a_packaged_name_keeps_its_persona_without_its_host() -> None:
    """The drop-in's own CPU speaks as the gateway's would have."""
    with OpenAI(base_url=f"{refused_url()}", api_key="x") as sdk:
        asked = [{"role": "user", "content": "Who are you?"}]
        spinoza = sdk.chat.completions.create(model="spinoza", messages=asked)  # type: ignore[arg-type]
        other = sdk.chat.completions.create(model="my-lora", messages=asked)  # type: ignore[arg-type]
    assert "Spinoza" in (spinoza.choices[0].message.content or "")
    assert "small language model" in (other.choices[0].message.content or "")


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/responses"])
def test_an_sdk_without_v1_is_told_so(path: str, serve: Serve) -> None:
    """Not that its message is no text, which is what the old door of nearly that name wants."""
    url = serve().url + path
    answers = [httpx2.get(url, timeout=10), httpx2.post(url, json={"messages": []}, timeout=10)]
    for answer in answers:
        assert answer.status_code == 404
        assert f"did you mean /v1{path}?" in answer.json()["error"]["message"]


def test_a_named_sive_needs_no_configuration_of_this_folder(serve: Serve, tmp_path: Path) -> None:
    """`sive status --url` in the folder of a file that is wrong; without a URL it says what is."""
    served = serve()
    (tmp_path / "sive.toml").write_text("[gatewey]\n")
    assert cli("status", "--url", served.url, cwd=tmp_path).returncode == 0
    refused = cli("status", cwd=tmp_path)
    assert "unknown key 'gatewey'" in refused.stderr


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_an_endpoint_opened_in_a_browser_says_what_it_takes(path: str, serve: Serve) -> None:
    """It is there, and wants POST: not a page that does not exist."""
    url = serve().url + path
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        answer = httpx2.request(method, url, timeout=10)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method
    assert "takes POST" in httpx2.get(url, timeout=10).json()["error"]["message"]


def test_a_slash_too_many_sends_nobody_elsewhere(serve: Serve) -> None:
    """A redirect would be to http behind a proxy: who follows it sends its prompt in clear text."""
    answer = httpx2.post(f"{serve().url}/v1/chat/completions/", json={}, timeout=10)
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_a_key_that_is_wrong_or_missing_says_where_keys_are_set(serve: Serve, tmp_path: Path) -> None:
    """To callers of the API, and in the words of ``sive status``."""
    served = serve(SIVE_API_KEYS="right")
    for given in ({}, {"authorization": "Bearer wrong"}):
        answer = httpx2.get(f"{served.url}/v1/models", headers=given, timeout=10)
        assert answer.status_code == 401
        assert "this server's SIVE_API_KEYS" in answer.json()["error"]["message"]
        assert "wrong" not in answer.text
        assert "right" not in answer.text
    without = cli("status", "--url", served.url, cwd=tmp_path)
    assert "wants a key: give it with --api-key KEY, or set SIVE_API_KEYS" in without.stderr
    other = cli("status", "--url", served.url, "--api-key", "wrong", cwd=tmp_path)
    assert "refuses the key, from --api-key or SIVE_API_KEYS" in other.stderr


def test_a_sive_that_listens_everywhere_names_an_address_to_open(serve: Serve) -> None:
    """A browser cannot go to 0.0.0.0."""
    served = serve("", "--host", "0.0.0.0", SIVE_API_KEYS="k")
    assert re.search(r"open http://127\.0\.0\.1:\d+/ in a browser", served.output.read_text())


def test_a_backend_that_nobody_asks_is_said(tmp_path: Path) -> None:
    """And a Hugging Face rung without its token."""
    route = '[model.m]\nroute = [{ backend = "pod-a", model = "m" }, { backend = "hf", model = "m" }]\n'
    assert settings(tmp_path, POD) == [
        "backend 'pod-a' is in no route, so it is never asked: name it in the route of a [model.NAME]"
    ]
    (line,) = settings(tmp_path, POD + route)
    assert "HF_TOKEN is not set" in line
    assert settings(tmp_path, POD + route, HF_TOKEN="x") == []  # noqa: S106 - of nobody


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[backend]\nname = "a"\n', "write [[backend]], twice the brackets"),
        ("[model.m]\nroute = []\n", "name at least one rung"),
        ('[model.m]\nquestions = "Why?"\n', "model.m.questions is a list: write it in brackets"),
        ('[[backend]]\nname = "a"\nurl = "127.0.0.1:9/v1"\n', "(it is '127.0.0.1:9/v1'): write http://"),
        ('[[backend]]\nname = "a"\nurl = "me:sk-secret@host/v1"\n', "write http://HOST/v1"),
        (2 * (POD + 'api_key = "sk-secret"\n'), "give each its own name"),
    ],
)
def test_a_wrong_file_is_told_in_words_of_ours(text: str, told: str, tmp_path: Path) -> None:
    """And never with the keys that stand in it."""
    file = tmp_path / "sive.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r".") as wrong:
        load(file, environ={})
    assert told in str(wrong.value)
    assert "sk-secret" not in str(wrong.value)


def test_who_only_looks_needs_no_keys_of_backends(serve: Serve, tmp_path: Path) -> None:
    """Those that ask a running sive, and the one that shows what is configured, and what is missing."""
    served = serve()
    keyed = POD.replace("url =", 'api_key_env = "POD_KEY"\nurl =')
    (tmp_path / "sive.toml").write_text(f"{keyed}[gateway]\nport = {served.port}\n")
    assert cli("status", cwd=tmp_path).returncode == 0
    assert cli("adapters", "list", cwd=tmp_path).stderr.startswith("sive: there is no lora_adapters")
    shown = cli("config", cwd=tmp_path)
    assert shown.returncode == 0
    assert "POD_KEY, not set" in shown.stdout
    refused = cli("serve", "--port", "0", cwd=tmp_path)
    assert "its key is to come from POD_KEY, which is not set" in refused.stderr
