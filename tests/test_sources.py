"""Where an adapter is from: what may be written, and how each mistake is explained."""

from pathlib import Path

import pytest
from sive.errors import AdapterError
from sive_adapters.sources import Source, parse

HERE = Path("/somewhere/lists")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://FJDaz/qwen-spinoza", Source("hf", "FJDaz/qwen-spinoza", "")),
        ("hf://FJDaz/qwen@v1", Source("hf", "FJDaz/qwen", "", "v1")),
        (
            f"hf://FJDaz/3_PHI@{COMMIT}/Spinoza_Secours",
            Source("hf", "FJDaz/3_PHI", "Spinoza_Secours", COMMIT),
        ),
        ("hf://a/b@refs%2Fpr%2F1/c/d", Source("hf", "a/b", "c/d", "refs/pr/1")),
        ("s3://bucket", Source("s3", "bucket", "")),
        ("s3://my.bucket/adapters/spinoza", Source("s3", "my.bucket", "adapters/spinoza")),
        ("gs://bucket_a/x", Source("gs", "bucket_a", "x")),
        ("az://container/x/y", Source("az", "container", "x/y")),
        ("https://host.example:8443/a/b", Source("https", "https://host.example:8443", "a/b")),
        ("http://127.0.0.1:9000/a", Source("https", "http://127.0.0.1:9000", "a")),
        ("http://[::1]:9000/a", Source("https", "http://[::1]:9000", "a")),
        ("file:spinoza", Source("file", "", "/somewhere/lists/spinoza")),
        ("file:../spinoza", Source("file", "", "/somewhere/spinoza")),
        ("file:/data/spinoza", Source("file", "", "/data/spinoza")),
        ("file:///data/spinoza", Source("file", "", "/data/spinoza")),
    ],
)
def test_every_form_is_read_and_its_text_means_the_same(text: str, source: Source) -> None:
    """The canonical text of a source is a source again, from any folder."""
    assert parse(text, HERE) == source
    assert parse(str(source), Path("/elsewhere")) == source


@pytest.mark.parametrize(
    ("text", "canonical"), [("s3://bucket/a/", "s3://bucket/a"), ("hf://a/b/", "hf://a/b")]
)
def test_a_slash_too_many_at_the_end_is_forgiven(text: str, canonical: str) -> None:
    """People copy folders with and without it."""
    assert str(parse(text, HERE)) == canonical


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "hf://org/repo@revision/subfolder"),
        ("spinoza", "file:folder"),
        ("ftp://host/a", "s3://bucket/prefix"),
        ("hf://spinoza", "hf://org/repo"),
        ("hf://org/", "hf://org/repo"),
        ("hf://org/repo@", "hf://org/repo@revision"),
        ("hf://org/../etc", "hf://org/repo"),
        ("s3://", "s3://bucket/prefix"),
        ("s3:///prefix", "s3://bucket/prefix"),
        ("az://", "az://container/prefix"),
        ("s3://bucket/a//b", "write it plainly"),
        ("s3://bucket/../b", "write it plainly"),
        ("hf://org/repo/../b", "write it plainly"),
        ("https://", "https://host/folder"),
        ("https://host:notaport/a", "https://host/folder"),
        ("https://host/a/%2e%2e/b", "write it plainly"),
        ("http://host.example/a", "not encrypted: write https://host.example/a"),
        ("file:", "file:FOLDER"),
        ("file://host/share", "file:FOLDER"),
        ("s3://bucket/a\nb", "on one line"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line_that_names_the_form(text: str, says: str) -> None:
    """A person corrects the list without reading a manual."""
    with pytest.raises(AdapterError) as caught:
        parse(text, HERE)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host.example/a",
        "https://host.example/a?X-Amz-Signature=hunter2",
        "https://host.example/a#hunter2",
        "s3://AKIA:hunter2@bucket/a",
        "az://container/a?sig=hunter2",
        "http://user:hunter2@host.example/a",
        "hf://user:hunter2@host/repo/x",
        "ftp://user:hunter2@host/a",
    ],
)
def test_credentials_in_a_source_are_refused_and_not_repeated(text: str) -> None:
    """They come from the environment, and an error ends up in logs."""
    with pytest.raises(AdapterError) as caught:
        parse(text, HERE)
    assert "hunter2" not in str(caught.value)
