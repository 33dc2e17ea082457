"""What the client sends and the service reads. Standard library only."""

from gradwatch_wire.column import Column
from gradwatch_wire.compact_form import CONTENT_TYPE, decode, encode
from gradwatch_wire.errors import Problem, UnknownVersionError, WireError
from gradwatch_wire.json_form import report_from_json, report_to_json
from gradwatch_wire.kinds import DROP_REASONS, TENSOR_COLUMNS, UNKNOWN_COLUMN, ColumnKind
from gradwatch_wire.manifest import (
    Manifest,
    TensorInfo,
    default_group,
    is_run_id,
    manifest_hash,
)
from gradwatch_wire.report import WIRE_VERSION, Histograms, Partial, Report
from gradwatch_wire.structure import check

__all__ = [
    "CONTENT_TYPE",
    "DROP_REASONS",
    "TENSOR_COLUMNS",
    "UNKNOWN_COLUMN",
    "WIRE_VERSION",
    "Column",
    "ColumnKind",
    "Histograms",
    "Manifest",
    "Partial",
    "Problem",
    "Report",
    "TensorInfo",
    "UnknownVersionError",
    "WireError",
    "check",
    "decode",
    "default_group",
    "encode",
    "is_run_id",
    "manifest_hash",
    "report_from_json",
    "report_to_json",
]
