"""How a pipeline lies in memory, and what becomes of it when memory ends."""
