"""Sizes + machine facts -> where a pipeline lives. Pure: no torch, no files, no questions to the machine."""
