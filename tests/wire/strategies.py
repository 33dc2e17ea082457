"""Reports of every shape, as hypothesis draws them."""

import math
from array import array
from typing import Any

from hypothesis import strategies as st

from gradwatch_wire import TENSOR_COLUMNS, Column, Histograms, Partial, Report

CODES = {"f4": "f", "f8": "d", "u1": "B", "u4": "I", "u8": "Q", "i8": "q"}
HIGHEST = {"u1": 2**8, "u4": 2**32, "u8": 2**64}
names = st.text(
    st.characters(
        min_codepoint=33,
        max_codepoint=0x2FF,
        blacklist_categories=("Cc", "Cf", "Cn", "Zs", "Zl", "Zp"),
    ),
    min_size=1,
    max_size=12,
)


def numbers(dtype: str, *, unknown: bool = True) -> st.SearchStrategy[Any]:
    """Values of one dtype, NaN among them where it may stand for "not measured"."""
    if dtype in HIGHEST:
        return st.integers(0, HIGHEST[dtype] - 1)
    if dtype == "i8":
        return st.integers(-(2**63), 2**63 - 1)
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32 if dtype == "f4" else 64)
    return finite | st.just(math.nan) if unknown else finite


@st.composite
def columns(draw: st.DrawFn, dtype: str, shape: tuple[int, ...], unknown: bool = True) -> Column:
    size = math.prod(shape)
    values = draw(st.lists(numbers(dtype, unknown=unknown), min_size=size, max_size=size))
    return Column(dtype, shape, array(CODES[dtype], values).tobytes())


@st.composite
def reports(draw: st.DrawFn) -> tuple[Report, int]:
    """A report that keeps to its manifest, and how many tensors that has."""
    tensors = draw(st.integers(1, 4))
    steps = sorted(draw(st.sets(st.integers(0, 2**53 - 1), max_size=4)))
    count = len(steps)
    chosen = draw(st.sets(st.sampled_from(sorted(TENSOR_COLUMNS)))) | {"norm"}
    return Report(
        attempt=draw(st.integers(0, 2**31 - 1)),
        rank=(rank := draw(st.integers(0, 7))),
        optimizer=draw(names),
        sequence=draw(st.integers(0, 2**53 - 1)),
        manifest=draw(st.text("0123456789abcdef", min_size=16, max_size=16)),
        steps=Column("i8", (count,), array("q", steps).tobytes()),
        scalars={name: draw(columns("f8", (count,))) for name in draw(st.sets(names, max_size=3))},
        tensors={
            name: draw(
                columns(
                    TENSOR_COLUMNS[name].dtypes[0], (count, tensors), TENSOR_COLUMNS[name].optional
                )
            )
            for name in sorted(chosen)
        },
        histograms=draw(st.none() | histograms(steps, tensors)),
        time=draw(st.none() | columns("f8", (count,), unknown=False)),
        partial=draw(st.none() | partials(rank, tensors)),
        dropped=draw(st.dictionaries(names, st.integers(1, 2**40), max_size=2)),
    ), tensors


@st.composite
def histograms(draw: st.DrawFn, steps: list[int], tensors: int) -> Histograms:
    taken = [step for step in steps if draw(st.booleans())]
    bins_per_octave = draw(st.sampled_from([1, 2, 4, 8]))
    bins = draw(st.integers(1, 5))
    return Histograms(
        steps=Column("i8", (len(taken),), array("q", taken).tobytes()),
        bins_per_octave=bins_per_octave,
        lowest_exponent=draw(st.integers(-100, 100)),
        sampled=draw(st.floats(0.001, 1.0)),
        counts=draw(columns("u4", (len(taken), tensors, bins))),
    )


@st.composite
def partials(draw: st.DrawFn, rank: int, tensors: int) -> Partial:
    ranks = draw(st.sets(st.integers(0, 7))) | {rank}
    return Partial(
        ranks=tuple(sorted(ranks)),
        weights=draw(columns("f8", (tensors,), unknown=False)),
        local_numel=draw(columns("u8", (tensors,))),
    )
