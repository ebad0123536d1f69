"""What a check finds, collected: all of it, each kind told once."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or worth knowing with an adapter.

    ``code`` is stable; ``message`` names the thing, the value and the way out. One that is not fatal is
    worth knowing, and the adapter may be served.
    """

    code: str
    message: str
    is_fatal: bool = True


class Findings:
    """Collects findings: of a kind that hundreds of tensors have, the first is told and the rest counted."""

    def __init__(self) -> None:
        self._of_kind: dict[tuple[str, bool], list[str]] = {}

    def add(self, code: str, message: str, *, is_fatal: bool = True) -> None:
        """Report something."""
        self._of_kind.setdefault((code, is_fatal), []).append(message)

    def found(self) -> tuple[Finding, ...]:
        """Everything that was reported, what is fatal first."""
        found = [
            Finding(code, _told(messages), is_fatal) for (code, is_fatal), messages in self._of_kind.items()
        ]
        return tuple(sorted(found, key=lambda finding: not finding.is_fatal))


def _told(messages: list[str]) -> str:
    first = " ".join(messages[0].split())
    return first if len(messages) == 1 else f"{first} (and {len(messages) - 1} more like this)"
