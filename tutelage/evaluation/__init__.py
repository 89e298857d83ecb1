"""Metrics, protocols, sliding windows, intervals and comparisons."""
