"""A working recipe proposed from folders of images and masks."""
