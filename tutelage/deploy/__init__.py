"""Prediction with a trained net on files of any size."""
