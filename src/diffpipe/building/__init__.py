"""Build requests to cache entries, and making an entry again."""
