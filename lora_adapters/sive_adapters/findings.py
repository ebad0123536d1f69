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
        self._first: dict[str, Finding] = {}
        self._more: dict[str, int] = {}

    def add(self, code: str, message: str, *, is_fatal: bool = True) -> None:
        """Report something."""
        if code in self._first:
            self._more[code] = self._more.get(code, 0) + 1
        else:
            self._first[code] = Finding(code, " ".join(message.split()), is_fatal)

    def found(self) -> tuple[Finding, ...]:
        """Everything that was reported, what is fatal first."""
        found = [self._told(finding) for finding in self._first.values()]
        return tuple(sorted(found, key=lambda finding: not finding.is_fatal))

    def _told(self, finding: Finding) -> Finding:
        more = self._more.get(finding.code, 0)
        if not more:
            return finding
        return Finding(finding.code, f"{finding.message} (and {more} more like this)", finding.is_fatal)
