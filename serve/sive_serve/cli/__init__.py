"""The command line: `sive serve | chat | status | config | adapters | weights | version`."""

import sys


def main() -> None:
    """Entry point; the only part of the command line that runs without ``sive[serve]``."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as exc:
        sys.exit(
            f"sive: the command line needs {exc.name}: install sive with its extras, "
            "for instance pip install '.[serve,local]' in its folder"
        )
    from sive_serve.cli.app import run

    run()
