"""Looking at a user's folders, so that a first recipe can be written: pairs, encodings, classes, splits, groups."""

from tutelage.data.proposal.looking import Look, look

__all__ = ["Look", "look"]
