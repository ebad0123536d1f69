"""The page in a real browser, before a real `sive serve` with its CPU model and scripted pods."""

import os
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest

from tests.conftest import ROOT, TINY, Serve, Served, launch, until
from tests.lab import lighthouse, upstream
from tests.lab.browser import Visit, browser, need, violations
from tests.lab.manners import held
from tests.lab.reciter import recites
from tests.lab.upstream import Upstream

need()

JOY = (
    "La joie est le passage de l'homme d'une moindre à une plus grande perfection. "
    "Elle n'est jamais mauvaise par elle-même, et le sage ne pense à rien moins qu'à la mort."
)
IN_CI = os.environ.get("CI") == "true"
ANSWER = ".answer .text"
LOG = "[document.getElementById('log')]"
Page = Any


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for the file."""
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A sive without configuration: the CPU answers for everybody."""
    with launch(tmp_path_factory.mktemp("plain")) as served:
        yield served


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visit]:
    """A visitor whose browser has nothing to complain of: no script error, no blocked resource, no dialog."""
    visitor = Visit(chromium)
    yield visitor
    visitor.context.close()
    assert visitor.complaints == []


def pods(*hosts: Upstream, last: str = "", more: str = "") -> str:
    """A configuration in which Spinoza speaks from these pods, each of which can go on with a text."""
    backends = "".join(
        f'[[backend]]\nname = "pod-{letter}"\nurl = "{host.url}"\nprobe = "passive"\nresume = "text"\n'
        for letter, host in zip("abc", hosts, strict=False)
    )
    rungs = [
        f'{{ backend = "pod-{letter}", model = "m", weights = "w" }}'
        for letter, _ in zip("abc", hosts, strict=False)
    ]
    return f"{more}\n{backends}\n[model.spinoza]\nroute = [{', '.join(rungs)}{last}]\n[model.kant]\n"


LOCAL_LAST = ', { backend = "local", model = "auto" }'


def ask(page: Page, question: str) -> None:
    """Type a question and press Enter."""
    page.fill("#question", question)
    page.press("#question", "Enter")


def ends(page: Page, status: str = "done", number: int = 1) -> None:
    """Wait for the end of an answer."""
    page.wait_for_selector(f".turn:nth-child({number})[data-status={status}]")


def becomes(page: Page, claim: str) -> None:
    """Wait until a claim about the document holds; the page's own policy lets nothing be evaluated in it."""
    until(lambda: page.evaluate(claim), 20, claim)


def asked(host: Upstream) -> list[Any]:
    """The questions that a pod was asked."""
    return [seen for seen in host.seen if seen.method == "POST"]


def said(page: Page) -> list[str]:
    """The answers on the page."""
    return list(page.locator(ANSWER).all_inner_texts())


def test_a_question_is_answered_in_a_text_that_grows(serve: Serve, visit: Visit) -> None:
    """Word by word, with who speaks and for how long, and the end told to screen readers once."""
    with Upstream(recites(JOY, pause_s=0.03)) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        page.evaluate(
            """() => { window.lengths = []; new MutationObserver(() => {
                const text = document.querySelector(".answer .text");
                const length = text?.innerText.length;
                if (text && window.lengths.at(-1) !== length) window.lengths.push(length);
            }).observe(document.getElementById("turns"), {childList: true, subtree: true}); }"""
        )
        ask(page, "Qu'est-ce que la joie ?")
        page.wait_for_selector(".turn[data-status=streaming]")
        assert page.get_attribute(".answer", "aria-busy") == "true"
        assert page.inner_text("#said") == ""
        ends(page)
        lengths = page.evaluate("window.lengths")
        assert len(lengths) > 8
        assert lengths == sorted(lengths)
        assert said(page) == [JOY]
        assert re.fullmatch(r"pod-a · \d+(\.\d)? s", page.inner_text(".badge"))
        assert page.locator(".not-own").count() == 0
        assert JOY in page.inner_text("#said")
        assert page.get_attribute(".answer", "aria-busy") == "false"
        body = asked(pod)[0].body
        assert body["messages"][-1] == {"role": "user", "content": "Qu'est-ce que la joie ?"}


def test_the_cpu_answers_and_is_marked_as_another_voice(plain: Served, visit: Visit) -> None:
    """Nobody mistakes the small model for the philosopher; asked by its own name it is itself."""
    page = visit.tab(f"{plain.url}/")
    page.click("#questions li:first-child button")
    ends(page)
    assert len(said(page)[0]) > 20
    assert page.inner_text(".not-own") == "Not Spinoza’s own voice: local answers instead."
    page.check("input[value=local]")
    ask(page, "Who are you?")
    ends(page)
    assert page.locator(".not-own").count() == 0
    assert page.inner_text(".badge").startswith("local · ")


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stopping_stops_the_pod_too(serve: Serve, visit: Visit, how: str) -> None:
    """What came is kept, and the next question can be typed at once."""
    with Upstream(upstream.talks_forever) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "?")
        page.wait_for_selector(".turn[data-status=streaming]")
        if how == "button":
            page.click("#stop")
        else:
            page.keyboard.press("Escape")
        until(lambda: asked(pod)[0].left_at is not None, what="the pod being left")
        ends(page, "stopped")
        assert "word" in said(page)[0]
        assert page.is_visible("#send")
        assert page.is_hidden("#stop")
        if how == "Escape":
            assert page.evaluate("document.activeElement.id") == "question"


def test_retry_asks_the_same_again(serve: Serve, visit: Visit) -> None:
    """The new answer takes the place of the old one, and of its part in the conversation."""
    with Upstream(recites("Un. Deux. Trois.")) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "one")
        ends(page)
        ask(page, "two")
        ends(page, number=2)
        page.click(".turn:last-child .deeds button:has-text('Retry')")
        until(lambda: len(asked(pod)) == 3, what="a third question")
        ends(page, number=2)
        assert page.locator(".turn").count() == 2
        assert asked(pod)[2].body["messages"] == asked(pod)[1].body["messages"]
        assert page.locator("button:has-text('Retry')").count() == 1


def test_the_last_question_can_be_rewritten(serve: Serve, visit: Visit) -> None:
    """What was typed meanwhile comes back when it is given up."""
    with Upstream(recites("Bien.")) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "frist")
        ends(page)
        page.fill("#question", "a draft")
        page.click(".question .action")
        assert page.input_value("#question") == "frist"
        page.keyboard.press("Escape")
        assert page.input_value("#question") == "a draft"
        page.click(".question .action")
        ask(page, "first")
        until(lambda: len(asked(pod)) == 2, what="the new question")
        ends(page)
        assert page.locator(".turn").count() == 1
        assert page.inner_text(".question p") == "first"
        assert [one["content"] for one in asked(pod)[1].body["messages"]] == ["first"]


def test_an_answer_that_breaks_off_goes_on(serve: Serve, visit: Visit) -> None:
    """The pod dies in the middle, another goes on with the next word, and a mark says where."""
    with Upstream(recites(JOY, cut_after=8)) as dies, Upstream(recites(JOY)) as goes_on:
        page = visit.tab(f"{serve(pods(dies, goes_on)).url}/")
        ask(page, "?")
        ends(page)
        assert said(page) == [JOY]
        assert page.inner_text(".badge").startswith("pod-a → pod-b · ")
        assert page.locator(".not-own").count() == 0
        seam = page.locator(".seam")
        assert seam.count() == 1
        assert seam.get_attribute("aria-label") == "Here the answer broke off, and pod-b carried it on"
        before = seam.evaluate("node => node.previousSibling.textContent")
        assert JOY.startswith(before)
        assert 30 < len(before) < 60


def test_an_answer_that_another_voice_goes_on_with_says_so(serve: Serve, visit: Visit) -> None:
    """From the mark on it is the CPU that speaks."""
    with Upstream(recites(JOY, cut_after=8)) as dies:
        page = visit.tab(f"{serve(pods(dies, last=LOCAL_LAST)).url}/")
        ask(page, "Qu'est-ce que la joie ?")
        ends(page)
        assert said(page)[0].startswith("La joie est le passage")
        assert page.inner_text(".badge").startswith("pod-a → local · ")
        assert "local carries on from the mark." in page.inner_text(".not-own")
        assert page.locator(".seam").count() == 1


def test_while_an_engine_boots_its_phase_is_shown(serve: Serve, visit: Visit) -> None:
    """On the welcome page, and in place of an answer as long as nobody gives one."""
    fake = Path(__file__).parent / "lab" / "fake_engine.py"
    engine = (
        f'[gateway]\nhead_s = 0.2\n[engine]\nmodel = "{TINY}/base"\ncommand = "{fake}"\nfake-boot-s = 60\n'
    )
    may = threading.Event()
    with Upstream(held(may, recites(JOY))) as pod:
        config = f"""{engine}
[[backend]]
name = "pod"
url = "{pod.url}"
probe = "passive"
[model.spinoza]
route = [{{ backend = "engine", model = "base" }}, {{ backend = "pod", model = "m" }}]
[model.kant]
route = [{{ backend = "engine", model = "base" }}]
"""
        page = visit.tab(f"{serve(config).url}/")
        page.wait_for_selector("#state:not([hidden])")
        assert page.inner_text("#state").startswith("Spinoza is waking up · The engine is starting.")
        ask(page, "?")
        page.wait_for_selector(".booting progress")
        assert "Spinoza is waking up" in page.inner_text(".booting")
        assert re.search(r"About \d+ s left\.", page.inner_text(".booting"))
        may.set()
        ends(page)
        assert page.locator(".booting").count() == 0
        assert page.inner_text(".not-own").startswith("Not Spinoza’s own voice")
        # Where nobody else is there, it waits for the engine rather than give up.
        page.check("input[value=kant]")
        visit.complaints.clear()
        ask(page, "?")
        page.wait_for_selector(".booting progress")
        page.keyboard.press("Escape")
        ends(page, "stopped")
        complaints = [one for one in visit.complaints if "503" not in one]
        visit.complaints[:] = complaints


def test_the_philosopher_and_the_language_can_be_changed_and_are_kept(plain: Served, visit: Visit) -> None:
    """Another philosopher is another conversation; a reload changes nothing."""
    page = visit.tab(f"{plain.url}/")
    assert page.inner_text("#name") == "Spinoza"
    assert page.get_attribute("html", "lang") == "en"
    page.check("input[value=kant]")
    page.click("#language")
    assert page.get_attribute("html", "lang") == "fr"
    assert page.inner_text("#name") == "Kant"
    assert page.get_attribute("#question", "placeholder") == "Interrogez Kant…"
    page.click("#questions li:first-child button")
    ends(page)
    assert page.inner_text(".not-own").startswith("Ce n’est pas la voix de Kant")
    page.reload()
    page.wait_for_selector(".turn[data-status=done]")
    assert page.get_attribute("html", "lang") == "fr"
    assert page.is_checked("input[value=kant]")
    page.check("input[value=bergson]")
    assert page.locator(".turn").count() == 0
    page.click(".past")
    assert page.inner_text(".question p") == "Qu’est-ce que le devoir ?"
    assert page.is_checked("input[value=kant]")


def test_a_persona_of_ones_own_has_its_line_and_its_questions(serve: Serve, visit: Visit) -> None:
    """From the configuration, in the picker and on the empty page; one of them is asked by pressing it."""
    with Upstream(recites("I teach.")) as pod:
        served = serve(
            f'[[backend]]\nname = "pod"\nurl = "{pod.url}"\nprobe = "passive"\n'
            '[model.hypatia]\nline = "Astronomer of Alexandria."\nquestions = ["Who taught you?"]\n'
            'route = [{ backend = "pod", model = "m" }]\n'
        )
        page = visit.tab(f"{served.url}/")
        assert "Astronomer of Alexandria." in page.inner_text("#picker")
        assert page.locator("#questions button").all_inner_texts() == ["Who taught you?"]
        page.click("#questions button")
        ends(page)
        assert asked(pod)[0].body["messages"][-1]["content"] == "Who taught you?"


@pytest.mark.parametrize("degrade", ["allow", "refuse"])
def test_another_voice_is_promised_only_where_one_may_answer(
    degrade: str, serve: Serve, visit: Visit
) -> None:
    """While the pod rests the page says so; what comes instead only where something may."""
    with Upstream(upstream.says(401)) as pod:
        config = pods(pod, last=LOCAL_LAST).replace(
            "[model.spinoza]\n", f'[model.spinoza]\ndegrade = "{degrade}"\n'
        )
        served = serve(config)
        question = {"model": "spinoza", "messages": [{"role": "user", "content": "?"}]}
        httpx2.post(f"{served.url}/v1/chat/completions", json=question, timeout=30)
        page = visit.tab(f"{served.url}/")
        page.wait_for_selector("#state:not([hidden])")
        said = page.inner_text("#state")
    assert said.startswith("Spinoza is not reachable at the moment.")
    assert ("Whoever answers instead" in said) == (degrade == "allow")


def test_a_reload_in_the_middle_of_an_answer_keeps_what_came(serve: Serve, visit: Visit) -> None:
    """It has stopped there, and the pod was left."""
    with Upstream(upstream.talks_forever) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "?")
        becomes(page, "document.querySelector('.answer .text')?.innerText.length > 100")
        page.reload()
        ends(page, "stopped")
        assert len(said(page)[0]) > 50
        until(lambda: asked(pod)[0].left_at is not None, what="the pod being left")


def test_a_failure_keeps_what_was_typed(serve: Serve, visit: Visit) -> None:
    """The question is back where it was typed, and one button asks again."""
    with Upstream(upstream.says(500)) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        page.fill("#question", "Ma question")
        # What is typed while it is asked: no question.
        page.route("**/chat/completions", lambda route: (page.fill("#question", " \n"), route.continue_()))
        page.press("#question", "Enter")
        page.wait_for_selector("#banner.bad")
        page.unroute("**/chat/completions")
        assert page.input_value("#question") == "Ma question"
        assert page.locator(".turn").count() == 0
        assert "pod-a" in page.inner_text("#banner")
        pod.manner = recites(JOY)
        page.click("#banner button:has-text('Try again')")
        ends(page)
        assert said(page) == [JOY]
        assert page.is_hidden("#banner")
        visit.complaints[:] = [one for one in visit.complaints if "503" not in one]


def test_an_answer_nobody_can_go_on_with_is_kept_and_says_so(serve: Serve, visit: Visit) -> None:
    """What came stays, with the failure beside it."""
    with Upstream(upstream.cuts_after(5)) as pod:
        config = pods(pod).replace('resume = "text"', 'resume = "none"')
        page = visit.tab(f"{serve(config).url}/")
        ask(page, "?")
        ends(page, "error")
        assert said(page) == ["w0 w1 w2 w3 w4"]
        assert "The answer broke off" in page.inner_text(".failure")
        assert page.is_visible("#banner.bad")


def test_a_sive_that_went_away_is_a_network_error(serve: Serve, visit: Visit) -> None:
    """In the reader's words, with the question kept."""
    served = serve()
    page = visit.tab(f"{served.url}/")
    served.stop()
    ask(page, "Still here?")
    page.wait_for_selector("#banner.bad")
    assert "cannot be reached" in page.inner_text("#banner")
    assert page.input_value("#question") == "Still here?"
    visit.complaints[:] = [one for one in visit.complaints if "ERR_CONNECTION_REFUSED" not in one]


def test_after_an_outage_the_first_question_is_asked_once_and_of_the_one_chosen(
    serve: Serve, visit: Visit
) -> None:
    """Who can be asked is found out before it is, and shown; what is typed meanwhile stays."""
    with Upstream(recites(JOY)) as pod:
        config = pods(pod) + 'route = [{ backend = "pod-a", model = "k" }]\n'
        page = visit.tab(f"{serve(config).url}/")
        page.check("input[value=kant]")
        page.route("**/v1/models", lambda route: route.abort())
        page.reload()
        page.wait_for_selector("#banner.bad")
        ask(page, "Nobody there?")
        page.wait_for_selector("#banner.bad")
        assert page.input_value("#question") == "Nobody there?"
        page.unroute("**/v1/models")
        waiting: list[Any] = []
        page.route("**/v1/models", lambda route: waiting.append(route))
        ask(page, "One")
        ask(page, "Two")
        page.wait_for_timeout(100)
        (only,) = waiting
        only.continue_()
        ends(page)
        assert [one.body["model"] for one in asked(pod)] == ["k"]
        assert said(page) == [JOY]
        assert page.inner_text(".question p") == "One"
        assert page.input_value("#question") == "Two"
        assert page.is_checked("input[value=kant]")
        visit.complaints[:] = [one for one in visit.complaints if "ERR_FAILED" not in one]


def test_a_voice_that_is_there_is_seldom_looked_for(plain: Served, visit: Visit) -> None:
    """A room full of open pages asks once a minute each, and not every few seconds."""
    visit.context.clock.install()
    looks: list[str] = []
    visit.context.on("request", lambda sent: sent.url.endswith("/ready") and looks.append(sent.url))
    page = visit.tab(f"{plain.url}/")
    until(lambda: page.wait_for_timeout(20) or looks, what="the first look")
    page.clock.run_for(50_000)
    assert len(looks) == 1
    page.clock.run_for(20_000)
    until(lambda: page.wait_for_timeout(20) or len(looks) == 2, what="the second look")


def test_a_key_is_asked_for_and_kept_for_the_tab_only(serve: Serve, visit: Visit) -> None:
    """A wrong one is said to be wrong; the right one is in no storage that outlives the tab."""
    served = serve(SIVE_API_KEYS="right")
    page = visit.context.new_page()
    page.goto(f"{served.url}/")
    page.wait_for_selector("#door[open]")
    assert violations(page) == []
    page.fill("#door-key", "wrong")
    page.press("#door-key", "Enter")
    page.wait_for_selector("#door-wrong:not([hidden])")
    page.fill("#door-key", "right")
    page.press("#door-key", "Enter")
    page.wait_for_selector("#questions button")
    ask(page, "Who are you?")
    ends(page)
    assert "right" not in page.evaluate("JSON.stringify({...localStorage})")
    assert "right" in page.evaluate("JSON.stringify({...sessionStorage})")
    page.reload()
    ends(page)


def test_enter_sends_and_nothing_else_does(plain: Served, visit: Visit) -> None:
    """Shift + Enter is a new line; an input method's Enter and an empty question send nothing."""
    page = visit.tab(f"{plain.url}/")
    page.press("#question", "Enter")
    page.type("#question", "one")
    page.press("#question", "Shift+Enter")
    page.type("#question", "two")
    for event in ("{isComposing: true}", "{keyCode: 229}"):
        page.eval_on_selector(
            "#question",
            f"""node => node.dispatchEvent(new KeyboardEvent("keydown",
                {{key: "Enter", bubbles: true, cancelable: true, ...{event}}}))""",
        )
    assert page.locator(".turn").count() == 0
    assert page.input_value("#question") == "one\ntwo"
    page.press("#question", "Enter")
    assert page.inner_text(".question p") == "one\ntwo"
    ends(page)


AT_REST = """() => new Promise(resolve => {
    const log = document.getElementById("log");
    let last = -1, still = 0;
    const look = () => {
        still = log.scrollTop === last ? still + 1 : 0;
        last = log.scrollTop;
        still > 20 ? resolve(last) : requestAnimationFrame(look);
    };
    look();
})"""
"""Where the reader is once wheel and keys have been followed, which takes some frames."""


@pytest.mark.parametrize("how", ["wheel", "keys"])
def test_who_scrolls_up_is_left_alone(serve: Serve, visit: Visit, how: str) -> None:
    """The text goes on below, and a button leads back to its end."""
    long = "\n\n".join(f"Paragraphe {number}. {JOY}" for number in range(60))
    with Upstream(recites(long, pause_s=0.002)) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "?")
        becomes(page, f"{LOG}.map(log => log.scrollHeight > 2 * log.clientHeight)[0]")
        becomes(page, f"{LOG}.map(log => log.scrollHeight - log.clientHeight - log.scrollTop < 80)[0]")
        page.hover("#log")
        if how == "wheel":
            page.mouse.wheel(0, -400)
        else:
            page.press("#log", "PageUp")
        page.wait_for_selector("#latest:not([hidden])")
        top = page.evaluate(AT_REST)
        height = page.evaluate("document.getElementById('log').scrollHeight")
        becomes(page, f"document.getElementById('log').scrollHeight > {height}")
        assert page.evaluate("document.getElementById('log').scrollTop") == top
        page.click("#latest")
        page.wait_for_selector("#latest", state="hidden")
        ends(page)
        assert page.evaluate(f"{LOG}.map(log => log.scrollHeight - log.clientHeight - log.scrollTop)[0]") < 80


HOSTILE = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>

[a](javascript:window.hacked=1) [b](data:text/html,<script>parent.hacked=1</script>) ![c](https://evil.example/x.png)

<a href="javascript:window.hacked=1">d</a> &lt;b&gt; <style>*{display:none}</style>
<iframe srcdoc="x"></iframe>

مرحبا بالعالم، هذه فقرة من اليمين إلى اليسار.

👩‍👩‍👧‍👦 🌿 🇫🇷 \u202e\u2066 e\u0301\u0301\u0301

```html
<script>window.hacked = 1</script>
```

[good](https://example.org/) **bold"""


def test_a_hostile_answer_stays_text(serve: Serve, visit: Visit) -> None:
    """No element of its own, no script, nothing fetched; right-to-left text reads from the right."""
    fetched: list[str] = []
    with Upstream(recites(HOSTILE)) as pod:
        served = serve(pods(pod))
        page = visit.tab(f"{served.url}/")
        page.on("request", lambda request: fetched.append(request.url))
        ask(page, HOSTILE)
        ends(page)
        assert page.evaluate("window.hacked") is None
        names = page.eval_on_selector_all(
            ".turn .text *, .question *", "nodes => nodes.map(n => n.localName)"
        )
        assert set(names) <= {"p", "pre", "code", "a", "strong", "em", "button", "span", "svg", "use"}
        hrefs = page.eval_on_selector_all(".turn .text a", "nodes => nodes.map(n => n.href)")
        assert all(href.startswith("https://") for href in hrefs)
        assert "<script>window.hacked=1</script>" in said(page)[0]
        direction = page.eval_on_selector(
            ".text p:has-text('مرحبا')", "node => getComputedStyle(node).direction"
        )
        assert direction == "rtl"
        assert page.inner_text(".question p").startswith("<img src=x")
        assert all(url.startswith(served.url) for url in fetched)
        assert violations(page) == []


@pytest.mark.parametrize("kind", ["words", "one word", "code", "marks"])
def test_a_megabyte_leaves_the_page_alive(serve: Serve, visit: Visit, kind: str) -> None:
    """It is shown, it can be stopped, and the next thing works."""
    text = {
        "words": "mot " * 250_000,
        "one word": "x" * 1_000_000,
        "code": "```\n" + "let x = 1;\n" * 90_000,
        "marks": "*a **b `c [d](e) " * 60_000,
    }[kind]

    async def pours(exchange: upstream.Exchange) -> None:
        await exchange.head()
        for start in range(0, len(text), 5000):
            await exchange.event(upstream.chunk(exchange, {"content": text[start : start + 5000]}))
        await exchange.event(upstream.chunk(exchange, {}, "stop"))
        await exchange.done()

    with Upstream(pours) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "?")
        page.wait_for_selector(".turn[data-status=done]", timeout=60_000)
        assert page.evaluate("document.querySelector('.answer .text').textContent.length") > 500_000
        page.click("#fresh")
        assert page.locator(".turn").count() == 0


@pytest.mark.skipif(not IN_CI and not lighthouse.PROGRAM.exists(), reason="install_callers.sh lighthouse")
def test_lighthouse_has_little_to_say(plain: Served, tmp_path: Path) -> None:
    """At least 95 wherever the clock has no say; how fast the page is, the benchmarks tell."""
    verdict = lighthouse.judged(f"{plain.url}/", tmp_path)
    for name in set(lighthouse.CATEGORIES) - {"performance"}:
        assert verdict.scores[name] >= 95, verdict


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_can_be_read_and_touched_by_everybody(
    chromium: Any, plain: Served, scheme: str, width: int
) -> None:
    """No violation of WCAG 2.2 AA in any state, nothing wider than the screen, nothing too small to touch."""
    options = {
        "viewport": {"width": width, "height": 740},
        "color_scheme": scheme,
        "reduced_motion": "reduce",
    }
    visitor = Visit(chromium, **options)
    page = visitor.tab(f"{plain.url}/")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert darkness < 150 if scheme == "dark" else darkness > 600
    states = [violations(page)]
    page.click("#questions li:nth-child(2) button")
    ends(page)
    states.append(violations(page))
    page.click(".question .action")
    states.append(violations(page))
    if width == 360:
        assert page.is_hidden("#picker")
        page.click("#menu")
        page.wait_for_selector("#rail.open")
        states.append(violations(page))
    assert states == [[]] * len(states)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, label.voice, textarea, input:not([type=radio])")]
            .filter(node => node.checkVisibility({visibilityProperty: true}))
            .map(node => [node.id || node.className, node.getBoundingClientRect()])
            .filter(([, box]) => box.width < 44 || box.height < 44)
            .map(([name, box]) => [name, box.width, box.height])"""
    )
    assert small == []
    visitor.context.close()
    assert visitor.complaints == []


def test_the_theme_can_be_turned_and_is_kept(plain: Served, visit: Visit) -> None:
    """Whatever the system prefers."""
    page = visit.tab(f"{plain.url}/")
    color = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(color)
    page.click("#theme")
    after = page.evaluate(color)
    assert after != before
    page.reload()
    assert page.evaluate(color) == after


def test_two_tabs_share_what_they_keep(plain: Served, visit: Visit) -> None:
    """What one asks the other lists; what one deletes is gone in both; neither loses its own."""
    one, other = (visit.tab(f"{plain.url}/") for _ in range(2))
    other.click("#fresh")
    ask(one, "From one")
    ends(one)
    other.wait_for_selector(".past:has-text('From one')")
    ask(other, "From the other")
    ends(other)
    one.wait_for_selector(".past:has-text('From the other')")
    assert one.inner_text(".question p") == "From one"
    one.hover("li:has-text('From the other')")
    one.click("li:has-text('From the other') .icon")
    becomes(other, "document.querySelectorAll('.past').length === 1")


def test_what_is_deleted_while_it_is_answered_does_not_come_back(serve: Serve, visit: Visit) -> None:
    """Neither on the page nor in the browser, and the pod is left."""
    with Upstream(upstream.talks_forever) as pod:
        page = visit.tab(f"{serve(pods(pod)).url}/")
        ask(page, "Forget this")
        page.wait_for_selector(".turn[data-status=streaming]")
        page.hover("li:has(.past)")
        page.click("#conversations .icon")
        until(lambda: asked(pod)[0].left_at is not None, what="the pod being left")
        page.reload()
        page.wait_for_selector("#questions button")
        assert page.locator(".past").count() == 0


def test_conversations_can_be_exported_and_deleted(plain: Served, visit: Visit) -> None:
    """All of them, as JSON; deleting asks first."""
    page = visit.tab(f"{plain.url}/")
    ask(page, "Keep this")
    ends(page)
    with page.expect_download() as download:
        page.click("#save")
    assert "Keep this" in Path(download.value.path()).read_text(encoding="utf-8")
    page.click("#clear")
    assert visit.complaints == ["Delete all conversations kept in this browser?"]
    assert page.locator(".past").count() == 1
    visit.complaints.clear()
    page.evaluate("window.confirm = () => true")
    page.click("#clear")
    assert page.locator(".past").count() == 0
    assert page.evaluate("Object.keys(localStorage).filter(key => key.includes('conversation'))") == []


def test_broken_and_full_storage_do_not_stop_it(plain: Served, visit: Visit) -> None:
    """What cannot be read is passed over; what finds no room is said, and the answer is there."""
    page = visit.tab(f"{plain.url}/")
    page.evaluate(
        """() => { localStorage.setItem("sive/conversation/x", "{broken");
            localStorage.setItem("sive/current", "x");
            localStorage.setItem("fill", "x".repeat(5 * 1024 * 1024 - 400)); }"""
    )
    page.reload()
    page.wait_for_selector("#questions button")
    ask(page, "Room? " * 200)
    ends(page)
    assert "no room left" in page.inner_text("#banner")
    assert len(said(page)[0]) > 5


def test_a_page_of_another_host_may_ask_directly(serve: Serve, visit: Visit, tmp_path: Path) -> None:
    """With the gateway named in the page, and the page in `cors_origins`: streams, headers and cancelling."""
    public = ROOT / "clients" / "netlify" / "public"

    class Site(SimpleHTTPRequestHandler):
        extensions_map: ClassVar = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(public))

        def do_GET(self) -> None:
            if self.path != "/":
                return super().do_GET()
            html = (public / "index.html").read_text()
            html = html.replace('"sive-api" content="edge"', '"sive-api" content="direct"')
            html = html.replace('"sive-gateway" content=""', f'"sive-gateway" content="{served.url}"')
            html = html.replace("connect-src 'self'", f"connect-src 'self' {served.url}")
            return self._reply(html.encode(), "text/html; charset=utf-8")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._reply(b'{"token": "t", "expires_in": 300}', "application/json")

        def _reply(self, body: bytes, media_type: str) -> None:
            self.send_response(200)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site, Upstream(upstream.talks_forever) as pod:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{site.server_port}"
        served = serve(pods(pod, more=f'[gateway]\ncors_origins = ["{origin}"]\n'))
        page = visit.tab(f"{origin}/")
        cancels: list[int] = []
        page.on("response", lambda told: told.url.endswith("/cancel") and cancels.append(told.status))
        ask(page, "?")
        page.wait_for_selector(".turn[data-status=streaming]")
        assert page.inner_text(".badge") == "pod-a"
        assert asked(pod)[0].headers["x-request-id"].startswith("page-")
        page.click("#stop")
        until(lambda: asked(pod)[0].left_at is not None, what="the pod being left")
        site.shutdown()
