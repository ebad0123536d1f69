"""The scorecard: a row for each fault, a column for each way to ask."""

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Fault
from tests.chaos.scene import CALLERS
from tests.chaos.stage import Result

TITLES = {False: "A second backend of equal weights is next", True: "Only the CPU is next"}


def scorecard(results: list[Result], console: Console) -> None:
    """Print what was found: a table for each kind of next rung, then every unexpected cell in full."""
    normal_s = {one.cell.caller: one.seconds for one in results if one.cell.fault.name == "nothing is wrong"}
    for alone, title in TITLES.items():
        rows = [one for one in results if one.cell.alone is alone]
        if rows:
            console.print(_table(title, rows, normal_s))
    for one in results:
        if not one.is_expected:
            _explain(one, console)
    good = sum(one.is_expected for one in results)
    console.print(
        f"{good} of {len(results)} cells as expected",
        style="bold green" if good == len(results) else "bold red",
    )


def _table(title: str, results: list[Result], normal_s: dict[str, float]) -> Table:
    table = Table("fault", "expected", *CALLERS, title=f"{title} (outcome, attempts, extra seconds)")
    faults: dict[str, Fault] = {one.cell.fault.name: one.cell.fault for one in results}
    for name, fault in faults.items():
        found = {one.cell.caller: one for one in results if one.cell.fault.name == name}
        cells = [_cell(found.get(caller), normal_s.get(caller, 0)) for caller in CALLERS]
        expected = dict.fromkeys(
            fault.expected(stream=stream, alone=results[0].cell.alone) for stream in (True, False)
        )
        table.add_row(name, "; JSON: ".join(expected).replace("|", " or "), *cells)
    return table


def _cell(result: Result | None, normal_s: float) -> str:
    if result is None:
        return "[dim]not played[/]"
    extra = max(0.0, result.seconds - normal_s)
    text = f"{result.outcome.kind} {result.attempts} {extra:.2f}"
    return f"[green]{text}[/]" if result.is_expected else f"[bold red]✗ {text}[/]"


def _explain(result: Result, console: Console) -> None:
    cell = result.cell
    where = f"{cell.fault.name}, {cell.caller}{', CPU' if cell.alone else ''}"
    console.print(
        f"\n✗ {where}: expected {result.expected}, got {result.outcome.kind}", style="bold", markup=False
    )
    console.print(f"  {result.outcome.why}", markup=False)
    for line in result.log:
        console.print(f"  {line}", markup=False, style="dim", soft_wrap=True)
