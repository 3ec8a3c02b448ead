"""What the classes of diffusers say of themselves, read without a model."""
