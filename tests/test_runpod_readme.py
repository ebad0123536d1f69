"""What ``runpod/README.md`` says is true of the files beside it, as far as that shows without an account."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from sive.config import load
from sive_pods import read_template

from tests.conftest import ROOT, clean_environment
from tests.lab.dockerfile import read

HERE = ROOT / "runpod"
README = (HERE / "README.md").read_text("utf-8")
TEMPLATE = read_template(HERE / "pod.toml")


def blocks(language: str) -> list[str]:
    """The page's code blocks of a language, those of its lists too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_the_configurations_load(tmp_path: Path) -> None:
    """Every key in them is known, and every route leads somewhere."""
    assert len(blocks("toml")) == 2
    for block in blocks("toml"):
        (tmp_path / "sive.toml").write_text(block)
        assert load(tmp_path / "sive.toml", environ={"SIVE_POD_KEY": "k"}).settings.model


def test_the_request_is_made_as_written(tmp_path: Path) -> None:
    """The program of the page prints the body that RunPod is sent, once the image has a name."""
    program = re.search(r"python -c '\n(.*?)'", README, re.DOTALL)
    assert program
    (tmp_path / "runpod").mkdir()
    text = (HERE / "pod.toml").read_text().replace("YOUR_NAME", "somebody")
    (tmp_path / "runpod" / "pod.toml").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", program[1]],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["gpu"]["id"] == TEMPLATE.gpu[0].id


def test_it_speaks_of_the_same_image_and_volume_as_the_template() -> None:
    """Names, sizes, places and prices computed from them."""
    assert TEMPLATE.image.removeprefix("docker.io/") in README
    volume = TEMPLATE.network_volume
    assert f"`{volume.data_center}`, name `{volume.name}`, {volume.size_gb} GB" in README
    assert f"${volume.size_gb * 0.07:.2f} a month" in README
    assert f"container disk {TEMPLATE.disk_gb} GB, HTTP port 8000" in README
    for variable, secret in TEMPLATE.secrets.items():
        assert f"{variable}={{{{ RUNPOD_SECRET_{secret} }}}}" in README
    assert volume.path in README


def test_what_is_built_is_there() -> None:
    """Targets of `docker build`, and the versions of the project and of vLLM."""
    stages = {stage.name: stage for stage in read(ROOT / "Dockerfile")}
    assert set(re.findall(r"--target (\S+)", README)) == {"pod"} <= stages.keys()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"sive-pod:([\d.]+)", README)) == {version}
    assert stages["pod"].base in README


def test_the_gateway_s_secrets_are_those_render_asks_for() -> None:
    """Each variable of the blueprint is explained."""
    blueprint = yaml.safe_load((ROOT / "render.yaml").read_text("utf-8"))
    for entry in blueprint["services"][0]["envVars"]:
        assert f"`{entry['key']}`" in README


def test_links_lead_somewhere() -> None:
    """Files, and headings of the page."""
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (HERE / target).exists(), target


def test_no_secret_is_shown() -> None:
    """Keys come from variables; nothing on the page looks like one."""
    assert not re.search(r"hf_[A-Za-z0-9]{10,}|rpa_\w+|[0-9a-f]{32,}", README)
