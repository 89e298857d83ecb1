"""Losses: pure functions on tensors, no state and no settings objects."""
