"""Scan of a user's folders for a first recipe: image and mask pairs, mask encodings, classes, splits, groups."""

from tutelage.data.proposal.folder_scan import FolderScan, look

__all__ = ["FolderScan", "look"]
