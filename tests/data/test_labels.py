"""From raw mask values to train ids."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.errors import raises_code
from tutelage.data.labels import IGNORE, LabelMap, compose, identity, pack, resized, unpack


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_packing_is_exact(colour: tuple[int, int, int]) -> None:
    assert unpack(pack(colour)) == colour


def test_a_table_is_not_applied_class_by_class() -> None:
    """7 → 0 and 0 → 255: done in place, one after the other, road would be ignored."""
    label_map = LabelMap({7: 0, 0: IGNORE, 8: 7})
    np.testing.assert_array_equal(label_map.convert(np.array([[7, 0, 8]], np.uint8)), [[0, 255, 7]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_convert_equals_a_loop(dtype: type) -> None:
    table = {3: 1, 200: 0, 255: IGNORE, 9: 2}
    raw = np.random.default_rng(0).choice([3, 200, 255, 9, 17], (20, 30)).astype(dtype)
    for others, unknown in ((None, 254), (IGNORE, IGNORE), (1, 1)):
        expected = [[table.get(int(value), unknown) for value in row] for row in raw]
        converted = LabelMap(table, others=others).convert(raw)
        assert converted.dtype == np.uint8
        np.testing.assert_array_equal(converted, expected)


def test_values_outside_the_table_size() -> None:
    raw = np.array([[-1, 70_000, 0]], np.int64)
    refusing = LabelMap({0: 0})
    np.testing.assert_array_equal(refusing.convert(raw), [[254, 254, 0]])
    assert refusing.unexpected(raw) == {-1: 1, 70_000: 1}
    np.testing.assert_array_equal(LabelMap({0: 0}, others=IGNORE).convert(raw), [[255, 255, 0]])
    with raises_code("invalid-value", "70000"):
        LabelMap({70_000: 0})


def test_unexpected_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    mask = np.zeros((4, 5), np.uint8)
    mask[0, :3], mask[1, 0] = 7, 19
    Image.fromarray(mask).save(path)
    with raises_code("mask-value", path, "7 (3 pixels), 19 (1 pixels)", "0, 1, 2, 255"):
        identity(3).read(path)
    assert LabelMap({0: 0}, others=IGNORE).read(path)[0, 0] == IGNORE


def test_unexpected_colours_are_named(tmp_path: Path) -> None:
    mask = np.zeros((4, 5, 3), np.uint8)
    mask[0, :2] = 250, 1, 2
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with raises_code("mask-value", "250,1,2 (2 pixels); expected 0,0,0"):
        LabelMap({0: 0}, "rgb").read(tmp_path / "mask.png")
    known = LabelMap({0: 0, pack((250, 1, 2)): IGNORE}, "rgb").read(tmp_path / "mask.png")
    np.testing.assert_array_equal(known[0], [255, 255, 0, 0, 0])


def test_ignored_values_of_identity() -> None:
    np.testing.assert_array_equal(
        identity(3, (9, 255)).convert(np.array([[0, 1, 2, 3, 9, 255]], np.uint8)), [[0, 1, 2, 254, 255, 255]]
    )


def test_compose_follows_both_maps() -> None:
    first = LabelMap({10: 0, 20: 1, 30: 2, 40: IGNORE}, others=1)
    both = compose(first, {0: 5, 1: IGNORE, 2: 5})
    raw = np.array([[10, 20, 30, 40, 50]], np.uint8)
    np.testing.assert_array_equal(both.convert(raw), [[5, 255, 5, 255, 255]])
    assert compose(LabelMap({1: 0}), {0: 3}).others is None


def test_equal_maps_have_equal_identities() -> None:
    assert LabelMap({1: 0, 2: 1}).identity == LabelMap({2: 1, 1: 0}).identity
    different = [LabelMap({1: 0}), LabelMap({1: 1}), LabelMap({1: 0}, "rgb"), LabelMap({1: 0}, others=255)]
    assert len({m.identity for m in different}) == 4


def test_a_used_map_can_be_sent_to_a_worker() -> None:
    label_map = identity(2)
    label_map.convert(np.zeros((1, 1), np.uint8))
    assert pickle.loads(pickle.dumps(label_map)) == label_map


@given(*[st.integers(1, 12)] * 4)
def test_resized_takes_the_nearest_pixel(height: int, width: int, new_height: int, new_width: int) -> None:
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    rows = [int((i + 0.5) * height / new_height) for i in range(new_height)]
    columns = [int((j + 0.5) * width / new_width) for j in range(new_width)]
    np.testing.assert_array_equal(resized(label, (new_height, new_width)), label[np.ix_(rows, columns)])
