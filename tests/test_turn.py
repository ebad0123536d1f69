"""One turn of the event loop: it does not last, and everything happens in order."""

import asyncio
import time

from sive.wires.turn import LONG_ENOUGH_S, Turn


def test_a_long_turn_is_ended_and_others_have_theirs() -> None:
    """Work that came at once is spread over turns, in order; a timer that is due does not wait for all."""

    async def main() -> list[str]:
        turn, seen, done = Turn(), list[str](), asyncio.Event()
        asyncio.get_running_loop().call_later(0, seen.append, "timer")

        def work(name: str) -> None:
            seen.append(name)
            until = time.perf_counter() + LONG_ENOUGH_S
            while time.perf_counter() <= until:
                pass

        for number in range(20):
            turn.run(work, str(number))
        turn.run(done.set)
        await done.wait()
        return seen

    seen = asyncio.run(main())
    assert [name for name in seen if name != "timer"] == [str(number) for number in range(20)]
    assert seen.index("timer") < 5


def test_what_comes_later_waits_behind_what_was_put_off() -> None:
    """Bytes of a connection, and its end, must not overtake those before them."""

    async def main() -> list[int]:
        turn, seen, done = Turn(), list[int](), asyncio.Event()
        turn.run(time.sleep, 2 * LONG_ENOUGH_S)
        turn.run(seen.append, 1)
        assert seen == []
        turn.run(seen.append, 2)
        turn.run(done.set)
        await done.wait()
        turn.run(seen.append, 3)
        return seen

    assert asyncio.run(main()) == [1, 2, 3]


def test_one_failure_is_not_the_others() -> None:
    """What was put off runs whatever became of that before it; the loop is told."""

    async def main() -> tuple[list[int], list[str]]:
        turn, seen, told, done = Turn(), list[int](), list[str](), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        turn.run(time.sleep, 2 * LONG_ENOUGH_S)
        turn.run(int, "x")
        turn.run(seen.append, 1)
        turn.run(done.set)
        await done.wait()
        return seen, told

    seen, told = asyncio.run(main())
    assert seen == [1]
    assert "invalid literal" in told[0]
