"""Recognition of published lists of labelled images by a hash of their image paths; the lists are not included.

Two papers that report "1/8 of Cityscapes" may have labelled different images, and their scores then differ by more than
most methods do. The hash identifies a list: the first 16 digits of the SHA-256 of the sorted image paths, joined by
line feeds. A path is as the list writes it, relative to the data set's folder, with forward slashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from tutelage.data.dataset import Sample

# First folders of the paths in published lists; a user's root may be above or below them.
_FIRST = ("leftImg8bit", "JPEGImages")


@dataclass(frozen=True)
class PublishedList:
    """A published list of labelled images."""

    data: str
    share: str
    labeled: int
    unlabeled: int
    """Number of images of its unlabelled list."""
    source: str

    def describe(self) -> str:
        """Name of the list, for messages."""
        return f"the published {self.share} list of {self.data} ({self.source})"


_CITY = "UniMatch, UniMatch V2 and TriKD"
PUBLISHED = {
    "c7d0ac1e88e31ae5": PublishedList("Cityscapes", "1/30", 100, 2875, _CITY),
    "6d72fa678b03a477": PublishedList("Cityscapes", "1/16", 186, 2789, _CITY),
    "266b987f0f222648": PublishedList("Cityscapes", "1/8", 372, 2603, _CITY),
    "31f6f54be8ae901d": PublishedList("Cityscapes", "1/4", 744, 2231, _CITY),
    "b785c4f05cee5678": PublishedList("Cityscapes", "1/2", 1488, 1487, _CITY),
}
"""Hash of the labelled images → the list; from the lists in the repositories `LiheYoung/UniMatch` and
`mlvccn/TriKD_SemiSeg` (commit 0208a186), which name the same images."""


def listed_path(sample: Sample) -> str:
    """Path of a sample's image as in published lists: from `leftImg8bit` or `JPEGImages` on if it has such a folder,
    else relative to the data set's folder."""
    parts = (sample.name + sample.image.suffix).split("/")
    start = next((place for place, part in enumerate(parts) if part in _FIRST), 0)
    return "/".join(parts[start:])


def hash_of_paths(paths: Iterable[str]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the sorted paths, joined by line feeds."""
    return hashlib.sha256("\n".join(sorted(paths)).encode()).hexdigest()[:16]


def list_hash(samples: Iterable[Sample]) -> str:
    """Hash of the images of some samples, independent of their order and their masks."""
    return hash_of_paths(map(listed_path, samples))


def recognise(samples: Iterable[Sample]) -> PublishedList | None:
    """The published list that names exactly these images, or ``None``."""
    return PUBLISHED.get(list_hash(samples))
