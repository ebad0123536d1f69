"""Every fault against every way to ask; `python -m tests.chaos`."""
