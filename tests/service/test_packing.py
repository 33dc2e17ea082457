"""Packed columns come back bit for bit, whichever way they were packed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from gradwatch_service.store.packing import pack, pack_each, unpack

DTYPES = st.sampled_from(["<f4", "<f8", "<u4", "<u8", "u1", "<i8"])
BITS = {1: "u1", 4: "<u4", 8: "<u8"}


@st.composite
def _columns(draw: st.DrawFn) -> dict[str, np.ndarray]:
    items = draw(st.integers(1, 5))
    found = {}
    for index in range(draw(st.integers(1, 4))):
        dtype = np.dtype(draw(DTYPES))
        shape = (items, *draw(st.lists(st.integers(0, 9), max_size=2)))
        # As bits, so that every NaN and both zeros occur.
        bits = draw(stn.arrays(BITS[dtype.itemsize], shape))
        found[f"column {index}"] = bits.view(dtype)
    return found


@given(_columns())
def test_items_packed_together_are_those_packed_one_by_one(columns: dict[str, np.ndarray]) -> None:
    together = pack_each(columns)
    assert len(together) == len(next(iter(columns.values())))
    for index, packed in enumerate(together):
        one = {name: values[index] for name, values in columns.items()}
        for read in (unpack(packed), unpack(pack(one))):
            assert read.keys() == one.keys()
            for name, values in one.items():
                assert read[name].dtype == values.dtype
                assert read[name].shape == np.shape(values)
                assert read[name].tobytes() == values.tobytes()


def test_numbers_that_were_rounded_are_packed_smaller_than_fast_packing_would() -> None:
    rng = np.random.default_rng(0)
    full = np.exp(rng.normal(0, 0.3, (16, 4000))).astype("<f4")
    rounded = (full.view("<u4") & 0xFFFF_E000).view("<f4")
    size = {
        name: sum(map(len, pack_each({"x": v}))) for name, v in (("full", full), ("cut", rounded))
    }
    fast = sum(len(pack({"x": item}, -1)) for item in rounded)
    assert size["cut"] < 0.95 * fast
    assert size["full"] < 0.85 * full.nbytes


def test_more_than_255_columns_are_refused_before_anything_is_packed() -> None:
    columns = {str(index): np.zeros((1, 1)) for index in range(256)}
    for packing in (pack, pack_each):
        with pytest.raises(ValueError, match="256 columns; allowed: at most 255"):
            packing(columns)
