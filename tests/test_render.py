"""``render.yaml``: the gateway on Render's free tier, in the words of Render's blueprint."""

from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.lab.dockerfile import read

# The fields of a Docker web service in Render's blueprints, written down from memory of its blueprint-spec
# page, which could not be read here: a misspelt one is found, one that Render has renamed is not.
SERVICE = {
    *("type", "name", "runtime", "plan", "region", "branch", "autoDeployTrigger", "envVars", "rootDir"),
    *("dockerfilePath", "dockerContext", "dockerCommand", "healthCheckPath", "maxShutdownDelaySeconds"),
    *("numInstances", "scaling", "domains", "buildFilter", "preDeployCommand", "registryCredential", "disk"),
}
SOURCES = {"value", "generateValue", "sync", "fromService", "fromDatabase"}


@pytest.fixture
def service() -> dict[str, Any]:
    """The blueprint's only service."""
    blueprint = yaml.safe_load((ROOT / "render.yaml").read_text("utf-8"))
    assert blueprint.keys() == {"services"}
    (only,) = blueprint["services"]
    return dict(only)


def test_it_is_a_free_docker_service_of_known_fields(service: dict[str, Any]) -> None:
    """Built from the Dockerfile at the root, whose last stage is what Render builds."""
    assert service.keys() <= SERVICE
    assert (service["type"], service["runtime"], service["plan"]) == ("web", "docker", "free")
    assert (ROOT / service["dockerfilePath"]).is_file()
    assert read(ROOT / service["dockerfilePath"])[-1].name == "gateway"
    assert service["healthCheckPath"] == "/health"


def test_it_holds_no_secret(service: dict[str, Any]) -> None:
    """Keys are made up or asked for by Render; the one sive refuses to start without is made up."""
    variables = {entry["key"]: entry.keys() - {"key"} for entry in service["envVars"]}
    assert all(len(sources) == 1 and sources <= SOURCES for sources in variables.values())
    assert "value" not in set.union(*map(set, variables.values()))
    assert variables["SIVE_API_KEYS"] == {"generateValue"}
    assert "PORT" not in variables, "Render sets it"
