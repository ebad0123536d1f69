"""``sive weights``: prepare models for the CPU, list them, say where they lie."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from sive.config import LocalSettings, load
from sive.errors import LocalModelError
from sive.local import store

app = typer.Typer(help="Models for this CPU: the last rung of every default route.", no_args_is_help=True)

WeightsDir = Annotated[Path | None, typer.Option("--weights-dir", help="Where prepared models lie.")]


@app.command(epilog="Example: sive weights prepare openai-community/gpt2")
def prepare(
    model: Annotated[
        str, typer.Argument(help="A Hugging Face model with the GPT-2 architecture, or a folder.")
    ],
    weights_dir: WeightsDir = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Another hub than HF_ENDPOINT or huggingface.co.")
    ] = None,
) -> None:
    """Download a model and convert it to int8 for the CPU, or convert a folder."""
    from sive.local import prepare as local_prepare

    try:
        with _Bars() as bars:
            directory = _directory(weights_dir)
            info = local_prepare.prepare(model, directory, endpoint=endpoint, told=bars.told)
    except LocalModelError as exc:
        typer.echo(f"sive: {exc}", err=True)
        raise typer.Exit(1) from exc
    typer.echo(f"{info.weights} in {info.path}")


@app.command(epilog="Example: sive serve --engine $(sive weights fetch Qwen/Qwen2.5-14B-Instruct)")
def fetch(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A hub's model, s3://, gs:// or az://, or a folder; without it, what the environment names.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(help="Where models for the engine lie.", show_default="~/.cache/sive/models"),
    ] = None,
) -> None:
    """Bring a whole model for the engine onto this disk and print its folder.

    Without MODEL: HF_LOCAL_MODEL_PATH, else SIVE_WEIGHTS_URL (s3://, gs://, az://), else IA_MODEL from the
    hub. Why each was taken or not is said on stderr. Exit status 3: no weights, only another rung is left.
    """
    from sive_serve.cli.fetch import fetch as run

    run(model, to)


@app.command("list", epilog="Example: sive weights list")
def list_(weights_dir: WeightsDir = None) -> None:
    """List the models that are prepared, the largest first."""
    directory = _directory(weights_dir)
    found = store.prepared(directory)
    if not found:
        typer.echo(f"none in {directory}: sive weights prepare openai-community/gpt2", err=True)
    for info in found:
        typer.echo(f"{info.name}\t{info.size_bytes // store.MB} MB\t{info.weights}\t{info.path}")


@app.command(epilog="Example: sive weights path openai-community/gpt2")
def path(
    model: Annotated[
        str | None, typer.Argument(help="A prepared model; without it, the folder of all.")
    ] = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Print the folder of a prepared model, or the one they all lie in."""
    directory = _directory(weights_dir)
    try:
        typer.echo(store.find(model, directory).path if model else directory)
    except LocalModelError as exc:
        typer.echo(f"sive: {exc}", err=True)
        raise typer.Exit(1) from exc


def _directory(weights_dir: Path | None) -> Path:
    return store.weights_dir(
        load().settings.local if weights_dir is None else LocalSettings(weights_dir=weights_dir)
    )


class _Bars:
    """A bar for the download and one for the conversion, on stderr."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn())
        speed = (DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        quiet = not console.is_terminal
        self._bars = {
            "download": Progress(*columns, *speed, console=console, transient=True, disable=quiet),
            "convert": Progress(
                *columns,
                TextColumn("{task.percentage:.0f} %"),
                console=console,
                transient=True,
                disable=quiet,
            ),
        }
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def told(self, stage: Literal["download", "convert"], done: int, total: int) -> None:
        """Move the bar of a stage; a stage that begins ends the one before."""
        bar = self._bars[stage]
        if stage not in self._tasks:
            self._stop()
            bar.start()
            self._tasks[stage] = bar.add_task(stage, total=total)
        bar.update(self._tasks[stage], completed=done, total=total)

    def _stop(self) -> None:
        for stage in self._tasks:
            self._bars[stage].stop()
