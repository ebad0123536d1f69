"""Where the files of an adapter or a model are, parsed from the string in the list."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["hf", "s3", "gs", "az", "https", "file"]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder with files in it; ``str(source)`` is its canonical text, which never holds credentials.

    ``root``: the repository, bucket, container or ``https://host``; empty for a folder. ``path``: within it.
    """

    kind: Kind
    root: str
    path: str
    revision: str | None = None


def parse(text: str, folder: Path) -> Source:
    """Parse a source as it is written in the list; ``file:`` is relative to ``folder``.

    Raises:
        AdapterError: it is none; one line names the forms.
    """
    raise NotImplementedError
