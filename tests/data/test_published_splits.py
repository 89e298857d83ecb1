"""Published lists are known by the images that they name, whatever else is in their files."""

import hashlib
from pathlib import Path

import pytest

from tutelage.data.dataset import Sample
from tutelage.data.published_splits import PUBLISHED, hash_of_paths, list_hash, listed_path, recognise

CITY = "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit"


def sample(name: str, suffix: str = ".png") -> Sample:
    return Sample(name, Path("/data") / f"{name}{suffix}")


def test_hash_is_of_sorted_paths() -> None:
    expected = hashlib.sha256(b"a.png\nb.jpg\nsub/c.png").hexdigest()[:16]
    assert hash_of_paths(["sub/c.png", "a.png", "b.jpg"]) == expected
    assert list_hash([sample("b", ".jpg"), sample("sub/c"), sample("a")]) == expected
    labelled = [Sample("a", Path("/x/a.png"), Path("/x/m.png"), "g"), sample("b", ".jpg"), sample("sub/c")]
    assert list_hash(labelled) == expected


@pytest.mark.parametrize("above", ["", "cityscapes/", "/home/someone/cityscapes/"])
def test_paths_begin_where_published_ones_do(above: str) -> None:
    assert listed_path(sample(above + CITY)) == f"{CITY}.png"
    assert listed_path(sample(f"{above}JPEGImages/2007_000032", ".jpg")) == "JPEGImages/2007_000032.jpg"


def test_a_list_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(CITY), sample(CITY.replace("19", "20"))]
    assert recognise(samples) is None
    known = PUBLISHED["266b987f0f222648"]
    monkeypatch.setitem(PUBLISHED, list_hash(samples), known)
    assert recognise(samples[::-1]) is known
    assert recognise(samples[:1]) is None
    assert known.describe() == "the published 1/8 list of Cityscapes (UniMatch, UniMatch V2 and TriKD)"


def test_published_lists_are_those_of_the_specification() -> None:
    rows = {it.share: (key, it.labeled, it.unlabeled) for key, it in PUBLISHED.items() if it.data == "Cityscapes"}
    assert rows == {
        "1/30": ("c7d0ac1e88e31ae5", 100, 2875),
        "1/16": ("6d72fa678b03a477", 186, 2789),
        "1/8": ("266b987f0f222648", 372, 2603),
        "1/4": ("31f6f54be8ae901d", 744, 2231),
        "1/2": ("b785c4f05cee5678", 1488, 1487),
    }
    assert all(labeled + unlabeled == 2975 for _, labeled, unlabeled in rows.values())
