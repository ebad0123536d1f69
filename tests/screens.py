"""`python -m tests.screens`: takes the pictures of docs/screens, of a real page before a real `sive serve`."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, TINY, launch
from tests.lab import upstream
from tests.lab.browser import Visit, browser, need
from tests.lab.hosts import Hosts
from tests.lab.manners import held
from tests.lab.reciter import recites

need()

FOLDER = ROOT / "docs" / "screens"
WIDE = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "reduced_motion": "reduce"}

FREEDOM = """We think ourselves free because we are conscious of our wishes, and never dream of the causes that \
dispose us to wish. A stone that was thrown, if it could think, would believe that it flies of its own accord.

**Free** is what acts from the necessity of its own nature alone. So we grow freer not by escaping causes but by \
*understanding* them:

1. a passion ceases to be a passion once we form a clear idea of it;
2. what follows from our own understanding is truly our action;
3. and the more we act, the more we rejoice.

> A free man thinks of nothing less than of death; his wisdom is a meditation on life."""

DUREE = """Le temps de l'horloge est une ligne : on y pose des instants côte à côte, comme des perles. Mais la vie \
ne se compte pas, elle **dure**.

Écoutez une mélodie. Chaque note garde en elle celles qui la précèdent ; ôtez-en une, et c'est le tout qui change \
de couleur. Voilà ce que j'appelle la durée : non pas une suite d'états, mais *une même chose qui change*."""

Page = Any


def main() -> None:
    """Take them all."""
    FOLDER.mkdir(exist_ok=True)
    fake = Path(__file__).parent / "lab" / "fake_engine.py"
    with browser() as chromium, Hosts() as hosts, tempfile.TemporaryDirectory() as home:
        well = hosts.add(recites(FREEDOM, pause_s=0.005))
        cut = hosts.add(recites(FREEDOM, pause_s=0.005, cut_after=58))
        french = hosts.add(recites(DUREE, pause_s=0.005))
        broken = hosts.add(upstream.cuts_after(12))
        slow = hosts.add(held(threading.Event(), recites("")))
        config = f'[engine]\nmodel = "{TINY}/base"\ncommand = "{fake}"\nfake-boot-s = 900\n[gateway]\nhead_s = 0.5\n'
        for name, host in {
            "pod-a": well,
            "pod-b": cut,
            "pod-c": french,
            "pod-d": broken,
            "slow": slow,
        }.items():
            resume = "none" if host is broken else "text"
            config += (
                f'[[backend]]\nname = "{name}"\nurl = "{host.url}"\nprobe = "passive"\nresume = "{resume}"\n'
            )

        def picture(name: str, routes: dict[str, str], act: Callable[[Page], None], **options: Any) -> None:
            models = "".join(f"[model.{model}]\nroute = [{route}]\n" for model, route in routes.items())
            with launch(
                Path(home), (config if "engine" in models else config[config.index("[gateway]") :]) + models
            ) as served:
                visit = Visit(chromium, **options)
                page = visit.tab(f"{served.url}/")
                act(page)
                page.mouse.move(0, 0)
                page.wait_for_timeout(300)
                page.screenshot(path=FOLDER / f"{name}.png")
                visit.context.close()

        pod_a, pod_b, pod_c, pod_d, slow_, engine = (
            f'{{ backend = "{name}", model = "m", weights = "w" }}'
            for name in ("pod-a", "pod-b", "pod-c", "pod-d", "slow", "engine")
        )
        engine = '{ backend = "engine", model = "base" }'
        local = '{ backend = "local", model = "auto" }'
        three = {"spinoza": pod_a, "bergson": pod_c, "kant": local}

        def asks(question: str, status: str = "done") -> Callable[[Page], None]:
            def act(page: Page) -> None:
                page.fill("#question", question)
                page.press("#question", "Enter")
                page.wait_for_selector(f".turn[data-status={status}]")

            return act

        def bergson(page: Page) -> None:
            page.click("#menu")
            page.check("input[value=bergson]")
            asks("Qu'est-ce que la durée ?")(page)

        def boots(page: Page) -> None:
            page.fill("#question", "Are we free?")
            page.press("#question", "Enter")
            page.wait_for_selector(".booting progress")

        picture("welcome", three, lambda page: None, **WIDE)
        picture(
            "answer-dark",
            three,
            asks("Are we free, or only unaware of what moves us?"),
            color_scheme="dark",
            **WIDE,
        )
        picture("phone", three, bergson, locale="fr-FR", **PHONE)
        resumed = {**three, "spinoza": f"{pod_b}, {pod_a}"}
        picture("resumed", resumed, asks("Are we free, or only unaware of what moves us?"), **WIDE)
        picture("degraded", {**three, "spinoza": local}, asks("What is joy?"), **WIDE)
        picture("booting", {**three, "spinoza": f"{engine}, {slow_}"}, boots, color_scheme="dark", **WIDE)
        picture("broken", {**three, "spinoza": pod_d}, asks("Are we free?", "error"), **WIDE)


if __name__ == "__main__":
    main()
