"""The page as `sive serve` gives it out: who may have it, what comes with it, and what does not exist."""

import gzip
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sive_serve.page import Page
from starlette.datastructures import Headers

from tests.conftest import ROOT, Served, launch

PUBLIC = ROOT / "clients" / "netlify" / "public"
FILES = sorted(path.relative_to(PUBLIC).as_posix() for path in PUBLIC.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A sive that asks for keys."""
    with launch(tmp_path_factory.mktemp("locked"), SIVE_API_KEYS="secret") as served:
        yield served


def raw(served: Served, target: str) -> str:
    """The status line for a request target as it is, which a client would tidy up."""
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        line.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        reply = b""
        while b"\r\n" not in reply and (data := line.recv(4096)):
            reply += data
    return reply.split(b"\r\n")[0].decode()


def test_everybody_may_have_the_page_and_nothing_more(locked: Served) -> None:
    """The files need no key, though everything that they ask for does."""
    assert f"open {locked.url}/ in a browser" in locked.output.read_text()
    page = locked.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (PUBLIC / "index.html").read_bytes()
    for path in ("/v1/models", "/ready", "/status", "/metrics", "/app", "/app/", "/nothing.html"):
        assert locked.get(path).status_code == 401, path


@pytest.mark.parametrize("name", FILES)
def test_every_file_comes_as_what_it_is(locked: Served, name: str) -> None:
    """With a type that browsers run, a policy, no sniffing, and as small as it can be."""
    answer = locked.get(f"/{name}", headers={"accept-encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.content == (PUBLIC / name).read_bytes()
    suffix = name.rpartition(".")[2]
    types = {"mjs": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
    assert answer.headers["content-type"].split(";")[0] == types[suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["vary"] == "accept-encoding"
    sent = int(answer.headers["content-length"])
    assert sent < len(answer.content) or len(answer.content) < 1000


def test_who_has_a_file_already_gets_no_second_copy(locked: Served) -> None:
    """A 304 for either encoding's own tag, and for none of the other's."""
    plain = locked.get("/style.css", headers={"accept-encoding": "identity"})
    packed = locked.get("/style.css", headers={"accept-encoding": "gzip"})
    assert plain.headers["etag"] != packed.headers["etag"]
    assert "content-encoding" not in plain.headers
    for tag, accepted, status in (
        (plain.headers["etag"], "identity", 304),
        (packed.headers["etag"], "br, gzip;q=0.5", 304),
        (f'"other", W/{packed.headers["etag"]}', "gzip", 304),
        ("*", "gzip", 304),
        (plain.headers["etag"], "gzip", 200),
        (packed.headers["etag"], "gzip;q=0", 200),
    ):
        asked = {"if-none-match": tag, "accept-encoding": accepted}
        answer = locked.get("/style.css", headers=asked)
        assert answer.status_code == status, asked
        if status == 304:
            assert answer.content == b""
            assert answer.headers["etag"] in tag or tag == "*"


def test_only_reading_is_allowed(locked: Served) -> None:
    """HEAD is GET without a body; anything else is refused and says what is not."""
    head = httpx2.head(f"{locked.url}/style.css", headers={"accept-encoding": "identity"})
    assert head.status_code == 200
    assert int(head.headers["content-length"]) == (PUBLIC / "style.css").stat().st_size
    assert head.content == b""
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = httpx2.request(method, f"{locked.url}/", content=b"{}")
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "target",
    [
        "/../pyproject.toml",
        "/app/../../netlify.toml",
        "/%2e%2e/netlify.toml",
        "/app/%2e%2e%2f%2e%2e%2fnetlify.toml",
        "/..%5c..%5cpyproject.toml",
        "//etc/passwd",
        "/app/main.mjs%00.html",
        "/app//main.mjs",
        "/./index.html",
    ],
)
def test_there_is_no_way_out_of_the_folder(locked: Served, target: str) -> None:
    """A path is a name among those that were read at the start, not a place on the disk."""
    assert raw(locked, target).split(" ")[1] in ("400", "401")


def test_a_link_to_a_file_elsewhere_is_read_at_the_start_or_never(tmp_path: Path) -> None:
    """What a folder holds later is not given out."""
    (tmp_path / "index.html").write_text("first")
    page = Page(tmp_path)
    (tmp_path / "index.html").write_text("second")
    (tmp_path / "secret.txt").write_text("x")
    found = page.answer("GET", "/", Headers())
    assert found is not None
    assert found.body == b"first"
    assert page.answer("GET", "/secret.txt", Headers()) is None


def test_modules_run_where_the_system_does_not_know_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser runs no module that comes as anything but JavaScript."""
    monkeypatch.setattr("mimetypes.guess_type", lambda _: (None, None))
    page = Page(PUBLIC)
    for path, media_type in (("/app/main.mjs", "text/javascript"), ("/icon.svg", "image/svg+xml")):
        found = page.answer("GET", path, Headers())
        assert found is not None
        assert found.headers["content-type"].startswith(media_type)


def test_without_a_folder_there_is_no_page(tmp_path: Path) -> None:
    """And everything is as it was without one."""
    assert not Page(tmp_path)
    assert Page(tmp_path).answer("GET", "/", Headers()) is None


def test_packing_is_the_same_every_time(tmp_path: Path) -> None:
    """No time of day in it: two gateways behind one name have one tag for one file."""
    (tmp_path / "index.html").write_text("x" * 5000)
    asked = Headers({"accept-encoding": "gzip"})
    one, other = (Page(tmp_path).answer("GET", "/", asked) for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.body == other.body
    assert one.body[4:8] == bytes(4)
    assert gzip.decompress(one.body) == b"x" * 5000


def test_the_wheel_has_the_page(tmp_path: Path) -> None:
    """Installed from a wheel, sive finds its page beside its code."""
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, timeout=110)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {f"sive_serve/page/{name}" for name in FILES} <= names
    check = "from sive_serve.page import PACKAGED, Page; assert PACKAGED.is_dir(); assert Page()"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path / "installed", check=True)
