"""Short-lived tokens: what they open, and what is no token however much it looks like one."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from sive.config import load
from sive.errors import ConfigError, RequestError
from sive_serve.tokens import MAX_LIFETIME_S, MAX_TOKEN_CHARS, Tokens

from tests.conftest import Served, launch, until
from tests.lab import upstream
from tests.lab.upstream import Upstream
from tests.test_gateway import HI, routed

SECRET = "s3cret-" * 8
OTHER = "another-" * 8
NOW = 1_800_000_000
PAGE = "https://example.netlify.app"


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(head: str, secret: str = SECRET, algorithm: str = "sha256") -> str:
    """A head and its MAC."""
    return f"{head}.{b64(hmac.digest(secret.encode(), head.encode(), algorithm))}"


def mint(secret: str = SECRET, **claims: Any) -> str:
    """A token as a site's server mints it; a claim that is None is left out."""
    said = {"iat": NOW, "exp": NOW + 600, "id": "visitor", **claims}
    payload = json.dumps({name: value for name, value in said.items() if value is not None})
    return signed(f"sive1.{b64(payload.encode())}", secret)


def reader(*secrets: str, now: float = NOW) -> Tokens:
    """Whoever reads tokens with these secrets, at this time."""
    return Tokens([SecretStr(secret) for secret in secrets or (SECRET,)], now=lambda: now)


def refusal(token: str, *, now: float = NOW, origin: str = "") -> tuple[int, str | None]:
    """Status and code that the token is refused with."""
    with pytest.raises(RequestError) as refused:
        reader(now=now).grant(token, origin)
    return refused.value.status, refused.value.code


def test_a_token_opens_what_it_names() -> None:
    """Its models, until its end, for its page."""
    grant = reader().grant(mint(models=["kant"], origin=PAGE), PAGE)
    assert (grant.id, grant.expires_at, grant.origin) == ("visitor", NOW + 600, PAGE)
    assert grant.opens("kant")
    assert not grant.opens("spinoza")
    assert reader().grant(mint(), "https://anywhere.example").opens("spinoza")


def test_a_token_of_the_older_secret_still_opens() -> None:
    """While a secret is being replaced, both are known."""
    assert reader(OTHER, SECRET).grant(mint(), "").id == "visitor"
    assert not reader(OTHER).claimed(mint())


def test_times_are_looked_at() -> None:
    """Expired at its end to the second; from the future beyond a minute's skew."""
    assert reader(now=NOW + 599.9).grant(mint(), "").id
    assert refusal(mint(), now=NOW + 600) == (401, "token_expired")
    assert reader(now=NOW - 60).grant(mint(), "").id
    assert refusal(mint(), now=NOW - 61) == (401, "token_not_yet_valid")


def test_another_page_is_refused() -> None:
    """Also a caller who says no page at all."""
    token = mint(origin=PAGE)
    assert refusal(token, origin="https://evil.example") == (403, "token_origin")
    assert refusal(token) == (403, "token_origin")


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW + MAX_LIFETIME_S + 1},
        {"exp": NOW},
        {"exp": None},
        {"iat": None},
        {"iat": "now"},
        {"exp": True},
        {"exp": float("inf")},
        {"id": None},
        {"id": ""},
        {"id": 7},
        {"id": "a b"},
        {"models": "kant"},
        {"models": [1]},
        {"models": {}},
        {"origin": 1},
    ],
)
def test_wrong_claims_are_refused_although_they_are_signed(claims: dict[str, Any]) -> None:
    """A token without end, or a scope that is no list, is a mistake of whoever mints."""
    assert refusal(mint(**claims)) == (401, "invalid_token")


HEAD = mint().rpartition(".")[0]
UNSIGNED = b64(json.dumps({"alg": "none", "typ": "JWT"}).encode())
PAYLOAD = HEAD.removeprefix("sive1.")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "sive1.",
        "sive1..",
        "sive1.a.b.c",
        mint(OTHER),
        mint("x"),
        mint()[:-1],
        mint()[:-6],
        mint() + "A",
        mint() + "=",
        mint() + ".",
        f"{HEAD}.",
        HEAD,
        f"{HEAD}.{b64(b'')}",
        f"{UNSIGNED}.{PAYLOAD}.",
        f"sive1.{UNSIGNED}.{PAYLOAD}.",
        signed(f"sive0.{PAYLOAD}"),
        signed(f"SIVE1.{PAYLOAD}"),
        signed(PAYLOAD),
        signed(HEAD, algorithm="sha1"),
        signed(HEAD, algorithm="sha512"),
        f"{HEAD}.{b64(hashlib.sha256(HEAD.encode()).digest())}",
        f"{HEAD}.{b64(hmac.digest(b'', HEAD.encode(), 'sha256'))}",
        f"{HEAD}.{hmac.new(SECRET.encode(), HEAD.encode(), 'sha256').hexdigest()}",
        mint().replace("sive1.", "sive1.e30", 1),
        signed(f"sive1.{b64(b'null')}"),
        signed(f"sive1.{b64(b'[]')}"),
        signed(f"sive1.{b64(b'{')}"),
        signed(f"sive1.{b64(b'[' * 2000)}"),
        signed(f"sive1.{b64(bytes([255, 254]))}"),
        signed("sive1."),
        signed("sive1.é"),
        mint().replace("sive1.", "sive1.\u0000"),
        mint(models=["m" * MAX_TOKEN_CHARS]),
        "sive1." + "A" * 10_000_000 + "." + b64(bytes(32)),
    ],
)
def test_what_only_looks_like_a_token_is_refused(token: str) -> None:
    """No algorithm to choose, nothing cut, added, re-encoded, huge or signed by others."""
    assert refusal(token) == (401, "invalid_token")


def test_no_other_spelling_is_the_same_token() -> None:
    """The unused bits of the last letter are part of it: what was revoked or logged has one name."""
    token = mint()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    near = letters[letters.index(token[-1]) ^ 1]
    assert base64.urlsafe_b64decode(token[-43:] + "=") == base64.urlsafe_b64decode(token[-43:-1] + near + "=")
    assert refusal(token[:-1] + near) == (401, "invalid_token")


@pytest.fixture(scope="module")
def host() -> Iterator[Upstream]:
    """A backend that answers until it is told otherwise."""
    with Upstream(upstream.answers("Bonjour")) as one:
        yield one


@pytest.fixture(scope="module")
def served(host: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a key, two secrets and two models."""
    config = routed(host) + '[model.kant]\nroute = [{ backend = "local", model = "auto" }]\n'
    environment = {"SIVE_API_KEYS": "the-key", "SIVE_TOKEN_SECRETS": f"{OTHER}, {SECRET}"}
    with launch(tmp_path_factory.mktemp("tokens"), config, **environment) as one:
        yield one


def bearer(token: str = "", **claims: Any) -> dict[str, str]:
    """Headers with a token that is good now."""
    now = int(time.time())
    token = token or mint(**{"iat": now, "exp": now + 600, **claims})
    return {"authorization": f"Bearer {token}"}


def ask(served: Served, headers: dict[str, str], **body: Any) -> httpx2.Response:
    """POST a chat completion."""
    asked = {"model": "m", "messages": HI, **body}
    return httpx2.post(f"{served.url}/v1/chat/completions", json=asked, headers=headers, timeout=30)


def code(response: httpx2.Response) -> tuple[int, str]:
    """Status and code of an error."""
    return response.status_code, response.json()["error"]["code"]


def test_a_page_asks_with_a_token(served: Served) -> None:
    """Streams and whole answers, on the hot path and beside it."""
    assert ask(served, bearer()).json()["choices"][0]["message"]["content"] == "Bonjour"
    streamed = ask(served, bearer(models=["m"]), stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    whole = {"model": "kant", "prompt": "?"}
    assert httpx2.post(f"{served.url}/v1/completions", json=whole, headers=bearer()).status_code == 200


def test_a_model_out_of_scope_does_not_exist(served: Served) -> None:
    """Neither when it is asked nor when models are listed; the error names those of the token."""
    headers = bearer(models=["kant", "nobody"])
    refused = ask(served, headers)
    assert code(refused) == (404, "model_not_found")
    assert refused.json()["error"]["message"].endswith("served are: kant")
    listed = served.get("/v1/models", headers=headers).json()["data"]
    assert [model["id"] for model in listed] == ["kant"]
    listed = served.get("/v1/models", headers={"authorization": "Bearer the-key"}).json()["data"]
    assert [model["id"] for model in listed] == ["m", "kant"]
    assert code(ask(served, bearer(models=[]))) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/status", "/metrics", "/ready", "/docs", "/v1/modelsx", "/v1/load_lora"])
def test_a_token_opens_no_other_page(served: Served, path: str) -> None:
    """Whatever there is or will be: what is not listed is closed."""
    assert code(served.get(path, headers=bearer())) == (403, "token_scope")


def test_a_token_never_opens_admin(served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whether there are administrators or not."""
    assert code(served.get("/admin/adapters", headers=bearer())) == (403, "admin_is_off")
    environment = {"SIVE_ADMIN_KEYS": "admin", "SIVE_TOKEN_SECRETS": SECRET}
    with launch(tmp_path_factory.mktemp("admin"), **environment) as one:
        assert code(one.get("/admin/adapters", headers=bearer())) == (401, "invalid_api_key")


def test_bad_tokens_are_told_apart(served: Served) -> None:
    """A page renews an expired one by itself; the others are somebody's mistake."""
    now = int(time.time())
    assert code(ask(served, bearer(iat=now - 700, exp=now - 100))) == (401, "token_expired")
    assert code(ask(served, bearer(iat=now + 300, exp=now + 400))) == (401, "token_not_yet_valid")
    assert code(ask(served, bearer(mint("x" * 32)))) == (401, "invalid_token")
    assert code(ask(served, bearer(origin=PAGE))) == (403, "token_origin")
    assert ask(served, bearer(origin=PAGE) | {"origin": PAGE}).status_code == 200
    assert code(ask(served, {})) == (401, "invalid_api_key")
    assert code(served.get("/v1/models", headers=bearer("sive1.x.y"))) == (401, "invalid_token")


def test_the_next_token_of_a_visitor_cancels_and_no_other(served: Served, host: Upstream) -> None:
    """Tokens are renewed while an answer runs; who has another id cannot end it."""
    host.manner = upstream.stays_silent
    try:
        with ThreadPoolExecutor(1) as pool:
            headers = bearer(id="ada") | {"x-request-id": "running"}
            waiting = pool.submit(ask, served, headers, stream=True)
            until(lambda: host.seen and host.seen[-1].status is None, what="the request")
            url = f"{served.url}/v1/requests/running/cancel"
            for stranger in (bearer(id="eve"), {"authorization": "Bearer the-key"}):
                assert httpx2.post(url, headers=stranger).status_code == 404
            cancelled = httpx2.post(url, headers=bearer(id="ada", models=["m"]))
            assert cancelled.json() == {"id": "running", "cancelled": 1}
            assert "request_cancelled" in waiting.result(20).text
    finally:
        host.manner = upstream.answers("Bonjour")


def test_secrets_alone_close_the_gateway(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Who sets a secret does not mean that everybody may ask without a token."""
    with launch(tmp_path_factory.mktemp("secrets"), SIVE_TOKEN_SECRETS=SECRET) as one:
        assert code(one.get("/v1/models")) == (401, "invalid_api_key")
        assert one.get("/v1/models", headers=bearer()).status_code == 200


def test_a_short_secret_is_refused_at_the_start() -> None:
    """It says how long it must be, and does not show it."""
    with pytest.raises(ConfigError, match="32 at least") as refused:
        load(environ={"SIVE_TOKEN_SECRETS": f"{SECRET},too-short", "HOME": "/nonexistent"})
    assert "too-short" not in str(refused.value)
    assert "SIVE_TOKEN_SECRETS" in str(refused.value)
