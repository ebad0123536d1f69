"""``sive adapters``: the adapters that are wanted, shown, checked, pinned, and changed while served."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from sive.config import load
from sive_adapters.findings import Finding
from sive_adapters.registry import Release
from sive_adapters.sources import FORMS
from sive_adapters.store import Store

from sive_serve.cli.adapter_list import described, find, list_file, local_folder, short_digest, store_of
from sive_serve.cli.output import print_json, print_table

LIST = "The list, adapters.toml, on this machine"
RUNNING = "Running sives: --url, and a key of SIVE_ADMIN_KEYS"

app = typer.Typer(help="The adapters (LoRAs) that engines are to serve.", no_args_is_help=True)

ListOption = Annotated[
    Path | None,
    typer.Option("--adapters", help="An adapters.toml; default: that of \\[engine].", show_default=False),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="A sive.toml.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False)]

UrlsOption = Annotated[
    list[str] | None,
    typer.Option("--url", help="A sive with an engine; several times for several.", show_default=False),
]
AdminKeyOption = Annotated[
    str | None,
    typer.Option(help="Default: the first of SIVE_ADMIN_KEYS.", show_default=False),
]

NOT_HERE = Finding("not_here", "its files are not on this machine: they were not checked", is_fatal=False)


@app.command("list", epilog="Example: sive adapters list", rich_help_panel=LIST)
def list_(adapters: ListOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the adapters that are wanted, and which are pinned."""
    listed = find(list_file(adapters, config))
    if as_json:
        print_json([described(adapter) for adapter in listed])
        return
    print_table(
        ("name", "version", "base model", "source"),
        [(one.name, short_digest(one.release), one.base_model, one.release.source) for one in listed],
    )


@app.command(epilog="Example: sive adapters show spinoza", rich_help_panel=LIST)
def show(
    name: str, adapters: ListOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show all that the list says of an adapter, and what a rollback goes back to."""
    (adapter,) = find(list_file(adapters, config), [name])
    if as_json:
        print_json(described(adapter))
        return
    rows = [
        ("name", adapter.name),
        ("base_model", adapter.base_model),
        *_release_rows(adapter.release),
        ("system_prompt", adapter.system_prompt or "-"),
        ("languages", ", ".join(adapter.languages) or "-"),
        *_sampling_rows(adapter.sampling),
    ]
    for release in adapter.previous:
        rows += [(f"previous {key}", value) for key, value in _release_rows(release)]
    print_table(("key", "value"), rows)


@app.command(
    epilog="Example: sive adapters check spinoza --base Qwen/Qwen2.5-14B-Instruct", rich_help_panel=LIST
)
def check(
    wanted: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FOLDER]...", show_default=False)
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Their base: a hub id or folder.", show_default=False)
    ] = None,
    adapters: ListOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with adapters before anything loads them; exit status 1 when one is to be refused."""
    reports = [
        _Report(name, folder, base or its_base)
        for name, folder, its_base in _wanted(
            wanted or [], list_file(adapters, config), store_of(load(config, asks_backends=False).settings)
        )
    ]
    if as_json:
        print_json([report.described() for report in reports])
    else:
        print_table(("adapter", "", "why"), [row for report in reports for row in report.rows()])
    if not all(report.is_fit for report in reports):
        raise typer.Exit(1)


@app.command(epilog="Example: sive adapters pin spinoza", rich_help_panel=LIST)
def pin(
    names: Names = None,
    adapters: ListOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the sha256 of adapters' files into the list: of those named, else of all that are unpinned."""
    from sive_adapters.pin import pin as write_pin

    from sive_serve.cli.bars import DownloadBars

    path, store = list_file(adapters, config), store_of(load(config, asks_backends=False).settings)
    chosen = [adapter for adapter in find(path, names) if names or not adapter.release.sha256]
    done = []
    for adapter in chosen:
        with DownloadBars() as bars:
            done.append(write_pin(path, adapter, store, told=bars.told))
        if not as_json:
            typer.echo(f"{adapter.name} {short_digest(done[-1].release)}")
    if as_json:
        print_json([described(adapter) for adapter in done])


@app.command(
    epilog="Example: sive adapters add kant hf://org/qwen-kant@v2 --url https://pod-8000.proxy.runpod.net",
    rich_help_panel=RUNNING,
)
def add(
    name: Annotated[str, typer.Argument(help="What callers will ask for.", show_default=False)],
    source: Annotated[str, typer.Argument(help=f"Where its files are: {FORMS}.", show_default=False)],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Its base model; default: the engine's.")
    ] = None,
    urls: UrlsOption = None,
    admin_key: AdminKeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Fetch, check, load and prove an adapter on running sives, then serve and list it."""
    change = {"action": "add", "name": name, "source": source} | ({"base_model": base} if base else {})
    _change(change, urls, admin_key, config)


@app.command(epilog="Example: sive adapters update spinoza hf://org/qwen-spinoza@v3", rich_help_panel=RUNNING)
def update(
    name: str,
    source: Annotated[
        str | None, typer.Argument(help="Where it is now; default: where it was.", show_default=False)
    ] = None,
    urls: UrlsOption = None,
    admin_key: AdminKeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Serve another version; the old one finishes its answers, and stays if the new one is not fit."""
    change = {"action": "update", "name": name} | ({"source": source} if source else {})
    _change(change, urls, admin_key, config)


@app.command(epilog="Example: sive adapters rollback spinoza", rich_help_panel=RUNNING)
def rollback(
    name: str, urls: UrlsOption = None, admin_key: AdminKeyOption = None, config: ConfigOption = None
) -> None:
    """Serve the version before; once more goes forward again."""
    _change({"action": "rollback", "name": name}, urls, admin_key, config)


@app.command(epilog="Example: sive adapters remove kant", rich_help_panel=RUNNING)
def remove(
    name: str, urls: UrlsOption = None, admin_key: AdminKeyOption = None, config: ConfigOption = None
) -> None:
    """Serve an adapter no more and take it off the list; what is being answered is finished."""
    _change({"action": "remove", "name": name}, urls, admin_key, config)


def _change(
    change: dict[str, str], urls: list[str] | None, admin_key: str | None, config: Path | None
) -> None:
    from sive_serve.cli.adapter_change import change_everywhere

    if not change_everywhere(change, urls=urls or [], admin_key=admin_key, config=config):
        raise typer.Exit(1)


class _Report:
    """What was found about one adapter."""

    def __init__(self, name: str, folder: Path | None, base: str | None) -> None:
        from sive_adapters.base_model import read_base_model
        from sive_adapters.check import check as look
        from sive_adapters.registry import base_model_of

        self.name = name
        self.folder = folder
        if folder is None:
            self.findings: tuple[Finding, ...] = (NOT_HERE,)
            return
        model = base_model_of(base, Path()) if base is not None else None
        known = read_base_model(model) if model is not None else None
        self.findings = look(folder, known, base_model=model)

    @property
    def is_fit(self) -> bool:
        """Could it be served?"""
        return not any(finding.is_fatal for finding in self.findings)

    def rows(self) -> list[tuple[str, str, str]]:
        """A line for each finding, one for none."""
        return [
            (self.name, "refused" if finding.is_fatal else "note", f"{finding.code}: {finding.message}")
            for finding in self.findings
        ] or [(self.name, "ok", "-")]

    def described(self) -> dict[str, Any]:
        """For ``--json``."""
        findings = [asdict(finding) for finding in self.findings]
        return {
            "name": self.name,
            "folder": str(self.folder) if self.folder else None,
            "ok": self.is_fit,
            "findings": findings,
        }


def _wanted(wanted: list[str], path: Path, store: Store) -> list[tuple[str, Path | None, str | None]]:
    """Names, folders and base models: of what is named, a folder where it is one, else of the whole list."""
    folders = {text for text in wanted if "/" in text or (Path(text).is_dir() and not _is_listed(text, path))}
    names = [text for text in wanted if text not in folders]
    listed = {} if wanted and not names else {adapter.name: adapter for adapter in find(path, names)}
    return [
        (text, Path(text).absolute(), None)
        if text in folders
        else (text, local_folder(listed[text], path, store), listed[text].base_model)
        for text in wanted or listed
    ]


def _is_listed(name: str, path: Path) -> bool:
    return path.is_file() and name in {adapter.name for adapter in find(path)}


def _sampling_rows(sampling: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"sampling.{key}", str(value)) for key, value in sampling.items()] or [("sampling", "-")]


def _release_rows(release: Release) -> list[tuple[str, str]]:
    hashes = [(f"sha256 {file}", digest) for file, digest in release.sha256.items()]
    return [("source", release.source), ("version", short_digest(release)), *hashes]
