"""The only room that imports torch, diffusers, transformers, peft and PIL. Import it inside functions."""
