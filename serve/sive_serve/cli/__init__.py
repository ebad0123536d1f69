"""The command line: `sive serve | chat | status | config | weights | version`."""

import sys


def main() -> None:
    """Entry point; the only part of the command line that runs without ``sive[serve]``."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as exc:
        sys.exit(f"sive: the command line needs {exc.name}: pip install 'sive[serve]'")
    from sive_serve.cli.app import run

    run()
