"""What stands in a traced pipeline for tokenizers and processors: prompts as long as they may be, whatever they say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.canonical import JsonValue
from ...memory.sizes import PROMPT

if TYPE_CHECKING:
    import torch

# Where a tokenizer's settings do not say how many tokens its model takes.
LENGTHS: Mapping[str, int] = {"CLIPTokenizer": 77, "CLIPTokenizerFast": 77}
PREPROCESSOR = re.compile("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$")
SENSIBLE = 1 << 14  # tokens: settings that name more mean that there is no end
WORD = 1  # the id of every token


class Tokenizer:
    """Takes every prompt for one of the most tokens that are asked for, or that the model takes."""

    model_input_names = ("input_ids", "attention_mask")
    padding_side = "right"
    pad_token_id, eos_token_id, bos_token_id, unk_token_id = 0, 2, WORD, WORD
    pad_token, eos_token, bos_token, unk_token = "<pad>", "</s>", "<s>", "<unk>"
    chat_template = ""

    def __init__(self, stands_for: type, most: int) -> None:
        self.stands_for, self.model_max_length = stands_for, most
        self.added_tokens_encoder: dict[str, int] = {}
        self.tokenizer = self  # as processors have one

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What pipelines ask that treat tokenizers by their class (AudioLDM 2)."""
        return self.stands_for

    def __call__(
        self,
        text: str | Sequence[object] = "",
        *_: object,
        max_length: int | None = None,
        **__: object,
    ) -> Any:
        """Ids of WORD, all of them attended to, as many for each text."""
        import torch
        from transformers import BatchEncoding

        count = 1 if isinstance(text, str) else max(len(text), 1)
        length = max_length or min(self.model_max_length, PROMPT)
        ids = torch.full((count, length), WORD, device="cpu")
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def apply_chat_template(self, messages: Sequence[object], tokenize: bool = True, **settings: Any) -> Any:
        """Its ids, or the text that would be tokenized."""
        several = bool(messages) and isinstance(messages[0], list | tuple)
        if not tokenize:
            return [""] * len(messages) if several else ""
        made = self([""] * (len(messages) if several else 1), **settings)
        return made if settings.get("return_dict", True) else made["input_ids"]

    def tokenize(self, _text: str) -> list[str]:
        return []

    def encode(self, _text: str, **_: object) -> list[int]:
        return [WORD]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        return WORD if isinstance(tokens, str) else [WORD] * len(tokens)

    def decode(self, _ids: object, **_: object) -> str:
        return ""

    def batch_decode(self, ids: torch.Tensor, **_: object) -> list[str]:
        return [""] * len(ids)

    def __len__(self) -> int:
        return SENSIBLE


def tokenizer(cls: type, settings: Mapping[str, JsonValue]) -> Tokenizer:
    """One for a class with the settings of its tokenizer_config.json; `settings` may be empty."""
    most = settings.get("model_max_length")
    known = most if isinstance(most, int | float) and 0 < most <= SENSIBLE else None
    return Tokenizer(cls, int(known or LENGTHS.get(cls.__name__, PROMPT)))
