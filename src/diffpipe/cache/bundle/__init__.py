"""A pipeline as one file."""
