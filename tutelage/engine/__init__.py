"""The one training loop, its clock, optimizers, checkpoints and collectives."""
