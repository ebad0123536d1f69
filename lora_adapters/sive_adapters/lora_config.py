"""``adapter_config.json``: what an adapter says of itself, and what of it vLLM cannot serve."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sive.errors import AdapterError

from sive_adapters.findings import Findings
from sive_adapters.store import CONFIG_FILE

MAX_CONFIG_BYTES = 4_000_000
MAX_ALPHA = 1e9

# As many as there are modules, or a few with a wildcard. What repeats groups ("(a+)+") or often can take
# years to match, here and within vLLM.
MAX_PATTERNS, MAX_WILD_PATTERNS = 10_000, 64
WILD = re.compile(r"[*+?{(|]")
DANGEROUS = re.compile(r"\)[*+?{]|(?:[*+{].*){3}|\\\d|\(\?")

UNSUPPORTED = {
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "adapted parameters of experts",
    "trainable_token_indices": "trained tokens",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Keys of PEFT for what vLLM refuses, or computes as if it were a plain LoRA."""

PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to begin a training that leave the base's weights alone, as vLLM 0.32 lists them."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What matters of an ``adapter_config.json``: ranks and scalings, by module."""

    r: int
    lora_alpha: float
    use_rslora: bool
    target_modules: frozenset[str]
    is_partial: bool
    base_model: str
    _ranks: tuple[tuple[re.Pattern[str], int], ...]
    _alphas: tuple[tuple[re.Pattern[str], float], ...]

    @property
    def largest_rank(self) -> int:
        """The largest rank of any module."""
        return max(self.r, *(rank for _, rank in self._ranks)) if self._ranks else self.r

    def rank(self, module: str) -> int:
        """The rank of a module, named without ``base_model.model.``; of patterns the first counts."""
        return next((rank for pattern, rank in self._ranks if pattern.match(module)), self.r)

    def scaling(self, module: str) -> float:
        """What the module's B is multiplied by."""
        alpha = next((alpha for pattern, alpha in self._alphas if pattern.match(module)), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def lora_rank(folder: Path) -> int:
    """Return the largest rank an adapter was trained with: ``r``, or one of its ``rank_pattern``.

    vLLM refuses an adapter whose rank is above ``--max-lora-rank``.

    Raises:
        AdapterError: ``adapter_config.json`` is missing or describes no LoRA.
    """
    file = folder / CONFIG_FILE
    config = read_json(file)
    # vLLM answers 200 for a LoKr and then computes it as if it were a LoRA.
    if config.get("peft_type") != "LORA":
        raise AdapterError(f'{file} describes no LoRA: vLLM serves only "peft_type": "LORA"')
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    if not all(_is_rank(rank) for rank in ranks):
        raise AdapterError(f"{file} has no usable rank: r is {config.get('r')!r}, expected a positive number")
    return int(max(ranks))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a small JSON file.

    Raises:
        AdapterError: it cannot be read, or is not an object, or says something twice.
    """
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterError(f"{file} has {file.stat().st_size} bytes: it is no configuration")
        config = json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
    except OSError as exc:
        raise AdapterError(f"cannot read {file}: {exc.strerror}; PEFT's save_pretrained writes it") from exc
    except (ValueError, RecursionError) as exc:
        raise AdapterError(f"{file} is not JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise AdapterError(f"{file} describes no LoRA: it is not a JSON object")
    return config


def lora_config(config: Mapping[str, Any], findings: Findings) -> LoraConfig | None:
    """Check what an adapter says of itself; None when its ranks and scalings cannot be known."""
    kind = config.get("peft_type")
    if kind != "LORA":
        findings.add(
            "peft_type",
            f'peft_type is {shown(kind)}: vLLM serves only "LORA" and computes others as if they were one: '
            "train a LoRA, or merge it into its base",
        )
    _refuse_features(config, findings)
    ranks = _patterns(config, "rank_pattern", findings)
    alphas = _patterns(config, "alpha_pattern", findings)
    if not _is_rank(config.get("r")):
        findings.add("rank", f"r is {shown(config.get('r'))}: it must be a positive number")
    if not _is_alpha(config.get("lora_alpha")):
        findings.add(
            "alpha", f"lora_alpha is {shown(config.get('lora_alpha'))}: it must be a positive number"
        )
    if not (_is_rank(config.get("r")) and _is_alpha(config.get("lora_alpha"))):
        return None
    if ranks is None or alphas is None:
        return None
    targets = config.get("target_modules")
    return LoraConfig(
        r=config["r"],
        lora_alpha=float(config["lora_alpha"]),
        use_rslora=config.get("use_rslora") is True,
        target_modules=frozenset(map(str, targets)) if isinstance(targets, list) else frozenset(),
        is_partial=config.get("layers_to_transform") is not None or bool(config.get("exclude_modules")),
        base_model=str(config.get("base_model_name_or_path") or ""),
        _ranks=tuple((pattern, int(rank)) for pattern, rank in ranks),
        _alphas=alphas,
    )


def shown(value: object) -> str:
    """A value as a message shows it: short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_features(config: Mapping[str, Any], findings: Findings) -> None:
    if config.get("use_dora"):
        findings.add("dora", "use_dora is true: vLLM serves no DoRA: train without it, or merge it")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        findings.add(
            "bias", f"bias is {shown(config.get('bias'))}: vLLM serves no trained biases: train with none"
        )
    if saved := config.get("modules_to_save"):
        findings.add(
            "modules_to_save",
            f"modules_to_save is {shown(saved)}: vLLM serves only low-rank layers: train without",
        )
    if not isinstance(config.get("target_modules"), (list, str)):
        findings.add(
            "target_modules",
            f"target_modules is {shown(config.get('target_modules'))}: vLLM needs a list or a pattern",
        )
    if type(config.get("use_rslora", False)) is not bool:
        findings.add("alpha", f"use_rslora is {shown(config['use_rslora'])}: it must be true or false")
    for key, what in UNSUPPORTED.items():
        if config.get(key):
            findings.add("unsupported", f"{key} is set: vLLM serves no {what}: train a plain LoRA")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        findings.add(
            "unsupported",
            f"init_lora_weights is {shown(init)}, which changes the base's weights: convert it with PEFT's "
            "path_initial_model_for_weight_conversion",
        )


def _patterns(
    config: Mapping[str, Any], key: str, findings: Findings
) -> tuple[tuple[re.Pattern[str], float], ...] | None:
    """``rank_pattern`` or ``alpha_pattern``, compiled as PEFT and vLLM read them."""
    patterns = config.get(key) or {}
    is_fit = _is_rank if key == "rank_pattern" else _is_alpha
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        findings.add("pattern", f"{key} is {shown(patterns)}: it must be a table of module names")
        return None
    if sum(1 for text in patterns if WILD.search(text)) > MAX_WILD_PATTERNS:
        findings.add(
            "pattern", f"{key} has more than {MAX_WILD_PATTERNS} wildcards: write the modules' names"
        )
        return None
    compiled: list[tuple[re.Pattern[str], float]] = []
    for text, value in patterns.items():
        if not is_fit(value):
            findings.add(
                "pattern", f"{key} has {shown(value)} for {shown(text)}: it must be a positive number"
            )
            return None
        if len(text) > 256 or DANGEROUS.search(text):
            findings.add("pattern", f"{key} has {shown(text)}: write the module's name, or a simple pattern")
            return None
        try:
            compiled.append((re.compile(rf"(?:.*\.)?(?:{text})$"), value))
        except re.error as exc:
            findings.add("pattern", f"{key} has {shown(text)}, which is no pattern: {exc}")
            return None
    return tuple(compiled)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("it has a key twice")
    return values


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_alpha(value: object) -> bool:
    return isinstance(value, (int, float)) and value is not True and 0 < value < MAX_ALPHA
