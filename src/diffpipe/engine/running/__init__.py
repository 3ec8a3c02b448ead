"""One call of a pipeline: arguments in, files out."""
