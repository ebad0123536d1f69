"""``pod.toml``: what a pod is rented as, read and checked, and the request that rents it."""

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from sive.errors import PodError

MAX_VARIABLES = 50  # RunPod's, for a pod
MAX_HTTP_PORTS = 10  # RunPod's proxy, for a pod
PLACEHOLDER = "YOUR_NAME"
PORT = re.compile(r"([1-9][0-9]{0,4})/(http|tcp)")
SECRETIVE = re.compile(r"(^|_)(KEYS?|TOKENS?|SECRETS?|PASSWORDS?|CREDENTIALS?)(_|$)")

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of the tables of ``pod.toml``: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Gpu(Section):
    """``[[gpu]]``: a candidate, tried in the order of the file. ``id``: as RunPod spells it."""

    id: Text
    memory_gb: Annotated[int, Field(ge=1)]
    why: Text


class NetworkVolume(Section):
    """``[network_volume]``: what outlives the pod, mounted at ``path``; the pod runs where it is."""

    name: Text
    size_gb: Annotated[int, Field(ge=10, le=4096)]
    data_center: Text
    path: Annotated[str, Field(pattern=r"^/[^:]+$")]


class PodTemplate(Section):
    """A pod as it is to be rented.

    ``disk_gb``: its own disk, wiped on a restart. ``env``: variables as they are; ``secrets``: variables
    whose values are RunPod's secrets of that name, so that none ever stands here.
    """

    name: Text
    image: Text
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    min_cuda_version: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")]
    disk_gb: Annotated[int, Field(ge=1)]
    ports: Annotated[tuple[str, ...], Field(min_length=1)]
    gpu: Annotated[tuple[Gpu, ...], Field(min_length=1)]
    network_volume: NetworkVolume
    env: Mapping[Variable, str] = Field(default_factory=dict)
    secrets: Mapping[Variable, SecretName] = Field(default_factory=dict)

    @field_validator("ports")
    @classmethod
    def _ports_can_be_exposed(cls, ports: tuple[str, ...]) -> tuple[str, ...]:
        for port in ports:
            found = PORT.fullmatch(port)
            if found is None or int(found[1]) > 65535:
                raise ValueError(f"{port!r} is no port: write NUMBER/http or NUMBER/tcp")
        if len([port for port in ports if port.endswith("/http")]) > MAX_HTTP_PORTS:
            raise ValueError(f"RunPod's proxy takes at most {MAX_HTTP_PORTS} http ports")
        return ports

    @field_validator("gpu")
    @classmethod
    def _candidates_are_distinct(cls, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        ids = [gpu.id for gpu in gpus]
        if twice := sorted({one for one in ids if ids.count(one) > 1}):
            raise ValueError(f"{twice[0]!r} stands there twice: keep the one that should be tried first")
        return gpus

    @field_validator("env")
    @classmethod
    def _values_are_no_secrets(cls, env: Mapping[str, str]) -> Mapping[str, str]:
        for variable in env:
            if SECRETIVE.search(variable.upper()):
                raise ValueError(
                    f"{variable} looks like a secret: name a RunPod secret for it under [secrets] instead"
                )
        return env

    @model_validator(mode="after")
    def _variables_are_distinct_and_few(self) -> "PodTemplate":
        if twice := sorted(self.env.keys() & self.secrets.keys()):
            raise ValueError(f"{twice[0]} stands under [env] and [secrets]: keep one")
        if (count := len(self.env) + len(self.secrets)) > MAX_VARIABLES:
            raise ValueError(f"{count} variables under [env] and [secrets]: RunPod takes {MAX_VARIABLES}")
        return self


def read_template(path: Path) -> PodTemplate:
    """Read and check a ``pod.toml``.

    Raises:
        PodError: the file is wrong; a line names each key, its value and the way out.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise PodError(f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:  # not TOML, or not UTF-8
        raise PodError(f"{path} is not TOML: {exc}") from exc
    try:
        return PodTemplate.model_validate(document)
    except ValidationError as exc:
        raise PodError("\n".join(f"{path}: {_told(error)}" for error in exc.errors())) from None


def create_body(template: PodTemplate, gpu: Gpu, *, volume_id: str) -> dict[str, Any]:
    """Return the body of RunPod's ``POST /v2/pods`` for one candidate.

    The API takes one GPU and has no fallback of its own: candidates are tried one after the other.

    Raises:
        PodError: the image is still the placeholder.
    """
    if PLACEHOLDER in template.image:
        raise PodError(
            f"image is {template.image!r}: push an image of your own and name it there (runpod/README.md)"
        )
    secrets = {variable: f"{{{{ RUNPOD_SECRET_{secret} }}}}" for variable, secret in template.secrets.items()}
    volume = template.network_volume
    return {
        "name": template.name,
        "image": template.image,
        "cloud": template.cloud,
        "gpu": {"id": gpu.id, "count": 1, "minCudaVersion": template.min_cuda_version},
        "dataCenterIds": [volume.data_center],
        "disk": template.disk_gb,
        "ports": list(template.ports),
        "mounts": {"network": [{"volumeId": volume_id, "path": volume.path}]},
        "env": {**template.env, **secrets},
    }


def _told(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{where!r} is missing"
    if error["type"] == "extra_forbidden":
        known = sorted(_section(error["loc"][:-1]).model_fields)
        nearest = get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0)[0]
        return f"unknown key {where!r}: did you mean {nearest!r}?"
    message = error["msg"].removeprefix("Value error, ")
    # A value under [env] may be a secret that somebody wrote there by mistake.
    is_shown = error["type"] != "value_error" and "env" not in error["loc"] and "secrets" not in error["loc"]
    shown = f" (it is {error['input']!r})" if is_shown else ""
    return f"{where}: {message}{shown}" if where else message


def _section(location: tuple[int | str, ...]) -> type[BaseModel]:
    sections: dict[str, type[Section]] = {"gpu": Gpu, "network_volume": NetworkVolume}
    return sections.get(str(location[0]), PodTemplate) if location else PodTemplate
