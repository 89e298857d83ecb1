"""Using a trained net: predicting files of any size."""
