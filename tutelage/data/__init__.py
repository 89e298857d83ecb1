"""Datasets, label maps, views and their geometry, streams, pseudo-label files and the procedural demo data."""
