"""The commands, each importing what it needs when it runs: `sive --help` is quick."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from sive.errors import SiveError

from sive_serve.cli import adapters as adapter_commands
from sive_serve.cli import weights

app = typer.Typer(
    name="sive",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="One OpenAI-compatible endpoint that always answers, and says honestly who is speaking.",
)
app.add_typer(weights.app, name="weights", help="CPU models on this machine.")
app.add_typer(
    adapter_commands.app, name="adapters", help="Adapters: their list, and changes while they are served."
)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="A sive.toml.", show_default=False)]
UrlOption = Annotated[
    str | None, typer.Option(help="A sive, for instance http://127.0.0.1:8000.", show_default=False)
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", help="Its key; default: the first of SIVE_API_KEYS.", show_default=False),
]


def run() -> None:
    """Run the command line; an error of ours is one line on stderr and exit status 1."""
    try:
        app()
    except SiveError as exc:
        typer.echo(f"sive: {exc}", err=True)
        raise SystemExit(1) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        from sive import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint that always answers, and says honestly who is speaking."""


@app.command(epilog="Example: sive serve --port 8080 --engine Qwen/Qwen2.5-14B-Instruct")
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; also PORT.", show_default="8000", min=0, max=65535)
    ] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Start vLLM with this model.", show_default=False)
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="An adapters.toml for the engine.", show_default=False)
    ] = None,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option()] = "info",
) -> None:
    """Serve an OpenAI-compatible endpoint; with no configuration it answers from this CPU."""
    from sive_serve.cli.serve import serve as run_server

    said: dict[str, Any] = {
        "gateway.host": host,
        "gateway.port": port,
        "engine.model": engine,
        "engine.adapters": adapters,
    }
    run_server(config, {key: value for key, value in said.items() if value is not None}, log_level)


@app.command(epilog="Example: sive chat spinoza --url http://127.0.0.1:8000")
def chat(
    model: Annotated[str, typer.Argument(help="Who to talk to.")] = "spinoza",
    url: UrlOption = None,
    api_key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk to a model and see who answers: --url, else the gateway on this machine, else in this process."""
    from sive_serve.cli.chat import chat as talk

    talk(model, url=url, api_key=api_key, config=config)


@app.command(epilog="Example: sive status --url http://127.0.0.1:8000")
def status(url: UrlOption = None, api_key: KeyOption = None, config: ConfigOption = None) -> None:
    """Show what a running gateway serves, by whom, and how its engine does."""
    from sive_serve.cli.status import status as show

    show(url=url, api_key=api_key, config=config)


@app.command("config", epilog="Example: PORT=9000 sive config")
def config_(config: ConfigOption = None) -> None:
    """Print the effective configuration, where each value comes from, secrets masked."""
    from sive_serve.cli.config import show

    show(config)


@app.command()
def version() -> None:
    """Print the version."""
    from sive import __version__

    typer.echo(__version__)
