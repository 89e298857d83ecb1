"""Faults that the tests must notice; ``python -m tests.mutants`` plants them one at a time."""
