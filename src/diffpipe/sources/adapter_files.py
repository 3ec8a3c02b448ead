"""Files of adapters: what shows that one is, and how strong it is by PEFT's adapter_config.json beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path, PurePosixPath

from ..core.canonical import JsonObject
from ..core.errors import NotFoundError, UsageError
from ..core.parsing import Fields, Misfit, parse_json
from ..storage.disk import shortened
from ..storage.opening import LARGEST_TEXT, read_regular

LARGEST = 10_000_000  # characters; a pattern has a line for each layer at most
# peft/utils/constants.py
STEM, CONFIGURATION = "adapter_model", "adapter_config.json"
# In the names of an adapter's tensors, in any layout.
NAMES = re.compile(r"lora|lokr|loha|hada_|ia3_l|on_input|\.diff|[wb]_norm$|\.alpha|dora")


def check_names(names: Iterable[str], label: str) -> None:
    """Raises UsageError for a file without a tensor that an adapter could have."""
    if not any(NAMES.search(name) for name in names):
        raise UsageError(f"{label} holds no LoRA", "a LoRA's tensors are named lora_A, lora_down and the like")


def listed(path: str, names: Collection[str], read: Callable[[str], str], *, partly: bool) -> JsonObject:
    """What the configuration beside an adapter in a repository or folder says of its strength.

    `partly`: whether there may be files that `names` lacks. Raises NotFoundError where that may be the configuration.
    """
    file = PurePosixPath(path)
    configuration = str(file.with_name(CONFIGURATION))
    if file.stem != STEM:
        return {}
    if configuration in names:
        return strength(read(configuration), path)
    if partly:
        raise NotFoundError(
            f"{configuration}, which says how strong {file.name} is, is not in the cache",
            "build once without --offline",
        )
    return {}


def beside(path: Path) -> JsonObject:
    """What the configuration beside a local adapter says of its strength; {} where there is none."""
    configuration = path.with_name(CONFIGURATION)
    if path.stem != STEM or not configuration.is_file():
        return {}
    return strength(read_regular(configuration, LARGEST_TEXT).decode(errors="replace"), path.name)


def strength(text: str, label: str) -> JsonObject:
    """What of a configuration decides how strong an adapter is; {} where that is 1, as without a configuration.

    The change of a layer is alpha / rank B A, or alpha / sqrt(rank) B A (peft/tuners/lora/layer.py). Raises UsageError
    for what is no configuration.
    """
    try:
        read = Fields(parse_json(text, LARGEST))
        if not {"lora_alpha", "r"} <= read.value.keys() and read.value.get("peft_type") != "LORA":
            return {}  # (IA)^3 has neither
        alpha, rank = float(read.number("lora_alpha")), read.number("r", least=1)
        given = _pattern(read, "alpha_pattern")
        patterns: JsonObject = {name: given.number(name) for name in given.names()}
        stabilized, other_ranks = _truth(read, "use_rslora"), bool(_pattern(read, "rank_pattern").names())
    except Misfit as error:
        raise UsageError(
            f"{CONFIGURATION} beside {shortened(label)} cannot be read: {error}",
            "take the one that belongs to the adapter",
        ) from error
    if alpha == rank and not (patterns or stabilized or other_ranks):
        return {}
    found: JsonObject = {"lora_alpha": alpha, "alpha_pattern": patterns}
    return {**found, "use_rslora": True} if stabilized else found


def _pattern(read: Fields, name: str) -> Fields:
    """Numbers by layer. Some write none of them as an empty list."""
    return Fields({}, name) if read.value.get(name) == [] else read.object(name)


def _truth(read: Fields, name: str) -> bool:
    """A switch. Some write 1 and 0."""
    value = read.value.get(name)
    return bool(value) if value in (0, 1) else read.truth(name, False)
