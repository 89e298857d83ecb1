"""Labelling strategies: run nets over images and write maps."""
