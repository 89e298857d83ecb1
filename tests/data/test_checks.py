"""Every finding is found where its fault was planted, with the right file, and nowhere on clean data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tutelage.data import pictures, published_splits, statistics
from tutelage.data.checks import CheckSettings, Finding, check_datasets, format_findings, guess_roles, poisons, worst
from tutelage.data.checks.balance import BalanceLimits
from tutelage.data.checks.images import SizeLimits
from tutelage.data.checks.shifts import colour_distance
from tutelage.data.checks.subject import named_roles
from tutelage.data.dataset import Classes, Dataset, Sample
from tutelage.data.labels import LabelMap, identity, pack
from tutelage.data.pictures import read_pictures
from tutelage.data.published_splits import PublishedList, list_hash

CLASSES = Classes(("background", "road", "car"))
HEIGHT, WIDTH = 64, 96
Data = dict[str, Dataset]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known from another test."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path_factory.mktemp("cache")))


def blocks(
    seed: int, values: int, size: tuple[int, int] = (HEIGHT, WIDTH), channels: tuple[int, ...] = ()
) -> np.ndarray:
    """Random blocks of 8 pixels: something to recognise."""
    coarse = np.random.default_rng(seed).integers(0, values, (size[0] // 8, size[1] // 8, *channels), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def picture(path: Path, seed: int, size: tuple[int, int] = (HEIGHT, WIDTH), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks(seed, 4, size, (3,)) * 80).save(path, **options)


def mask(path: Path, values: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def split(root: Path, name: str, count: int, first: int = 0) -> Dataset:
    """A clean split; its pictures are like no others."""
    samples = []
    for number in range(first, first + count):
        image, label = root / f"images/{name}/{number}.png", root / f"masks/{name}/{number}.png"
        picture(image, number)
        mask(label, blocks(1000 + number, 3))
        samples.append(Sample(f"{name}/{number}", image, label))
    return Dataset(name, tuple(samples), CLASSES, identity(3))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return {
        "city/train": split(tmp_path, "train", 12),
        "city/val": split(tmp_path, "val", 4, 20),
        "city/test": split(tmp_path, "test", 4, 30),
    }


def found(data: Data, code: str, **options: object) -> list[Finding]:
    # A data set remembers its fingerprint; these have changed since they were last looked at.
    fresh = {name: replace(dataset) for name, dataset in data.items()}
    return [finding for finding in check_datasets(fresh, **options) if finding.code == code]


def the(data: Data, code: str, severity: str, **options: object) -> Finding:
    """The one finding of a kind."""
    (finding,) = found(data, code, **options)
    assert finding.severity == severity
    assert finding.remedy
    assert finding.message
    return finding


def only(data: Data, code: str, severity: str, names: list[str], **options: object) -> Finding:
    """The one finding of a kind; it names these files, and the first of them in its message."""
    finding = the(data, code, severity, **options)
    assert [path.name for path in finding.files] == names
    assert names[0] in finding.message
    return finding


def label(data: Data, name: str, index: int) -> Path:
    path = data[name].samples[index].label
    assert path is not None
    return path


def test_clean_data(data: Data) -> None:
    findings = check_datasets(data)
    assert [(finding.code, finding.dataset) for finding in findings] == [
        ("values", "city/train"),
        ("values", "city/val"),
        ("values", "city/test"),
    ]
    assert worst(findings) == "note"
    assert "12 masks; values: " in findings[0].message
    assert "0 background 3" in findings[0].message
    assert all(poisons(dataset) == [] for dataset in data.values())


def test_unexpected_values(data: Data) -> None:
    values = blocks(1, 3)
    values[0, :5] = 7
    values[1, 0] = 9
    mask(label(data, "city/train", 3), values)
    finding = only(data, "mask-values", "error", ["3.png"])
    assert "7 (5 pixels in 1 mask), 9 (1 pixels in 1 mask)" in finding.message
    assert "others: ignore" in finding.remedy
    (poison,) = poisons(data["city/train"])
    assert (poison.code, poison.files) == ("mask-values", finding.files)


def test_unreadable_masks_and_images(data: Data) -> None:
    label(data, "city/train", 1).write_bytes(b"")
    broken = label(data, "city/train", 2)
    broken.write_bytes(broken.read_bytes()[:-40])
    image = data["city/train"].samples[4].image
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    finding = the(data, "mask-unreadable", "error")
    assert [path.name for path in finding.files] == ["1.png", "2.png"]
    assert "(0 bytes)" in finding.message
    assert only(data, "image-unreadable", "error", ["4.png"]).message.startswith("1 of 12")
    assert [poison.code for poison in poisons(data["city/train"])] == ["mask-unreadable"]


def test_size_mismatch_with_hints(data: Data) -> None:
    mask(label(data, "city/train", 0), blocks(1, 3).T.copy())
    mask(label(data, "city/train", 5), blocks(1, 3)[::2, ::2].copy())
    finding = only(data, "size-mismatch", "error", ["0.png", "5.png"])
    assert "90°: EXIF" in finding.message
    assert " 0.5 " in finding.message
    assert [poison.code for poison in poisons(data["city/train"])] == ["size-mismatch"]


def test_lossy_masks_by_format(data: Data) -> None:
    train = data["city/train"]
    path = label(data, "city/train", 2).with_suffix(".jpg")
    mask(path, blocks(1, 3) * 0, quality=100)
    data["city/train"] = replace(
        train, samples=(*train.samples[:2], replace(train.samples[2], label=path), *train.samples[3:])
    )
    only(data, "mask-lossy", "warning", ["2.jpg"])


def test_lossy_masks_by_their_values(data: Data) -> None:
    train = replace(data["city/train"], label_map=LabelMap({0: 0, 100: 1, 200: 2}))
    for sample in train.samples:
        assert sample.label is not None
        mask(sample.label, blocks(1, 3) * 100)
    data["city/train"] = train
    assert found(data, "mask-lossy") == []
    rough = label(data, "city/train", 6)
    slanted = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) // 30 % 3 * 100).astype(np.uint8)
    Image.fromarray(slanted).save(rough.with_suffix(".jpg"), quality=70)
    Image.open(rough.with_suffix(".jpg")).save(rough)
    rough.with_suffix(".jpg").unlink()
    only(data, "mask-lossy", "error", ["6.png"])
    assert found(data, "mask-values") == []
    assert [poison.code for poison in poisons(replace(train))] == ["mask-lossy"]
    data["city/train"] = replace(train, label_map=LabelMap({0: 0, 100: 1, 200: 2}, others=255))
    only(data, "mask-lossy", "warning", ["6.png"])
    assert poisons(data["city/train"]) == []


def test_colours_read_by_index(data: Data) -> None:
    painted = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)[blocks(1, 3)]
    mask(label(data, "city/train", 8), painted)
    finding = only(data, "mask-colours", "error", ["8.png"])
    assert "128,64,128" in finding.message
    assert "colours: {" in finding.remedy
    fractions = label(data, "city/train", 9).with_suffix(".tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(fractions)
    train = data["city/train"]
    data["city/train"] = replace(train, samples=(*train.samples[:9], replace(train.samples[9], label=fractions)))
    only(data, "mask-form", "error", ["9.tif"])


def binary(data: Data, values: Callable[[int], tuple[int, int]], classes: tuple[str, ...] = ("soil", "plant")) -> Data:
    """The same data with masks of two values each."""
    for dataset in data.values():
        for number, sample in enumerate(dataset.samples):
            assert sample.label is not None
            mask(sample.label, np.array(values(number), np.uint8)[blocks(number, 2)])
    return {
        name: replace(dataset, classes=Classes(classes), label_map=identity(len(classes)))
        for name, dataset in data.items()
    }


@pytest.mark.parametrize("classes", [("soil", "plant"), ("plant",)])
def test_binary_trap(data: Data, classes: tuple[str, ...]) -> None:
    trapped = binary(data, lambda number: (0, 255), classes)
    findings = found(trapped, "binary-255")
    assert [(finding.severity, finding.dataset) for finding in findings] == [
        ("error", name) for name in ("city/train", "city/val", "city/test")
    ]
    background = classes[0] if len(classes) == 2 else "background"
    assert f"ids: {{0: {background}, 255: plant}}" in findings[0].remedy
    assert "ignore: []" in findings[0].remedy
    assert len(findings[0].files) == 12
    assert found(trapped, "class-absent") == []
    assert [poison.code for poison in poisons(trapped["city/train"])] == ["binary-255"]


def test_no_binary_trap(data: Data) -> None:
    right = binary(data, lambda number: (0, 255))
    right = {name: replace(d, label_map=LabelMap({0: 0, 255: 1})) for name, d in right.items()}
    assert found(right, "binary-255") == []
    # A border of 255 around a foreground of 1.
    bordered = binary(data, lambda number: (0, 1))
    for sample in (sample for dataset in bordered.values() for sample in dataset.samples):
        assert sample.label is not None
        values = np.asarray(Image.open(sample.label)).copy()
        values[:, :3] = 255
        mask(sample.label, values)
    assert {finding.code for finding in check_datasets(bordered)} == {"values"}
    # One split without foreground, where the others show what 255 means.
    mask(label(bordered, "city/val", 0), np.array([0, 255], np.uint8)[blocks(0, 2)])
    bordered["city/val"] = bordered["city/val"].subset([0])
    assert found(bordered, "binary-255") == []
    # Three classes: 255 is what it usually is.
    three = binary(data, lambda number: (0, 255), ("soil", "plant", "stone"))
    assert found(three, "binary-255") == []


def test_mixed_binary_masks(data: Data) -> None:
    mixed = binary(data, lambda number: (0, 1) if number % 2 else (0, 255))
    finding = found(mixed, "binary-mixed")[0]
    assert finding.severity == "warning"
    assert [path.stem for path in finding.files] == ["0", "2", "4", "6", "8", "10"]
    assert "1: plant, 255: plant" in finding.remedy
    assert poisons(mixed["city/train"]) == []


def test_empty_masks(data: Data) -> None:
    mask(label(data, "city/train", 7), np.full((HEIGHT, WIDTH), 255, np.uint8))
    mask(label(data, "city/train", 2), np.zeros((HEIGHT, WIDTH), np.uint8))
    only(data, "mask-empty", "warning", ["7.png"])
    only(data, "mask-one-class", "note", ["2.png"])


def test_partly_labelled(data: Data) -> None:
    train = data["city/train"]
    data["city/train"] = replace(train, samples=(*train.samples[:-1], replace(train.samples[-1], label=None)))
    only(data, "labels-partial", "warning", ["11.png"])


def without_class(data: Data, name: str, class_: int) -> None:
    for sample in data[name].samples:
        assert sample.label is not None
        values = np.asarray(Image.open(sample.label)).copy()
        values[values == class_] = 0
        mask(sample.label, values)


def test_class_absent_from_training(data: Data) -> None:
    without_class(data, "city/train", 2)
    finding = the(data, "class-absent", "error")
    assert finding.dataset == "city/train"
    assert " car" in finding.message
    # Another training set shows it.
    more = {**data, "city/labeled": data["city/val"], "city/val": data["city/test"]}
    assert the(more, "class-absent", "warning").dataset == "city/train"


def test_class_absent_from_scoring(data: Data) -> None:
    without_class(data, "city/val", 1)
    finding = the(data, "class-absent", "warning")
    assert finding.dataset == "city/val"
    assert "road" in finding.message


def test_class_never_used(data: Data) -> None:
    classes = Classes(("background", "road", "car", "boat"))
    data = {name: replace(d, classes=classes, label_map=identity(4)) for name, d in data.items()}
    assert the(data, "class-unused", "warning").message.endswith("boat")
    assert found(data, "class-absent") == []


def test_rare_class(data: Data) -> None:
    without_class(data, "city/train", 2)
    values = blocks(1, 2)
    values[0, 0] = 2
    mask(label(data, "city/train", 0), values)
    finding = the(data, "class-rare", "note")
    assert "car (0.001% of the pixels, 1 image)" in finding.message
    limits = CheckSettings(rare=BalanceLimits(share=1e-7, images=1))
    assert found(data, "class-rare", settings=limits) == []


def turned(data: Data, orientation: int, flip: bool = False) -> None:
    """The first images of the training set get an orientation tag; with ``flip`` they are stored as it undoes."""
    for sample in data["city/train"].samples[:4]:
        image = Image.open(sample.image)
        image.load()
        if flip:
            image = image.transpose(Image.Transpose.ROTATE_180)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(sample.image, exif=exif)


def test_orientation_tag_alone_is_a_note(data: Data) -> None:
    for sample in data["city/train"].samples[:4]:
        assert sample.label is not None
        edges = np.kron(np.asarray(Image.open(sample.label)), np.ones((1, 1), np.uint8)) * 100
        Image.fromarray(np.stack([edges] * 3, 2).astype(np.uint8)).save(sample.image)
    turned(data, 3, flip=True)
    only(data, "exif-orientation", "note", ["0.png", "1.png", "2.png", "3.png"])
    assert found(data, "exif-mismatch") == found(data, "exif-suspect") == []


def test_masks_drawn_on_the_stored_pixels_sideways(data: Data) -> None:
    turned(data, 6)
    only(data, "exif-mismatch", "error", ["0.png", "1.png", "2.png", "3.png"])
    assert "EXIF" in the(data, "size-mismatch", "error").message
    assert [poison.code for poison in poisons(data["city/train"])] == ["size-mismatch"]


def test_masks_drawn_on_the_stored_pixels_upside_down(data: Data) -> None:
    for sample in data["city/train"].samples[:4]:
        assert sample.label is not None
        grey = np.asarray(Image.open(sample.label)) * 100
        Image.fromarray(np.stack([grey] * 3, 2).astype(np.uint8)).save(sample.image)
    turned(data, 3)
    only(data, "exif-suspect", "warning", ["0.png", "1.png", "2.png", "3.png"])


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("RGBA", ".png", "RGB with alpha"),
        ("CMYK", ".jpg", "CMYK"),
        ("L", ".png", "grey"),
        ("I;16", ".png", "16-bit grey"),
        ("P", ".png", "palette"),
    ],
)
def test_unusual_pixel_formats(data: Data, mode: str, suffix: str, words: str) -> None:
    train = data["city/train"]
    path = train.samples[5].image.with_name(f"odd{suffix}")
    if mode == "I;16":
        Image.fromarray(blocks(5, 250).astype(np.uint16) * 256).save(path)
    else:
        Image.open(train.samples[5].image).convert(mode).save(path)
    samples = (*train.samples[:5], replace(train.samples[5], image=path), *train.samples[6:])
    data["city/train"] = replace(train, samples=samples)
    assert f" {words}: " in only(data, "image-form", "note", [path.name]).message


def test_small_and_large_images(data: Data) -> None:
    picture(data["city/test"].samples[1].image, 77, (32, 40))
    mask(label(data, "city/test", 1), blocks(1, 3, (32, 40)))
    only(data, "image-small", "note", ["31.png"])
    limits = CheckSettings(sizes=SizeLimits(side=8, megapixels=0.002))
    assert [len(finding.files) for finding in found(data, "image-large", settings=limits)] == [12, 4, 3]
    assert found(data, "image-small", settings=limits) == []


def test_stray_masks(data: Data) -> None:
    folder = label(data, "city/train", 0).parent
    mask(folder / "gone.png", blocks(1, 3))
    # Images that are not in this list still explain their masks.
    few = {**data, "city/train": data["city/train"].subset([0, 1])}
    only(few, "mask-stray", "warning", ["gone.png"])


def test_stray_masks_only_where_names_tell(data: Data) -> None:
    folder = label(data, "city/train", 0).parent
    samples = []
    for sample in data["city/train"].samples:
        assert sample.label is not None
        samples.append(replace(sample, label=sample.label.rename(folder / f"{sample.label.stem}_mask.png")))
    data["city/train"] = replace(data["city/train"], samples=tuple(samples))
    mask(folder / "3_color.png", blocks(1, 3))
    assert found(data, "mask-stray") == []
    mask(folder / "99_mask.png", blocks(1, 3))
    only(data, "mask-stray", "warning", ["99_mask.png"])


def test_duplicates_inside_a_split(data: Data) -> None:
    first, other = data["city/train"].samples[2].image, data["city/train"].samples[9].image
    Image.open(first).save(other, compress_level=0)
    assert first.read_bytes() != other.read_bytes()
    only(data, "duplicate", "note", ["2.png", "9.png"])
    assert found(data, "leak-near") == []


def test_the_same_picture_on_both_sides(data: Data) -> None:
    Image.open(data["city/train"].samples[2].image).save(data["city/test"].samples[1].image)
    finding = only(data, "leak-same", "error", ["31.png"])
    assert str(data["city/train"].samples[2].image) in finding.message
    assert finding.dataset == "city/train, city/test"
    assert found(data, "leak-near") == []
    # Between validation and test it is a warning.
    Image.open(data["city/val"].samples[0].image).save(data["city/test"].samples[1].image)
    assert the(data, "leak-same", "warning").dataset == "city/val, city/test"


def test_look_alikes_on_both_sides(data: Data) -> None:
    image = Image.open(data["city/train"].samples[4].image).convert("RGB")
    shifted = image.resize((120, 80), Image.Resampling.BICUBIC)
    shifted.save(data["city/test"].samples[2].image.with_suffix(".jpg"), quality=80)
    test = data["city/test"]
    copied = replace(test.samples[2], image=test.samples[2].image.with_suffix(".jpg"), label=None)
    data["city/test"] = replace(test, samples=(*test.samples[:2], copied, test.samples[3]))
    finding = only(data, "leak-near", "warning", ["32.jpg"])
    assert "1 of 4 images of city/test" in finding.message
    assert str(data["city/train"].samples[4].image) in finding.message
    # Within a split, look-alikes are frames of one film.
    train = data["city/train"]
    film = {"city/train": replace(train, samples=(*train.samples, copied))}
    assert found(film, "leak-near") == found(film, "duplicate") == []


def test_plain_images_are_not_look_alikes(data: Data) -> None:
    for name, grey in (("city/train", 100), ("city/test", 101)):
        Image.new("RGB", (WIDTH, HEIGHT), (grey, grey, grey)).save(data[name].samples[0].image)
    assert found(data, "leak-near") == found(data, "leak-same") == []


def test_partitions_are_reported_once(data: Data) -> None:
    Image.open(data["city/train"].samples[2].image).save(data["city/test"].samples[1].image)
    data["city/labeled"] = data["city/train"].subset([0, 1, 2])
    data["city/again"] = data["city/train"]
    assert the(data, "leak-same", "error").dataset == "city/train, city/test"


def test_groups_in_two_splits(data: Data) -> None:
    def grouped(dataset: Dataset, groups: str) -> Dataset:
        samples = zip(dataset.samples, groups, strict=False)
        return replace(dataset, samples=tuple(replace(sample, group=group.strip()) for sample, group in samples))

    data["city/train"] = grouped(data["city/train"], "aaabbbcccddd")
    data["city/val"] = grouped(data["city/val"], "eefd")
    data["city/test"] = grouped(data["city/test"], "ghi ")
    finding = the(data, "group-straddles", "warning")
    assert finding.dataset == "city/train, city/val"
    assert "1 group in both: d" in finding.message
    assert [path.name for path in finding.files] == ["23.png"]


def test_labelled_and_unlabelled_lists_overlap(data: Data) -> None:
    train = data.pop("city/train")
    data["city/labeled"] = train.subset([0, 1, 2])
    data["city/unlabeled"] = train.subset(range(3, 12))
    assert found(data, "labeled-unlabeled") == []
    data["city/unlabeled"] = train.subset(range(2, 12))
    only(data, "labeled-unlabeled", "warning", ["2.png"])
    data["city/labeled"] = train
    finding = the(data, "labeled-unlabeled", "warning")
    assert finding.message.startswith("all 10")
    assert "2.png, 3.png, 4.png, 5.png, 6.png and 5 more" in finding.message


def test_published_lists_are_recognised(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(data, "published-list") == []
    known = PublishedList("Cities", "1/9", 12, 96, "somebody")
    monkeypatch.setitem(published_splits.PUBLISHED, list_hash(data["city/train"].samples), known)
    finding = the(data, "published-list", "note")
    assert finding.dataset == "city/train"
    assert "the published 1/9 list of Cities (somebody); 96 unlabelled images" in finding.message
    assert found(data, "published-list", roles={"city/train": "unlabeled"}) == []


def test_images_below_the_crop(data: Data) -> None:
    picture(data["city/train"].samples[3].image, 3, (48, 200))
    assert found(data, "image-below-crop") == []
    assert found(data, "image-below-crop", crops={"city/train": (48, 96)}) == []
    finding = the(data, "image-below-crop", "note", crops={"city/train": (56, 64)})
    assert [path.name for path in finding.files] == ["3.png"]
    assert "1 of 12 images smaller than the crop of 64x56" in finding.message
    assert len(the(data, "image-below-crop", "note", crops={"city/val": (64, 97)}).files) == 4


def test_lost_masks(data: Data) -> None:
    train = data["city/train"]
    samples = [replace(s, label=None, lost=f"list.txt:{i}: gone") if i < 2 else s for i, s in enumerate(train.samples)]
    data["city/train"] = replace(train, samples=tuple(samples))
    finding = the(data, "mask-lost", "error")
    assert [path.name for path in finding.files] == ["0.png", "1.png"]
    assert finding.message.startswith("2 of 12")
    assert "list.txt:0: gone" in finding.message
    assert found(data, "labels-partial") == []
    assert found(data, "mask-lost", roles={"city/train": "unlabeled"}) == []


def test_unlabelled_masks_stay_closed(data: Data) -> None:
    label(data, "city/val", 0).write_bytes(b"")
    data["city/unlabeled"] = data.pop("city/val")
    assert found(data, "mask-unreadable") == []
    assert found(data, "mask-unreadable", roles={"city/unlabeled": {"unlabeled", "val"}}) != []


def test_training_and_scoring_on_one_list(data: Data) -> None:
    finding = the(data, "leak-same", "error", roles={"city/val": {"train", "val"}})
    assert finding.dataset == "city/val"


def test_colour_shift(data: Data) -> None:
    for sample in data["city/test"].samples:
        Image.open(sample.image).point(lambda value: value // 3).save(sample.image)
    finding = the(data, "shift-colour", "note")
    assert finding.dataset == "city/train, city/test"
    assert "mean brightness 1" in finding.message
    target = {"a/train": data["city/train"], "b/all": data["city/test"].without_labels()}
    roles = {"a/train": {"train", "source"}, "b/all": "target"}
    assert the(target, "shift-colour", "note", roles=roles).dataset == "a/train, b/all"
    # A target's test set is known by its company.
    target["b/test"] = data["city/test"]
    names = [f.dataset for f in found(target, "shift-colour", roles={**roles, "b/test": "test"})]
    assert names == ["a/train, b/all", "a/train, b/test"]


def test_size_and_scale_shift(data: Data) -> None:
    for sample in data["city/test"].samples:
        for path in (sample.image, sample.label):
            assert path is not None
            image = Image.open(path)
            image.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST).save(path)
    assert "96x64 and 192x128" in the(data, "shift-size", "note").message
    assert "background" in the(data, "shift-scale", "note").message


def test_colour_distance() -> None:
    even, left, right = np.full(4, 0.25), np.array([1.0, 0, 0, 0]), np.array([0, 0, 0, 1.0])
    assert colour_distance(even, even) == 0
    assert colour_distance(left, right) == pytest.approx(1)
    assert 0 < colour_distance(even, left) < 1


def test_second_check_opens_nothing(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(data["city/train"].samples[0].image, 5, (32, 40))
    label(data, "city/train", 1).write_bytes(b"")
    data["city/val"].samples[0].image.write_bytes(b"")
    first = check_datasets(data)

    def closed(*_: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(pictures, "read_image", closed)
    monkeypatch.setattr(statistics, "read_raw_mask", closed)
    assert check_datasets(data) == first
    assert [f.code for f in poisons(data["city/train"])] == ["mask-unreadable", "size-mismatch"]


def test_pictures(data: Data) -> None:
    seen = read_pictures(data["city/val"])
    assert seen.sizes.tolist() == [[HEIGHT, WIDTH]] * 4
    assert seen.colours.sum(1) == pytest.approx(1)
    assert len(set(seen.digests.tolist())) == len(set(seen.hashes.tolist())) == 4
    again = read_pictures(data["city/val"])
    assert np.array_equal(again.hashes, seen.hashes)
    assert again.modes == seen.modes == ("RGB",) * 4


def test_progress_and_messages(data: Data) -> None:
    told: list[tuple[int, int]] = []
    said: list[str] = []
    check_datasets(data, progress=lambda done, total: told.append((done, total)), say=said.append)
    assert told[-1] == (40, 40)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert said == [
        "city/train: 12 images with masks",
        "city/val: 4 images with masks",
        "city/test: 4 images with masks",
    ]


def test_roles() -> None:
    guessed = guess_roles(
        ["city/train", "city/val", "city/source_val", "a/target_test", "target/all", "x/unlabelled", "b/1_16", "photos"]
    )
    assert list(map(set, guessed.values())) == [
        {"train"},
        {"val"},
        {"val"},
        {"target", "test"},
        {"target"},
        {"unlabeled"},
        {"train"},
        {"train"},
    ]
    assert named_roles(["a/val"], {"a/val": ["test", "val"]}) == {"a/val": {"test", "val"}}
    with pytest.raises(ValueError, match="'tests'"):
        named_roles(["a/val"], {"a/val": "tests"})


def test_table() -> None:
    findings = [
        Finding("note", "values", "a/train", "some values", "look"),
        Finding("error", "mask-values", "a/val", "word " * 40 + "/a/long-path/file.png: 7", "fix it"),
        Finding("warning", "duplicate", "a/test", "twice", "remove one"),
    ]
    lines = format_findings(findings, width=60).splitlines()
    assert lines[0] == "error    mask-values  a/val"
    assert max(map(len, lines)) <= 60
    assert any("/a/long-path/file.png:" in line for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["error", "warning", "note", "1"]
    assert lines[-1] == "1 error, 1 warning, 1 note"
    assert format_findings([]) == "no findings"
    assert worst(findings) == "error"
    assert worst(findings[2:]) == "warning"
    assert worst([]) is None


def test_colour_masks(data: Data) -> None:
    colours = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 142)], np.uint8)
    table = LabelMap({pack(colour): index for index, colour in enumerate(colours)}, "rgb")
    for dataset in data.values():
        for number, sample in enumerate(dataset.samples):
            assert sample.label is not None
            mask(sample.label, colours[blocks(number, 3)])
    data = {name: replace(dataset, label_map=table) for name, dataset in data.items()}
    assert {finding.code for finding in check_datasets(data)} == {"values"}
    painted = colours[blocks(0, 3)]
    painted[0, 0] = (9, 9, 9)
    mask(label(data, "city/val", 1), painted)
    assert "9,9,9 (1 pixels in 1 mask)" in only(data, "mask-values", "error", ["21.png"]).message
