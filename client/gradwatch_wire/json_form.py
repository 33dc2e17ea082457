"""``application/json``: the document with its arrays as nested lists, for curl and scripts."""

from typing import Any

from gradwatch_wire.column import Column
from gradwatch_wire.document import parse, spell
from gradwatch_wire.report import Report

__all__ = ["read_list", "report_from_json", "report_to_json"]


def report_to_json(report: Report) -> dict[str, Any]:
    """The report as JSON's own types; NaN becomes None."""
    return spell(report, Column.to_list)


def report_from_json(obj: object) -> Report:
    """Read a parsed JSON body.

    Raises:
        WireError: It does not keep to the format; every wrong field is named.
    """
    return parse(obj, read_list)


def read_list(
    given: object,
    dtypes: tuple[str, ...],
    *,
    at: str,
    dimensions: int,
    pad: int = 0,
    nulls: bool = False,
) -> Column:
    """Pack nested lists into the first of ``dtypes`` that holds their numbers."""
    wide = "u8" if "u8" in dtypes and dtypes[0] == "u4" else dtypes[0]
    column = Column.from_list(given, wide, at=at, dimensions=dimensions, pad=pad, nulls=nulls)
    if wide == dtypes[0] or any(number >= 2**32 for number in column.flat()):
        return column
    narrow = Column.from_list(column.flat().tolist(), dtypes[0], at=at)
    return Column(narrow.dtype, column.shape, narrow.data)
