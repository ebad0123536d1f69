"""`python -m sive_serve.cli`: the command line without its script."""

from sive_serve.cli import main

main()
