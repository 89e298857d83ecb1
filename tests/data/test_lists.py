"""List files in every shape in which they come."""

from pathlib import Path

import pytest

from tests.errors import raises_code
from tutelage.data.lists import locate, read_entries, read_list, sample, unique, write_list


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b", "my photo", "two  blanks", "sub/c"):
        for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
            path = tmp_path / folder / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return tmp_path


def read(root: Path, content: str | bytes, **options):
    path = root / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_list(path, root, lambda name: name.rpartition("/")[0], **options)


def pairs(root: Path, content: str | bytes) -> list[tuple[str, str | None]]:
    return [
        (s.image.relative_to(root).as_posix(), s.label and s.label.relative_to(root).as_posix())
        for s in read(root, content)
    ]


A = ("images/a.jpg", "masks/a.png")
B = ("images/b.jpg", "masks/b.png")
PHOTO = ("images/my photo.jpg", "masks/my photo.png")
BLANKS = ("images/two  blanks.jpg", "masks/two  blanks.png")


@pytest.mark.parametrize(
    "content",
    [
        "images/a.jpg masks/a.png\nimages/b.jpg masks/b.png\n",
        "images/a.jpg masks/a.png\r\nimages/b.jpg masks/b.png\r\n",
        "images/a.jpg\tmasks/a.png\nimages/b.jpg\tmasks/b.png",
        "images/a.jpg  masks/a.png  \n\n   \nimages/b.jpg     masks/b.png",
        "# labelled part\nimages/a.jpg masks/a.png\n  # more\nimages/b.jpg masks/b.png\n",
        b"\xef\xbb\xbfimages/a.jpg masks/a.png\nimages/b.jpg masks/b.png",
        "/home/someone/data/images/a.jpg /home/someone/data/masks/a.png\n/SegNet/images/b.jpg /SegNet/masks/b.png",
    ],
    ids=["blank", "CRLF", "tab", "blanks", "comments", "byte order mark", "foreign prefixes"],
)
def test_pairs(root: Path, content: str | bytes) -> None:
    assert pairs(root, content) == [A, B]


def test_images_alone(root: Path) -> None:
    assert pairs(root, "images/a.jpg\nimages/my photo.jpg\nimages/two  blanks.jpg\n") == [
        (A[0], None),
        (PHOTO[0], None),
        (BLANKS[0], None),
    ]


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_blanks_in_names(root: Path, separator: str) -> None:
    content = "".join(separator.join(pair) + "\n" for pair in (PHOTO, BLANKS, (A[0], PHOTO[1])))
    assert pairs(root, content) == [PHOTO, BLANKS, (A[0], PHOTO[1])]
    assert pairs(root, f"/old/{PHOTO[0]}{separator}/old/{PHOTO[1]}") == [PHOTO]


def test_foreign_image_with_blanks(root: Path) -> None:
    assert pairs(root, f"/old/{PHOTO[0]}\n/old/{BLANKS[0]}") == [(PHOTO[0], None), (BLANKS[0], None)]


def test_names_and_groups(root: Path) -> None:
    found = read(root, "images/sub/c.jpg masks/sub/c.png\n/old/images/a.jpg /old/masks/a.png")
    assert [(s.name, s.group) for s in found] == [("images/sub/c", "images/sub"), ("images/a", "images")]


def test_absolute_paths_that_exist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("elsewhere") / "x.jpg"
    other.touch()
    (found,) = read(root, f"{other} masks/a.png")
    assert found.image == other
    assert found.name == other.with_suffix("").as_posix()


def test_labels_may_be_left_unread(root: Path) -> None:
    (found,) = read(root, "images/a.jpg masks/is_not_there.png", labels=False)
    assert found.label is None


def test_labels_may_be_lost(root: Path) -> None:
    found = read(root, "images/a.jpg masks/z.png\nimages/b.jpg masks/b.png\nimages/sub/c.jpg\n", lost_labels=True)
    assert [s.label for s in found] == [None, root / "masks/b.png", None]
    assert [s.lost for s in found] == [f"{root / 'list.txt'}:1: file not found: {root / 'masks/z.png'}", "", ""]
    (bare,) = read(root, "images/a.jpg masks/z.png", labels=False, lost_labels=True)
    assert bare.lost == ""
    with raises_code("file-missing", "list.txt:1:", "images/z.jpg"):
        read(root, "images/z.jpg masks/a.png", lost_labels=True)


def test_missing_files_are_named(root: Path) -> None:
    for line, lost in (
        ("images/z.jpg masks/a.png", root / "images/z.jpg"),
        ("images/a.jpg masks/z.png", root / "masks/z.png"),
        ("/old/images/z.jpg /old/masks/a.png", Path("/old/images/z.jpg")),
    ):
        with raises_code("file-missing") as error:
            read(root, f"images/b.jpg masks/b.png\n\n{line}\n")
        assert error.value.message == f"{root / 'list.txt'}:3: file not found: {lost}"
        assert str(root) in error.value.remedy


def test_faulty_lists(root: Path) -> None:
    with raises_code("file-missing", "none.txt"):
        read_list(root / "none.txt", root, str)
    with raises_code("list-unreadable"):
        read_list(root, root, str)
    with raises_code("list-unreadable"):
        read(root, b"\xff\xfe\x00")
    for content in ("", "\n\n", "# nothing\n"):
        with raises_code("dataset-empty"):
            read(root, content)
    with raises_code("duplicate-name", "'images/a'", "a.jpg"):
        read(root, "images/a.jpg\nimages/b.jpg\nimages/a.jpg\n")


def test_entries_are_read_as_written(root: Path) -> None:
    (root / "list.txt").write_text("0001\n\n/x/y.png /x/z.png\n")
    where = root / "list.txt"
    assert read_entries(where, root) == [(f"{where}:1", "0001", None), (f"{where}:3", "/x/y.png", "/x/z.png")]


def test_locate(root: Path) -> None:
    assert locate("images/a.jpg", root) == root / "images/a.jpg"
    assert locate("/any/where/images/a.jpg", root) == root / "images/a.jpg"
    assert locate("/a.jpg", root) is None
    assert locate("a.jpg", root) is None


def test_written_lists_are_read_back(root: Path) -> None:
    samples = [
        sample(root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png" if labelled else None, root, str)
        for name, labelled in (
            ("a", True),
            ("b", False),
            ("my photo", True),
            ("two  blanks", False),
            ("sub/c", True),
        )
    ]
    write_list(root / "lists/mine.txt", samples, root)
    assert list(read_list(root / "lists/mine.txt", root, str)) == samples
    # A list can lie beside its root: the paths in it lead out of it.
    inner = root / "lists"
    write_list(root / "lists/inner.txt", samples, inner)
    read_back = read_list(root / "lists/inner.txt", inner, str)
    assert [s.image.resolve() for s in read_back] == [s.image for s in samples]


def test_unique(root: Path) -> None:
    one = sample(root / "a.jpg", None, root, str)
    other = sample(root / "a.png", None, root, str)
    assert unique([one], "here") == (one,)
    with raises_code("duplicate-name", "'a'"):
        unique([one, other], "here")
