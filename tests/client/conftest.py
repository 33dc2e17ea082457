"""Leaves out, and says so, the tests of the GPU kernel where nothing can run it."""

import importlib.util
import os

import torch


def why_no_triton():
    """Return why Triton's programs cannot run here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        return "no GPU, and TRITON_INTERPRET=1 is not set"
    return None


def pytest_report_header(config):
    reason = why_no_triton()
    return f"tests of the GPU kernel are deselected: {reason}" if reason else None


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if why_no_triton() and item.get_closest_marker("triton")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
