"""Side-by-side measurements: two ways of doing one thing, in one run, printed as ratios. Never part of the tests."""
