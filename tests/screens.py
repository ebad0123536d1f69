"""`python -m tests.screens` takes the pictures of docs/screens: a real page before a real `sive serve`."""

import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, TINY, launch
from tests.lab.browser import Visit, browser, need
from tests.lab.hosts import Hosts
from tests.lab.manners import held
from tests.lab.reciter import recites

FOLDER = ROOT / "docs" / "screens"
FAKE_ENGINE = Path(__file__).parent / "lab" / "fake_engine.py"
WIDE = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "locale": "fr-FR"}

FREEDOM = """\
We think ourselves free because we are conscious of our wishes, and never dream of the causes that dispose us
to wish. A stone that was thrown, if it could think, would believe that it flies of its own accord.

**Free** is what acts from the necessity of its own nature alone. So we grow freer not by escaping causes but
by *understanding* them:

1. a passion ceases to be a passion once we form a clear idea of it;
2. what follows from our own understanding is truly our action;
3. and the more we act, the more we rejoice.

> A free man thinks of nothing less than of death; his wisdom is a meditation on life."""

DUREE = """\
Le temps de l'horloge est une ligne : on y pose des instants côte à côte, comme des perles. Mais la vie ne se
compte pas, elle **dure**.

Écoutez une mélodie. Chaque note garde en elle celles qui la précèdent ; ôtez-en une, et c'est le tout qui
change de couleur. Voilà ce que j'appelle la durée : non pas une suite d'états, mais *une même chose qui
change*."""

CONFIG = """
[gateway]
head_s = 0.5
[[backend]]
name = "pod-a"
url = "{pod_a}"
probe = "passive"
resume = "text"
[[backend]]
name = "pod-b"
url = "{pod_b}"
probe = "passive"
resume = "{resume}"
[model.spinoza]
system_prompt = "You are Baruch Spinoza. Answer in the first person, briefly."
route = [{route}]
[model.bergson]
route = [{pod}]
[model.kant]
"""
SINGLE_BREAK = re.compile(r"(?<!\n)\n(?![\n\d>])")
ENGINE = f"""
[engine]
model = "{TINY}/base"
command = "{FAKE_ENGINE}"
fake-boot-s = 900
"""
POD_A, POD_B = (f'{{ backend = "pod-{letter}", model = "m", weights = "w" }}' for letter in "ab")
LOCAL = '{ backend = "local", model = "auto" }'
WAKING = '{ backend = "engine", model = "base" }'
ARE_WE_FREE = "Are we free, or only unaware of what moves us?"


@dataclass(frozen=True)
class Shot:
    """One picture: what is asked, of which route, and what is waited for."""

    name: str
    route: str = POD_A
    question: str = ARE_WE_FREE
    shows: str = ".turn[data-status=done]"
    text: str = FREEDOM
    config: str = ""
    resume: str = "text"
    options: dict[str, Any] = field(default_factory=lambda: WIDE)


SHOTS = (
    Shot("welcome", question="", shows="#questions button"),
    Shot("answer-dark", options={**WIDE, "color_scheme": "dark"}),
    Shot("phone", question="Qu'est-ce que la durée ?", text=DUREE, options=PHONE),
    Shot("resumed", route=f"{POD_B}, {POD_A}"),
    Shot("degraded", route=LOCAL, question="What is joy?"),
    Shot("booting", route=f"{WAKING}, {POD_A}", shows=".booting progress", config=ENGINE, text=""),
    Shot("broken", route=POD_B, shows=".turn[data-status=error]", resume="none"),
)


def main() -> None:
    """Take them all."""
    need()
    FOLDER.mkdir(exist_ok=True)
    with browser() as chromium:
        for shot in SHOTS:
            _take(chromium, shot)


def _take(chromium: Any, shot: Shot) -> None:
    with Hosts() as hosts, tempfile.TemporaryDirectory() as home:
        # Without a text the first pod never begins to speak.
        text = SINGLE_BREAK.sub(" ", shot.text)
        recital = recites(text, pause_s=0.005)
        pod_a = hosts.add(recital if shot.text else held(threading.Event(), recital))
        pod_b = hosts.add(recites(text, pause_s=0.005, cut_after=58))
        config = CONFIG.format(
            pod_a=pod_a.url, pod_b=pod_b.url, route=shot.route, pod=POD_A, resume=shot.resume
        )
        with launch(Path(home), shot.config + config) as served:
            visit = Visit(chromium, reduced_motion="reduce", **shot.options)
            page = visit.tab(f"{served.url}/")
            if shot.text == DUREE:
                page.click("#menu")
                page.check("input[value=bergson]")
            if shot.question:
                page.fill("#question", shot.question)
                page.press("#question", "Enter")
            page.wait_for_selector(shot.shows)
            page.mouse.move(0, 0)
            page.wait_for_timeout(300)
            page.screenshot(path=FOLDER / f"{shot.name}.png")
            visit.context.close()


if __name__ == "__main__":
    main()
