"""Classes that transformers renamed, under the names that model_index.json files of earlier years have for them."""

from __future__ import annotations

from ..seams import diffusers_seam

# transformers 4.26 called the feature extractors of its vision models image processors, 5.0 took the old names away
# (CLIP, DPT, ViT and others); it also took away those of classes that were another's copy.
ENDING, ENDING_NOW = "FeatureExtractor", "ImageProcessor"
COPIES = {"MT5Tokenizer": "T5Tokenizer", "MT5TokenizerFast": "T5Tokenizer"}


def renamed(library: str, name: str) -> str | None:
    """What a class of transformers that is not there any more is called now; None for one that has no other name.

    diffusers, which knows of one such name alone, is told of it.
    """
    if library != "transformers":
        return None
    import transformers

    if hasattr(transformers, name):
        return None
    vision = name.removesuffix(ENDING) + ENDING_NOW if name.endswith(ENDING) else ""
    now = COPIES.get(name, vision)
    if not now or not hasattr(transformers, now):
        return None
    diffusers_seam.register_renamed(name, now)
    return now
