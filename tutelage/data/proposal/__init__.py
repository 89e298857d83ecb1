"""Looking at a user's folders, so that a first recipe can be written: pairs, encodings, classes, splits, groups."""

from tutelage.data.proposal.folder_scan import FolderScan, look

__all__ = ["FolderScan", "look"]
