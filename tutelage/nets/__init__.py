"""Nets: encoders from timm, decoders from segmentation-models-pytorch, heads, discriminators and weights."""
