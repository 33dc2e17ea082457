"""Recognising parameters of which this rank holds only a part."""

from torch import Tensor

__all__ = ["sharded_by"]


def sharded_by(parameter: Tensor) -> str | None:
    """Return what splits a parameter over ranks, or None when it is whole.

    FSDP2 and tensor parallelism make DTensors. FSDP1 leaves plain tensors, marked only by private
    attributes: ``_fsdp_flattened`` on the slices (use_orig_params=True), ``_is_flat_param`` on the one
    flat tensor otherwise. Statistics of such slices would look like those of whole tensors.
    """
    if hasattr(parameter, "_local_tensor") and hasattr(parameter, "device_mesh"):
        return "a DTensor (fully_shard or tensor parallelism)"
    if getattr(parameter, "_is_flat_param", False):
        return "a flat parameter of FullyShardedDataParallel"
    if getattr(parameter, "_fsdp_flattened", False):
        return "a slice held by FullyShardedDataParallel"
    return None
