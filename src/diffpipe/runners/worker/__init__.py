"""A process a pipeline that stays loaded."""
