"""Adapters from S3 as moto speaks it, with the environment's own credentials."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sive.errors import AdapterError
from sive_adapters.sources import parse
from sive_adapters.store import Store
from sive_adapters.weights import model_files

from tests.lab.buckets import CONFIG, MIB, QUICK, VARIABLES, WEIGHTS, write_adapter

SOURCE = parse("s3://adapters/spinoza", Path())
KEYS = {
    "aws_access_key_id": "AKIAEXAMPLE",
    "aws_secret_access_key": "very-secret",
    "region_name": "eu-west-3",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of it, an empty bucket, and the environment that leads there."""
    import boto3

    for name in list(os.environ):
        if name.startswith(VARIABLES):
            monkeypatch.delenv(name)
    said = {"ENDPOINT_URL": endpoint, "REGION": "eu-west-3"}
    said |= {"ACCESS_KEY_ID": KEYS["aws_access_key_id"], "SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"]}
    for name, value in said.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    client.create_bucket(Bucket="adapters", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    yield client
    for entry in client.list_objects_v2(Bucket="adapters").get("Contents", []):
        client.delete_object(Bucket="adapters", Key=entry["Key"])
    client.delete_bucket(Bucket="adapters")
    client.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of several pieces."""
    return write_adapter(tmp_path / "spinoza", size=24 * MIB)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of adapters."""
    return Store(tmp_path / "store", patience=QUICK)


def upload(s3: Any, folder: Path, *names: str, below: str = "spinoza/") -> None:
    """Put files into the bucket; large ones in parts, as every S3 client does."""
    for name in names:
        s3.upload_file(str(folder / name), "adapters", below + name)


def test_an_adapter_comes_from_s3(store: Store, s3: Any, folder: Path) -> None:
    """Its weights were uploaded in parts, so their ETag is no hash of them."""
    upload(s3, folder, CONFIG, WEIGHTS)
    assert "-" in s3.head_object(Bucket="adapters", Key=f"spinoza/{WEIGHTS}")["ETag"]
    version = store.fetch("spinoza", SOURCE)
    assert (version.folder / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert store.fetch("spinoza", SOURCE) == version


def test_an_upload_while_it_is_fetched_begins_it_again(store: Store, s3: Any, folder: Path) -> None:
    """S3 answers 412 to what asks for the old ETag."""
    upload(s3, folder, CONFIG, WEIGHTS)
    content = (folder / WEIGHTS).read_bytes()
    did: list[bool] = []

    def change(progress: object) -> None:
        if not did and getattr(progress, "done_bytes", 0) > MIB:
            did.append(True)
            s3.put_object(Bucket="adapters", Key=f"spinoza/{WEIGHTS}", Body=content[::-1])

    version = store.fetch("spinoza", SOURCE, told=change)
    assert did
    assert (version.folder / WEIGHTS).read_bytes() == content[::-1]


@pytest.mark.parametrize(
    ("source", "says"),
    [("s3://adapters/nobody", "s3://adapters/nobody has no"), ("s3://nosuchbucket/x", "s3://nosuchbucket/x")],
)
def test_what_is_not_there_is_named(store: Store, s3: Any, source: str, says: str) -> None:
    """The adapter, or its bucket."""
    with pytest.raises(AdapterError) as caught:
        store.fetch("spinoza", parse(source, Path()))
    assert says in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_a_whole_model_is_listed_and_fetched(tmp_path: Path, s3: Any) -> None:
    """Weights, configuration and tokenizer; what lies in folders below, and pickles, do not come."""
    folder = tmp_path / "model"
    names = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    names += ("tokenizer.json", "merges.txt", "pytorch_model.bin")
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    upload(s3, folder, *names, below="qwen/")
    upload(s3, folder, "config.json", below="qwen/original/")
    store = Store(tmp_path / "models", choose=model_files, patience=QUICK)
    version = store.fetch("qwen", parse("s3://adapters/qwen", Path()))
    assert set(version.sha256) == set(names) - {"pytorch_model.bin"}
    s3.delete_object(Bucket="adapters", Key="qwen/model-00001-of-00002.safetensors")
    with pytest.raises(AdapterError, match="lacks model-00001-of-00002"):
        store.fetch("qwen", parse("s3://adapters/qwen", Path()))
