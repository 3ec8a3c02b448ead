"""Rows of prompt files to requests, and what became of each."""
