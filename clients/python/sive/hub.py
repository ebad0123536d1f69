"""What a Hugging Face hub answers when it does not answer as hoped, in one line that names what was asked."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from sive.errors import SiveError

BytesTold = Callable[[int, int], None]
"""Called with the bytes that are there, and all that are expected."""


@contextlib.contextmanager
def plain_errors(
    repo: str, endpoint: str, *, error: type[SiveError], unreachable: type[SiveError]
) -> Iterator[None]:
    """Turn huggingface_hub's errors into ``error``, or ``unreachable`` where there is no network."""
    from httpx2 import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as exc:
        raise unreachable(f"{repo!r} cannot be fetched: HF_HUB_OFFLINE is set") from exc
    except errors.GatedRepoError as exc:
        raise error(f"{repo!r} is gated: accept its terms at {endpoint}/{repo} and set HF_TOKEN") from exc
    except errors.RevisionNotFoundError as exc:
        raise error(f"{endpoint} has {repo!r}, but not this revision of it: correct what follows @") from exc
    except errors.RepositoryNotFoundError as exc:
        raise error(
            f"{endpoint} has no model {repo!r} for us: check its name, and HF_TOKEN if it is private"
        ) from exc
    except errors.HFValidationError as exc:
        raise error(f"{repo!r} is neither a folder nor a model's name such as openai-community/gpt2") from exc
    except errors.HfHubHTTPError as exc:
        raise error(f"{repo!r}: {endpoint} answered {exc.response.status_code}") from exc
    except _unreachable() as exc:
        raise unreachable(
            f"{repo!r} cannot be fetched: {endpoint} is not reachable ({_first_line(exc)})"
        ) from exc
    except (HTTPError, OSError) as exc:
        raise error(f"{repo!r} cannot be fetched from {endpoint}: {_first_line(exc)}") from exc


def bytes_told_to(told: BytesTold) -> Any:
    """Return a tqdm that draws nothing and reports the bytes; huggingface_hub also counts files with it."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]  # huggingface_hub's, without stubs

    class Reporter(tqdm):  # type: ignore[misc]  # it is untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            called = str(kwargs.get("desc", ""))
            self._is_bytes = kwargs.get("unit") == "B" and called.startswith("Downloading")
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "gui": False, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._is_bytes and self.total:
                told(int(self.n), int(self.total))
            return None

        def refresh(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

    return Reporter


def _unreachable() -> tuple[type[Exception], ...]:
    from httpx2 import TransportError
    from huggingface_hub.errors import LocalEntryNotFoundError

    return (TransportError, LocalEntryNotFoundError)


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0]


class _Nowhere:
    def write(self, text: str) -> None:
        """Draw nothing."""

    def flush(self) -> None:
        """Draw nothing."""
