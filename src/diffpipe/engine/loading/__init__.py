"""A cache entry to a pipeline in memory."""
