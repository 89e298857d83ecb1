"""A toy city: procedural street scenes with labels, for examples and tests without a download.

A scene is laid out in metres (:mod:`~tutelage.data.toycity.layout`), gets the appearance of one of two domains
(:mod:`~tutelage.data.toycity.appearance`), is painted from far to near (``canvas``, ``street``, ``actors``), rendered
as an image (:mod:`~tutelage.data.toycity.picture`) and written as a data set (:mod:`~tutelage.data.toycity.folder`).
"""

from tutelage.data.toycity.appearance import Domain
from tutelage.data.toycity.folder import generate, is_complete
from tutelage.data.toycity.picture import CLASSES, DOMAINS, IGNORE_INDEX, PALETTE, render

__all__ = ["CLASSES", "DOMAINS", "IGNORE_INDEX", "PALETTE", "Domain", "generate", "is_complete", "render"]
