"""No row asks for a repository that is gone from the hub, or that moved."""

from __future__ import annotations

from diffpipe.catalog import BUILTIN

# Gone since November 2025 (diffusers#12874), and moved in May 2026.
GONE = {
    "stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2", "stabilityai/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-inpainting",
    "dg845/LTX-2.3-Diffusers", "dg845/LTX-2.3-Distilled-Diffusers",
}  # fmt: skip


def test_rows_name_no_repository_that_is_gone() -> None:
    rows = [row for provider in BUILTIN.values() for row in provider.types]
    named = {one for row in rows for one in (*row.repositories, *row.components.values())}
    assert len(named) > 40
    assert not named & GONE
