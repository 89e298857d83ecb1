"""Distillation: a frozen teacher teaches a student on the same crops, by one or several terms.

``distill`` holds the method; each other file is one term and reads like its paper's method section. A term is a small
module: a loss with its weight, and whatever it must learn or remember (alignment, projections, queues). Combining
terms is configuration: ``losses: {cwd: 3.0, pixel_kd: 1.0}``.
"""
