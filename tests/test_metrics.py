"""What is counted of a request, read back from a real registry."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sive.report import Report
from sive_serve.metrics import MAX_TOKENS, Metrics

from tests.chain_play import call


def counted(usage: dict[str, Any] | None, *, chunks: int = 3) -> dict[str, float | None]:
    """Prompt and completion tokens after one answer, and how many requests there were."""
    registry = CollectorRegistry()
    report = Report(call(), 0.0, status=200, backend="b", first_token_at=1.0, ended_at=2.0)
    report.usage, report.chunks = usage, chunks
    Metrics(registry).observe(report)
    of_answer = {"model": "spinoza", "backend": "b"}
    tokens = {
        kind: registry.get_sample_value("sive_tokens_total", of_answer | {"kind": kind})
        for kind in ("prompt", "completion")
    }
    requests = registry.get_sample_value("sive_requests_total", of_answer | {"status": "200"})
    return tokens | {"requests": requests}


@pytest.mark.parametrize(
    "senseless", [MAX_TOKENS, 10**400, -1, 0, 1.5, "7", [7], None], ids=lambda count: str(count)[:12]
)
def test_a_count_that_is_none_is_not_counted(senseless: Any) -> None:
    """A counter cannot be taken back; the answer and its other count are in the books all the same."""
    usage = {"prompt_tokens": senseless, "completion_tokens": 2}
    assert counted(usage) == {"prompt": 0.0, "completion": 2.0, "requests": 1.0}
    usage = {"prompt_tokens": 2, "completion_tokens": senseless}
    assert counted(usage) == {"prompt": 2.0, "completion": 0.0, "requests": 1.0}


def test_a_large_count_is_counted() -> None:
    """As long as it may be one."""
    assert counted({"prompt_tokens": MAX_TOKENS - 1})["prompt"] == MAX_TOKENS - 1


def test_chunks_stand_in_for_a_count_that_never_came() -> None:
    """A stream that broke before its usage."""
    assert counted(None, chunks=3) == {"prompt": 0.0, "completion": 3.0, "requests": 1.0}
