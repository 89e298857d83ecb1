"""Nets of papers, layer by layer as published, to reproduce their results and read their files.

CIRKD (arXiv 2204.06986) and CIRKDV2: section 2 of the method's specification. Encoders keep the tensor names of the
published files, so that ImageNet weights made for them load by name; heads have other names, and
:mod:`tutelage.nets.published.cirkd_checkpoint` maps both.
"""
