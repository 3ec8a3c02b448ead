"""The plain data and errors that every other room knows."""
