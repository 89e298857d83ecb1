"""A toy city: street scenes with labels, painted by rule, so that everything can be tried without a download.

A scene is drawn in metres (:mod:`~tutelage.data.toycity.layout`), given the look of one of two domains
(:mod:`~tutelage.data.toycity.appearance`), painted far to near (``canvas``, ``street``, ``actors``), recorded
(:mod:`~tutelage.data.toycity.picture`) and written as a data set (:mod:`~tutelage.data.toycity.folder`).
"""

from tutelage.data.toycity.appearance import Domain
from tutelage.data.toycity.folder import generate, is_complete
from tutelage.data.toycity.picture import CLASSES, DOMAINS, IGNORE_INDEX, PALETTE, render

__all__ = ["CLASSES", "DOMAINS", "IGNORE_INDEX", "PALETTE", "Domain", "generate", "is_complete", "render"]
