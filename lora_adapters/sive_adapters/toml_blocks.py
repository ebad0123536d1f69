"""``adapters.toml`` as blocks of text, one an adapter: a change leaves comments and all other text alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import tomlkit
from sive.errors import AdapterError
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Array, InlineTable, Item

MARK = "\0"  # cannot stand in TOML
TRAILING = re.compile(r"(?:\A|(?<=\n))(?:[ \t]*(?:#[^\n]*)?\r?\n)*\Z")
ABOVE = re.compile(r"(?:\A|(?<=\n))(?:[ \t]*#[^\n]*\n)+\Z")


@dataclass
class _Block:
    """An adapter's text: the comment right above it, itself, and the blank lines and comments below."""

    above: str
    core: str
    below: str

    def __str__(self) -> str:
        return self.above + self.core + self.below


def rewritten(text: str, kept: Mapping[str, Mapping[str, Any]], added: Sequence[Mapping[str, Any]]) -> str:
    """Return the text with only these adapters in it: those of ``kept``, by name, then ``added``.

    The values of ``kept`` are the keys that change; one that is None goes. An adapter that goes takes the
    comment right above it along.

    Raises:
        AdapterError: the adapters are not written as ``[[adapter]]``.
    """
    head, blocks = _split(text)
    parts = [head]
    for name, block in blocks:
        if name not in kept:
            parts.append(block.below if block.below.strip() else "")
            continue
        if kept[name]:
            block.core = _changed(block.core, kept[name])
        parts.append(str(block))
    parts += [f"\n{_new(keys)}" for keys in added]
    return re.sub(r"\A\n+", "", "".join(parts)) if not head else "".join(parts)


def _split(text: str) -> tuple[str, list[tuple[str, _Block]]]:
    if text and not text.endswith("\n"):
        text += "\n"
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as exc:
        raise AdapterError(f"adapters.toml is not TOML: {exc}") from exc
    listed = document.get("adapter", AoT([]))
    if not isinstance(listed, AoT):
        raise AdapterError("write each adapter under [[adapter]]: an array is not changed in place")
    names = [str(table["name"]) for table in listed]
    for table in listed.body:
        table.trivia.indent = MARK + table.trivia.indent
    head, *texts = document.as_string().split(MARK)
    blocks: list[_Block] = []
    above = _above(head)
    head = head.removesuffix(above)
    for one in texts:
        below = _below(one)
        core, next_above = one.removesuffix(below), _above(below)
        blocks.append(_Block(above, core, below.removesuffix(next_above)))
        above = next_above
    if blocks:
        blocks[-1].below += above  # nothing follows that it could be about
    else:
        head += above
    return head, list(zip(names, blocks, strict=True))


def _below(text: str) -> str:
    """The blank lines and comments at a block's end; the end of a text over lines can look like one."""
    below = _match(TRAILING, text)
    while below:
        try:
            tomlkit.parse(text.removesuffix(below))
        except TOMLKitError:
            below = below.partition("\n")[2]
        else:
            break
    return below


def _above(text: str) -> str:
    return _match(ABOVE, text)


def _match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group() if found else ""


def _changed(core: str, keys: Mapping[str, Any]) -> str:
    document = tomlkit.parse(core)
    table = cast("AoT", document["adapter"])[0]
    for key, value in keys.items():
        if value is None:
            table.remove(key)
        else:
            table[key] = _item(value)
    return document.as_string().rstrip("\n") + "\n"


def _new(keys: Mapping[str, Any]) -> str:
    table = tomlkit.table()
    for key, value in keys.items():
        table.add(key, _item(value))
    document = tomlkit.document()
    document.add("adapter", AoT([table]))
    return document.as_string()


def _item(value: Any) -> Item:
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        array: Array = tomlkit.array()
        for one in value:
            array.append(_inline(one))
        return array.multiline(True)
    if isinstance(value, str) and "\n" in value and "\r" not in value:
        return tomlkit.string(value, multiline=True)
    item: Item = tomlkit.item(value)
    return item


def _inline(values: Mapping[str, Any]) -> InlineTable:
    table = tomlkit.inline_table()
    for key, value in values.items():
        table.append(key, _item(value) if isinstance(value, Mapping) else value)
    return table
