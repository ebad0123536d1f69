"""The page in a real browser: how soon it is there, how it keeps up with an answer, what Lighthouse says."""

import asyncio
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench import servers
from tests.bench.effort import Effort
from tests.bench.processes import CACHE, Missing, Served
from tests.bench.report import Figure, Section, Table, cell, median
from tests.lab import browser, lighthouse
from tests.lab.upstream import Exchange, Upstream, chunk

TOKENS = 5_000
TOKENS_PER_S = 200.0
TIMEOUT_MS = 60_000

Row = dict[str, float]

ASKS_AT_ONCE = """(() => {
  new MutationObserver(() => {
    const button = document.querySelector("#questions button");
    if (button && !window.asked) { window.asked = performance.now(); button.click(); }
    if (!window.told && document.querySelector(".answer .text")?.textContent) window.told = performance.now();
  }).observe(document, {childList: true, subtree: true});
})();"""
"""Asks the first example question as soon as it is on the page, and notes when the first text is."""

WATCHES_FRAMES = """(() => {
  const seen = window.frames_seen = {longest: 0, late: 0, frames: 0, long_tasks: 0, longest_task: 0};
  let before = performance.now();
  const frame = now => {
    seen.frames += 1;
    seen.longest = Math.max(seen.longest, now - before);
    if (now - before > 50) seen.late += 1;
    before = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  new PerformanceObserver(list => {
    for (const task of list.getEntries()) {
      seen.long_tasks += 1;
      seen.longest_task = Math.max(seen.longest_task, task.duration);
    }
  }).observe({type: "longtask"});
})()"""

PARAGRAPH = (
    "La **joie** est le passage d'une *moindre* à une plus grande `perfection`, et ce passage se sent . " * 3
    + "\n\n- un point de la liste\n- et un autre\n\n> une citation qui dure quelques mots\n\n"
)


def measure(effort: Effort) -> Section:
    """In each round a cold visit, an idle page for comparison, and the long answer; then Lighthouse."""
    if not browser.is_there():
        raise Missing(f"no browser: {browser.HOW}")
    section = Section("page")
    tokens = int(TOKENS * effort.scale)
    cold, idle, long, stops, verdicts = [], [], [], [], []
    with Upstream(_recites(tokens)) as pod, _gateway(pod) as sive:
        for number in range(effort.rounds):
            print(f"page: round {number + 1} of {effort.rounds}", file=sys.stderr)
            # A browser anew each time: nothing of the page is in its cache, no code of it compiled.
            with browser.browser() as chromium:
                cold.append(_cold_visit(chromium, sive))
            with browser.browser() as chromium:
                idle.append(_frames(chromium, sive, 0))
                long.append(_frames(chromium, sive, tokens))
                stops.append(_stop_ms(chromium, sive, pod))
            if lighthouse.PROGRAM.exists():
                verdicts.append(lighthouse.judged(f"http://127.0.0.1:{sive.port}/", CACHE))
    section.figures += [
        Figure("first paint of a cold page", 500, "ms", [row["paint_ms"] for row in cold]),
        Figure("first token of a cold page, embedded model", 1500, "ms", [row["token_ms"] for row in cold]),
        Figure("transferred for the page", 60, "KB", [row["kb"] for row in cold]),
        Figure(
            f"longest frame, {tokens:,} tokens at 200 a second", 50, "ms", [row["longest"] for row in long]
        ),
        Figure("Stop to the pod being left", 100, "ms", stops),
        *(
            Figure(f"Lighthouse, {name}", 95, "", [one.scores[name] for one in verdicts], at_least=True)
            for name in lighthouse.CATEGORIES
            if verdicts
        ),
    ]
    section.tables.append(_table({"long answer": long, "idle page, for comparison": idle}))
    wanting = {name for verdict in verdicts for name in verdict.wanting}
    section.remarks.append(f"Lighthouse would do better in: {', '.join(sorted(wanting)) or 'nothing'}.")
    return section


@contextmanager
def _gateway(pod: Upstream) -> Iterator[Served]:
    config = f"""[[backend]]
name = "pod"
url = "{pod.url}"
probe = "passive"
[model.local]
route = [{{ backend = "local", model = "auto" }}]
[model.pod]
route = [{{ backend = "pod", model = "m" }}]
"""
    with servers.sive(config, name="sive-page") as served:
        yield served


def _recites(tokens: int) -> Any:
    words = re.findall(r"\s*\S+", PARAGRAPH)

    async def manner(exchange: Exchange) -> None:
        if exchange.seen.method == "GET":
            await exchange.json({"object": "list", "data": []})
            return
        await exchange.head()
        clock = asyncio.get_running_loop().time
        began = clock()
        for number in range(tokens):
            await asyncio.sleep(began + number / TOKENS_PER_S - clock())
            await exchange.event(chunk(exchange, {"content": words[number % len(words)]}))
        await exchange.event(chunk(exchange, {}, "stop"))
        await exchange.done()

    return manner


def _cold_visit(chromium: Any, sive: Served) -> Row:
    page = chromium.new_page()
    page.add_init_script(ASKS_AT_ONCE)
    sizes: list[float] = []
    network = page.context.new_cdp_session(page)
    urls: dict[str, str] = {}
    network.on(
        "Network.requestWillBeSent", lambda sent: urls.update({sent["requestId"]: sent["request"]["url"]})
    )
    network.on(
        "Network.loadingFinished",
        lambda done: "/v1/" not in urls[done["requestId"]] and sizes.append(done["encodedDataLength"]),
    )
    network.send("Network.enable")
    page.goto(f"http://127.0.0.1:{sive.port}/")
    page.wait_for_selector(".turn[data-status=done]", timeout=TIMEOUT_MS)
    told = page.evaluate(
        """() => ({token: window.told,
            paint: performance.getEntriesByName('first-contentful-paint')[0].startTime})"""
    )
    return {"paint_ms": told["paint"], "token_ms": told["token"], "kb": sum(sizes) / 1000}


def _frames(chromium: Any, sive: Served, tokens: int) -> Row:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{sive.port}/")
    page.wait_for_selector("#questions button")
    page.check("input[value=pod]")
    page.evaluate(WATCHES_FRAMES)
    if tokens:
        page.fill("#question", "?")
        page.press("#question", "Enter")
        page.wait_for_selector(".turn[data-status=done]", timeout=TIMEOUT_MS)
    else:
        page.wait_for_timeout(5000)
    row: Row = page.evaluate("window.frames_seen")
    page.close()
    return row


def _stop_ms(chromium: Any, sive: Served, pod: Upstream) -> float:
    """From the press of the button to the pod noticing that nobody listens."""
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{sive.port}/")
    page.wait_for_selector("#questions button")
    page.check("input[value=pod]")
    page.fill("#question", "?")
    page.press("#question", "Enter")
    page.wait_for_selector(".turn[data-status=streaming]")
    seen = pod.seen[-1]
    pressed_at = page.evaluate(
        "() => { const at = Date.now(); document.getElementById('stop').click(); return at; }"
    )
    page.wait_for_selector(".turn[data-status=stopped]")
    while seen.left_at is None:
        time.sleep(0.001)
    page.close()
    return float(1000 * (seen.left_at + time.time() - time.monotonic()) - pressed_at)


def _table(measured: dict[str, list[Row]]) -> Table:
    header = ("frames", "longest ms", "later than 50 ms", "of", "long tasks", "longest task ms")
    names = ("longest", "late", "frames", "long_tasks", "longest_task")
    rows = [
        (name, *(cell(median(row[key] for row in found)) for key in names))
        for name, found in measured.items()
    ]
    return Table("What the browser drew.", header, rows)
