"""`sive weights fetch`."""

from pathlib import Path

import typer
from sive.config import process_environment
from sive_adapters.weights import Outcome, Step, Wanted, fetch_model

from sive_serve.cli.bars import DownloadBars

NO_WEIGHTS = 3
"""Exit status when only the API rung or the CPU's model is left."""

INTERRUPTED = 130


def fetch(model: str | None, to: Path | None) -> None:
    """Fetch a model, say each step on stderr, and print its folder."""
    environ = process_environment()
    try:
        outcome = _fetch(Wanted(model, environ), (to or models_dir()).expanduser().absolute())
    except KeyboardInterrupt:
        typer.echo("sive: stopped; what was fetched is kept, so ask again", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if outcome.folder is None:
        raise typer.Exit(NO_WEIGHTS)
    typer.echo(outcome.folder)


def models_dir() -> Path:
    """Where whole models are kept."""
    cache = process_environment().get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "sive" / "models"


def _fetch(wanted: Wanted, to: Path) -> Outcome:
    with DownloadBars() as bars:

        def said(step: Step) -> None:
            bars.say(f"{step.place}: {'taken' if step.is_taken else 'no'}: {step.reason}")

        return fetch_model(wanted, to, told=bars.told, said=said)
