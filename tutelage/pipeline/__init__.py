"""Stages in order, each skipped when its artefact is there; the one place that builds data, nets and methods."""
