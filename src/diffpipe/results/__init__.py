"""What is said of results: metadata in files, the gallery."""
