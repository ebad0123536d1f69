"""The table: what is wrong with the hosts, what is asked, and what the caller must get."""

from dataclasses import dataclass, field
from typing import Any

from tests.lab import manners
from tests.lab.manners import after, chosen, cuts, first, flapping, ignores, rejects, rejects_prefill, speaks
from tests.lab.upstream import Manner, html, resets, says, says_head_only, stays_silent
from tests.lab.voice import Voice, render

Json = dict[str, Any]

WEIGHTS = "base+spinoza@1"
VOICE = Voice(WEIGHTS)
STRANGER = Voice("base+kant@1")
ASK = [{"role": "user", "content": "Pourquoi Dieu."}]
TOKENS = len(list(VOICE.ids(render(ASK))))
EVERYWHERE = range(TOKENS + 1)

WELL = speaks()
REFUSED = "refused"
"""In place of a manner: nobody listens on the port."""

DECLARED: Json = {"resume": "tokens", "probe": "passive"}
UNDECLARED: Json = {"probe": "passive"}
BY_POSITION: Json = DECLARED | {"position_seeds": True}
BY_TEXT: Json = {"resume": "text", "probe": "passive"}
WITHOUT_IDS = ignores("return_token_ids", then=WELL)
NO_ID_PROMPTS = chosen(lambda exchange: says(400) if isinstance(exchange.body.get("prompt"), list) else WELL)


@dataclass(frozen=True, eq=False, slots=True)
class Fault:
    """A row of the scorecard.

    ``primary``: the first host's manners, each a scene of its own with fresh hosts. ``second``: the next
    one's. ``times``: how often each scene is asked. ``expect``: what a caller gets, as ``Outcome.matches``
    reads it; ``expect_json`` when that differs for an answer in one piece; ``cpu`` when the only other rung
    is the CPU, None to leave that out. ``attempts``: on the hosts, at most. ``spares``: the second is never
    asked. ``keys``, ``second_keys`` and ``model_keys`` go into the ``[[backend]]`` and ``[model]`` tables.
    """

    name: str
    primary: tuple[Manner | str, ...]
    expect: str = "whole"
    cpu: str | None = "other"
    expect_json: str | None = None
    second: Manner = WELL
    second_voice: Voice = VOICE
    ask: Json = field(default_factory=dict)
    endpoint: str = "chat/completions"
    usage: bool = True
    times: int = 1
    attempts: int = 4
    spares: bool = False
    keys: Json = field(default_factory=lambda: DECLARED)
    second_keys: Json | None = None
    model_keys: Json = field(default_factory=dict)

    @property
    def body(self) -> Json:
        """What the caller asks, but for the model and whether it streams."""
        begin: Json = {"messages": ASK} if self.endpoint == "chat/completions" else {}
        return {**begin, "temperature": 0, "max_tokens": 64, **self.ask}

    def expected(self, *, stream: bool, alone: bool) -> str:
        """What a caller must get; ``alone``: but for the CPU."""
        if alone:
            return self.cpu or ""
        return self.expect if stream or self.expect_json is None else self.expect_json


def one(name: str, manner: Manner | str, **more: Any) -> Fault:
    """A fault with one scene."""
    return Fault(name, (manner,), **more)


def every(name: str, *made: Manner, **more: Any) -> Fault:
    """A fault with a scene for each place; the CPU is left out, which answers at one place as at any."""
    return Fault(name, made, cpu=None, **more)


TOOLS: Json = {"tools": [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]}
IMPOSSIBLE = "whole|error stream_interrupted"
"""What cannot be resumed may be saved, or end in an error event; never in half an answer."""
OTHER = "other|error stream_interrupted"

FAULTS = (
    one("nothing is wrong", WELL, cpu="whole", attempts=1, spares=True),
    # Before the first token
    one("refused port", REFUSED),
    one("reset before headers", resets),
    one("accepts and says nothing", stays_silent, attempts=2),
    one("head and then nothing", manners.head_only, attempts=2),
    one("head, role and then nothing", says_head_only, attempts=2),
    one("slow first token", speaks(breaks=manners.pause(0.5), when=after(0)), cpu="whole", attempts=1),
    one("error event first", manners.error_first),
    one("500 once", first(1, says(500), WELL), cpu="whole", spares=True),
    one("500 for ever", says(500)),
    one("503 for ever", says(503), times=5),
    one("503, Retry-After 1, once", first(1, says(503, retry_after="1"), WELL), cpu="whole", spares=True),
    one("503, Retry-After 60", says(503, retry_after="60"), attempts=2),
    one("429", says(429)),
    one("429, Retry-After 1, once", first(1, says(429, retry_after="1"), WELL), cpu="whole", spares=True),
    one("429, Retry-After 60", says(429, retry_after="60"), attempts=2),
    one("401", says(401), attempts=2),
    one("402", says(402), attempts=2),
    one("404, no such model", says(404), attempts=2),
    one("524", html(524), attempts=2),
    one("502, HTML", html(502)),
    one("200, HTML", html(200)),
    one("too long, vLLM's words", says(400, manners.VLLM_TOO_LONG), attempts=2),
    one("too long, OpenAI's words", says(400, manners.OPENAI_TOO_LONG), attempts=2),
    one(
        "too long for all",
        says(400, manners.VLLM_TOO_LONG),
        second=says(400, manners.OPENAI_TOO_LONG),
        expect="error 400 context_length_exceeded",
    ),
    one(
        "content refused",
        says(400, manners.REFUSED_CONTENT),
        expect="error 400 content_policy_violation",
        cpu="error 400 content_policy_violation",
        attempts=1,
        spares=True,
    ),
    one("rejects return_token_ids", rejects("return_token_ids", WELL), cpu="whole"),
    one(
        "rejects return_token_ids, undeclared",
        rejects("return_token_ids", WELL),
        cpu="whole",
        keys=UNDECLARED,
    ),
    one("all are down", resets, second=says(503), expect="error no_backend"),
    # In the middle
    every("cut (FIN) at every token", *(cuts(k) for k in EVERYWHERE)),
    every("cut (RST) at every token", *(cuts(k, manners.rst) for k in EVERYWHERE)),
    every("cut, undeclared, at every token", *(cuts(k) for k in EVERYWHERE), keys=UNDECLARED),
    every("cut, several tokens a chunk", *(cuts(k, step=5) for k in EVERYWHERE[::5])),
    every(
        "completions, cut at every token",
        *(cuts(k) for k in EVERYWHERE),
        endpoint="completions",
        ask={"prompt": "Pourquoi Dieu."},
    ),
    one("cut (FIN)", cuts(6)),
    one("cut (RST)", cuts(6, manners.rst)),
    one("cut, a clean end of the body", cuts(6, manners.clean_end)),
    one("cut inside an HTTP chunk", cuts(6, manners.half_chunk)),
    one("cut inside an event", cuts(6, manners.half_event)),
    one("cut inside a character", cuts(6, manners.half_character)),
    one("cut once, then well", first(1, cuts(6), WELL), cpu="whole"),
    one("cut, usage not asked", cuts(6), usage=False),
    one("cut, undeclared", cuts(6), keys=UNDECLARED),
    one("stall", cuts(6, manners.silence)),
    one("malformed event between two", cuts(6, manners.nonsense)),
    one("no [DONE]", speaks(end=manners.no_done), cpu="whole", attempts=1),
    one("no [DONE], line held", speaks(end=manners.never_ends), cpu="whole", attempts=1),
    one("[DONE] without finish_reason", cuts(6, manners.bare_done)),
    one("error event in the middle", cuts(6, manners.error_event)),
    one('finish_reason "abort"', cuts(6, manners.abort)),
    one("CRLF and comments", speaks(spelled=manners.crlf), cpu="whole", attempts=1),
    one("flapping", flapping(1, 1, resets, WELL), times=4, cpu=None),
    one("flapping in the middle", flapping(1, 1, cuts(6), WELL), times=4, cpu=None),
    one(
        "reset on a connection used before",
        first(1, WELL, first(2, resets, WELL)),
        times=2,
        cpu="whole",
        spares=True,
    ),
    one("all cut, again and again", cuts(3), second=cuts(3), expect="error"),
    one("cut, JSON in one piece", cuts(6), model_keys={"guard_json": False}),
    # And then the next one
    one("cut, the next is silent", first(1, cuts(6), WELL), second=stays_silent, cpu=None),
    one("cut, the next is refused", first(1, cuts(6), WELL), second=says(503), cpu=None),
    one("cut, the next resets once", cuts(6), second=first(1, resets, WELL), cpu=None),
    one("cut, the next takes no token ids", first(1, cuts(6), WELL), second=NO_ID_PROMPTS, cpu=None),
    one("cut, and cut again", cuts(6), second=first(1, cuts(4), WELL), cpu=None),
    every(
        "cut inside a character, twice",
        *(cuts(k, manners.half_character) for k in EVERYWHERE[:-1:4]),
        second=first(1, cuts(2, manners.half_character), WELL),
    ),
    # What has to meet at the seam
    every("cut at every token, stop string", *(cuts(k) for k in EVERYWHERE), ask={"stop": ["plus grande"]}),
    every("cut at every token, max_tokens", *(cuts(k, apart=True) for k in range(10)), ask={"max_tokens": 9}),
    one("max_tokens reached at the cut", cuts(7, apart=True), ask={"max_tokens": 7}, cpu="whole", attempts=1),
    one(
        "max_tokens reached inside a character",
        cuts(9, apart=True),
        ask={"max_tokens": 9},
        cpu="whole",
        attempts=2,  # the second settles which text the last tokens have
    ),
    one("cut, the caller wants token ids", cuts(6), ask={"return_token_ids": True}),
    one("cut, seeded", cuts(6), ask={"temperature": 1, "seed": 7}, keys=BY_POSITION),
    one("cut, sampled with a drawn seed", cuts(6), ask={"temperature": 1}, keys=BY_POSITION, cpu=None),
    # What cannot be resumed by tokens
    one("cut, logprobs", cuts(6), ask={"logprobs": True}, expect=IMPOSSIBLE, expect_json="whole", cpu=OTHER),
    one("cut, n = 2", cuts(6), ask={"n": 2}, expect=IMPOSSIBLE, expect_json="whole", cpu=OTHER),
    one("cut, tools", cuts(6), ask=TOOLS, expect=IMPOSSIBLE, expect_json="whole", cpu=OTHER),
    one(
        "cut, no token ids, greedy",
        ignores("return_token_ids", then=cuts(6)),
        second=WITHOUT_IDS,
        keys=UNDECLARED,
    ),
    one(
        "cut, no token ids, sampled",
        ignores("return_token_ids", then=cuts(6)),
        second=WITHOUT_IDS,
        ask={"temperature": 1, "seed": 7},
        keys=UNDECLARED,
        expect="error stream_interrupted",
        expect_json="whole",
    ),
    every(
        "cut, no token ids, text declared",
        *(ignores("return_token_ids", then=cuts(k)) for k in EVERYWHERE[:-1]),  # the last loses the usage
        second=WITHOUT_IDS,
        keys=BY_TEXT,
    ),
    one(
        "cut, rejects a prefill",
        ignores("return_token_ids", then=cuts(6)),
        second=rejects_prefill(WITHOUT_IDS),
        keys=UNDECLARED,
        second_keys=BY_TEXT,
    ),
    one(
        "cut, ignores a prefill",
        ignores("return_token_ids", then=cuts(6)),
        second=manners.ignores_prefill(WITHOUT_IDS),
        keys=UNDECLARED,
    ),
    one(
        "cut, other weights next",
        ignores("return_token_ids", then=cuts(6)),
        second_voice=STRANGER,
        keys=UNDECLARED,
        expect="error stream_interrupted",
        expect_json="other",
        cpu=None,
    ),
    one(
        "cut, other weights next, text declared",
        cuts(6),
        second_voice=STRANGER,
        second_keys=BY_TEXT,
        expect="other",
        cpu=None,
    ),
)
