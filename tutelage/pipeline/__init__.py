"""Runs the stages in order, skipping finished ones; the only package that builds data, nets and methods."""
