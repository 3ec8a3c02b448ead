"""A run of the real classes on tensors without memory: what each stage holds, without weights or arithmetic."""
