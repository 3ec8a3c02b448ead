"""adapter_config.json as tools write it beside an adapter: how strong that is."""

from __future__ import annotations

import json

import pytest

from diffpipe.core.errors import UsageError
from diffpipe.sources.adapter_files import strength

PLAIN = {"peft_type": "LORA", "r": 16, "lora_alpha": 32}


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"r": 16.0}, {"lora_alpha": 32.0}, {"use_rslora": 0}, {"use_rslora": None}, {"alpha_pattern": []},
        {"rank_pattern": []}, {"alpha_pattern": None}, {"peft_type": None},
    ],
)  # fmt: skip
def test_numbers_and_empty_patterns_are_written_in_many_ways(odd: dict[str, object]) -> None:
    assert strength(json.dumps({**PLAIN, **odd}), "x") == {"lora_alpha": 32.0, "alpha_pattern": {}}


def test_a_switch_that_is_a_number() -> None:
    assert strength(json.dumps({**PLAIN, "use_rslora": 1}), "x")["use_rslora"] is True


@pytest.mark.parametrize(
    "wrong", [{"r": 0}, {"r": "a"}, {"lora_alpha": None}, {"use_rslora": "yes"}, {"alpha_pattern": [1]}]
)
def test_what_is_no_strength_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"adapter_config\.json beside x cannot be read"):
        strength(json.dumps({**PLAIN, **wrong}), "x")
