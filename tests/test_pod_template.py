"""``runpod/pod.toml`` and its reader: the request it makes, and how each mistake in it is explained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sive.errors import PodError
from sive_pods import create_body, read_template

from tests.conftest import ROOT

OURS = ROOT / "runpod" / "pod.toml"
TEXT = OURS.read_text("utf-8").replace("YOUR_NAME", "somebody")
BF16_BYTES = 2 * 14_770_033_664  # Qwen2.5-14B

# POST /v2/pods of docs.runpod.io/api-reference-v2/pods/create-a-pod (August 2026): anything else is a 422.
Rule = Callable[[Any], bool]
PORT = re.compile(r"[1-9][0-9]*/(http|tcp)")
DOCUMENTED: dict[str, Rule] = {
    "name": lambda value: isinstance(value, str) and len(value) >= 1,
    "image": lambda value: isinstance(value, str) and len(value) >= 1,
    "args": lambda value: isinstance(value, str),
    "cloud": lambda value: value in ("SECURE", "COMMUNITY"),
    "gpu": lambda value: is_gpu(value),
    "cpu": lambda value: isinstance(value, dict),
    "dataCenterIds": lambda value: all(isinstance(one, str) for one in value),
    "disk": lambda value: isinstance(value, int) and value >= 1,
    "mounts": lambda value: is_mounts(value),
    "ports": lambda value: all(PORT.fullmatch(one) for one in value),
    "env": lambda value: len(value) <= 50 and all(isinstance(one, str) for one in value.values()),
    "registry": lambda value: value is None or isinstance(value, str),
    "globalNetworking": lambda value: isinstance(value, bool),
    "startSsh": lambda value: isinstance(value, bool),
    "startJupyter": lambda value: isinstance(value, bool),
}


def is_gpu(value: dict[str, Any]) -> bool:
    """One GPU type, and at most one of the two ways to say which CUDA."""
    known = {"id", "count", "minCudaVersion", "allowedCudaVersions"}
    both = {"minCudaVersion", "allowedCudaVersions"} <= value.keys()
    return "id" in value and value.keys() <= known and not both and value.get("count", 1) >= 1


def is_mounts(value: dict[str, Any]) -> bool:
    """One network volume or a persistent one, each with what it needs."""
    if value.keys() == {"network"}:
        return len(value["network"]) == 1 and value["network"][0].keys() == {"volumeId", "path"}
    return value.keys() == {"persistent"} and value["persistent"]["size"] >= 10


def problems(body: dict[str, Any]) -> list[str]:
    """Return what RunPod would refuse in a request."""
    found = [f"unknown {key}" for key in body if key not in DOCUMENTED]
    found += [f"bad {key}" for key, value in body.items() if key in DOCUMENTED and not DOCUMENTED[key](value)]
    found += [f"missing {key}" for key in ("name", "image") if key not in body]
    return found + (["gpu or cpu"] if ("gpu" in body) == ("cpu" in body) else [])


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Write a template's text to a file."""

    def write(text: str) -> Path:
        file = tmp_path / "pod.toml"
        file.write_text(text)
        return file

    return write


Written = Callable[[str], Path]


def test_the_request_is_one_that_runpod_documents(written: Written) -> None:
    """For every candidate: known fields of the right form, one GPU, one volume, in the volume's place."""
    template = read_template(written(TEXT))
    for gpu in template.gpu:
        body = create_body(template, gpu, volume_id="vol_1")
        assert problems(body) == []
        assert body["gpu"] == {"id": gpu.id, "count": 1, "minCudaVersion": "13.0"}
        assert body["mounts"] == {"network": [{"volumeId": "vol_1", "path": "/workspace"}]}
        assert body["dataCenterIds"] == [template.network_volume.data_center]
        assert body["ports"] == ["8000/http"]


def test_secrets_are_named_and_never_written(written: Written) -> None:
    """Their variables hold RunPod's reference, which the pod alone sees resolved."""
    template = read_template(written(TEXT))
    env = create_body(template, template.gpu[0], volume_id="v")["env"]
    assert env == {
        "SIVE_API_KEYS": "{{ RUNPOD_SECRET_sive_api_keys }}",
        "HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}",
        "SIVE_DATA_DIR": template.network_volume.path,
    }


def test_every_candidate_holds_the_model(written: Written) -> None:
    """The base model in bfloat16, adapters beside it, and room to answer."""
    template = read_template(written(TEXT))
    sizes = [gpu.memory_gb for gpu in template.gpu]
    assert min(sizes) * 1e9 > BF16_BYTES * 1.3
    assert sizes == sorted(sizes), "the smaller are the cheaper: they are tried first"
    assert template.network_volume.size_gb * 1e9 > BF16_BYTES * 1.5


def test_the_placeholder_is_refused() -> None:
    """The file as it comes names no image that exists."""
    template = read_template(OURS)
    with pytest.raises(PodError, match=r"image is 'docker\.io/YOUR_NAME/.*README\.md"):
        create_body(template, template.gpu[0], volume_id="v")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("disk_gb = 20", "disk_gb = 20\ndisc_gb = 2", "unknown key 'disc_gb': did you mean 'disk_gb'?"),
        (
            "memory_gb = 48",
            "memory_gb = 48\nmemory = 4",
            "unknown key 'gpu.0.memory': did you mean 'memory_gb'?",
        ),
        (
            "size_gb = 60",
            "size_gb = 60\nsize = 6",
            "unknown key 'network_volume.size': did you mean 'size_gb'?",
        ),
        ('name = "sive-pod"\n', "", "'name' is missing"),
        (
            "size_gb = 60",
            "size_gb = 5",
            "network_volume.size_gb: Input should be greater than or equal to 10 (it is 5)",
        ),
        ('"8000/http"', '"8000"', "ports: '8000' is no port: write NUMBER/http or NUMBER/tcp"),
        ('"8000/http"', '"70000/tcp"', "ports: '70000/tcp' is no port: write NUMBER/http or NUMBER/tcp"),
        (
            'cloud = "SECURE"',
            'cloud = "BOTH"',
            "cloud: Input should be 'SECURE' or 'COMMUNITY' (it is 'BOTH')",
        ),
        ('path = "/workspace"', 'path = "workspace"', "network_volume.path: String should match"),
        ('id = "NVIDIA L40S"', 'id = "NVIDIA A40"', "gpu: 'NVIDIA A40' stands there twice"),
        (
            "[env]",
            "[env]\nHF_TOKEN = 'hf_abc'",
            "env: HF_TOKEN looks like a secret: name a RunPod secret for it",
        ),
        ("[env]", "[env]\n'a b' = 'c'", "env.a b.[key]: String should match"),
        (
            "[secrets]",
            "[secrets]\nSIVE_DATA_DIR = 'x'",
            "SIVE_DATA_DIR stands under [env] and [secrets]: keep one",
        ),
        ("[secrets]", "[secrets]\nOTHER_KEY = 'sk-12 34'", "secrets.OTHER_KEY: String should match"),
        ("[env]", "[env]\n" + "\n".join(f"A{n} = '{n}'" for n in range(50)), "53 variables"),
        ("ports = [", "ports = [" + "".join(f'"{n}/http", ' for n in range(1, 11)), "at most 10 http ports"),
        ("[env]", "[env", "is not TOML"),
    ],
)
def test_each_mistake_is_one_line(written: Written, before: str, after: str, said: str) -> None:
    """It names the key, the value unless that may be a secret, and the way out."""
    assert before in TEXT
    with pytest.raises(PodError) as caught:
        read_template(written(TEXT.replace(before, after, 1)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pod.toml" in str(caught.value)
    for secret in ("hf_abc", "sk-12"):
        assert secret not in str(caught.value)


def test_every_mistake_is_told(written: Written) -> None:
    """Two of them are two lines."""
    text = TEXT.replace("disk_gb = 20", "disk_gb = 0").replace("size_gb = 60", "size_gb = 5000")
    with pytest.raises(PodError) as caught:
        read_template(written(text))
    assert len(str(caught.value).splitlines()) == 2


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    """One line that names the file."""
    with pytest.raises(PodError, match=r"cannot read .*nothing\.toml: No such file"):
        read_template(tmp_path / "nothing.toml")


def test_a_template_does_not_change(written: Written) -> None:
    """What was checked stays what is used."""
    template = read_template(written(TEXT))
    with pytest.raises(ValueError, match="frozen"):
        template.name = "other"  # type: ignore[misc]  # what is tested
