"""The GPU kernel's own language: Triton programs that clip and measure one block of one tensor each.

Imported only when gradients lie on a GPU and Triton is there. What the numbers mean is said in
:mod:`gradwatch.kernels.reference`, with which these programs must agree: the same bits in every
gradient, the same statistics to rounding.

A step is two launches, *measure* (and clamp) every block and *join* the blocks of each tensor, and two
more for policies that scale, *scale* and *join_scaled*. Blocks leave their sums in a table of their own
and never add to each other's: results do not depend on the order in which a GPU runs them. Memory is
written only in blocks where something changes: a write costs a GPU as much as a read.

Squares are summed in the block's own scale, a power of two near its largest element, so that they neither
overflow nor vanish; blocks are joined in float64.
"""

import triton
import triton.language as tl

__all__ = ["BLOCK", "PARTS", "join", "join_scaled", "measure", "scale"]

BLOCK = 4096  # elements of one program: 16 for each thread of 8 warps

# Rows of the table [PARTS, blocks] in which every block leaves what it saw.
TOP = tl.constexpr(0)
SCALE = tl.constexpr(1)
SQUARES = tl.constexpr(2)  # divided by the square of the scale
TOTAL = tl.constexpr(3)  # divided by the scale
NONFINITE = tl.constexpr(4)
NAN = tl.constexpr(5)
ZERO = tl.constexpr(6)
CLIPPED = tl.constexpr(7)
HELD = tl.constexpr(8)
SCALE_AFTER = tl.constexpr(9)
SQUARES_AFTER = tl.constexpr(10)  # divided by the square of the scale after
DOT = tl.constexpr(11)  # divided by both scales
PARTS = 12

# Rows of gradwatch.kernels.Row, in its order.
ROW_HELD, ROW_NORM, ROW_MAX_ABS, ROW_MEAN = (tl.constexpr(i) for i in range(4))
ROW_NONFINITE, ROW_NAN, ROW_ZERO, ROW_CLIPPED = (tl.constexpr(i) for i in range(4, 8))
ROW_NORM_AFTER, ROW_COSINE_AFTER, ROW_PRESENT = (tl.constexpr(i) for i in range(8, 11))
BATCH = tl.constexpr(256)  # blocks that are joined at a time
LARGEST = tl.constexpr(1.7976931348623157e308)  # where the range of a norm ends, not infinity


@triton.jit
def power_of_two_near(top):
    """Return a power of two at most twice as small as ``top`` and its inverse, both normal numbers."""
    if top.dtype == tl.float64:
        exponent = tl.minimum(tl.maximum(top.to(tl.int64, bitcast=True) >> 52, 1), 2045)
        power = (exponent << 52).to(tl.float64, bitcast=True)
        inverse = ((2046 - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = tl.minimum(tl.maximum(top.to(tl.int32, bitcast=True) >> 23, 1), 253)
        power = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    return power, inverse


@triton.jit
def where(addresses, tensor, places, kind: tl.constexpr):
    """Return pointers to elements of a tensor; to the bits of bfloat16, which are rounded by hand here."""
    if kind == tl.bfloat16:
        pointers = tl.load(addresses + tensor).to(tl.pointer_type(tl.uint16)) + places
    else:
        pointers = tl.load(addresses + tensor).to(tl.pointer_type(kind)) + places
    return pointers


@triton.jit
def widen(stored, kind: tl.constexpr, wide: tl.constexpr):
    """Return what was loaded as numbers to compute with."""
    if kind == tl.bfloat16:
        numbers = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        numbers = stored.to(wide)
    return numbers


@triton.jit
def narrow(numbers, kind: tl.constexpr):
    """Return what to store: rounded to nearest, ties to even; NaN stays NaN."""
    if kind == tl.bfloat16:
        bits = numbers.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = numbers != numbers  # noqa: PLR0124 -- that is what NaN is
        stored = tl.where(is_nan, (bits >> 16) | 0x40, rounded).to(tl.uint16)
    else:
        stored = numbers.to(kind)
    return stored


@triton.jit
def count(mask):
    """Return how many elements of a block a mask takes."""
    return tl.sum(mask.to(tl.int32), 0)


@triton.jit
def measure(
    addresses,  # [T] where each tensor begins
    numel,  # [T]
    block_tensor,  # [blocks] whose elements a block has
    block_start,  # [blocks] and from which one on
    first,  # number of the first block of this launch: those of one dtype lie side by side
    limits,  # [T] in `wide`, rounded toward zero into `kind`; inf for none
    table,  # [PARTS, blocks] output
    blocks,
    zero: tl.constexpr,  # set what is not finite to zero first
    kind: tl.constexpr,  # dtype of the gradients
    wide: tl.constexpr,  # dtype to compute in: float32, or float64 for float64
    size: tl.constexpr,
):
    """Look at a block, hold it within its tensor's limit, leave what was seen in the table."""
    block = first + tl.program_id(0)
    tensor = tl.load(block_tensor + block)
    places = tl.load(block_start + block) + tl.arange(0, size)
    inside = places < tl.load(numel + tensor)
    pointers = where(addresses, tensor, places, kind)
    given = widen(tl.load(pointers, mask=inside, other=0), kind, wide)
    limit = tl.load(limits + tensor)

    is_finite = tl.abs(given) < float("inf")
    finite = tl.where(is_finite, given, 0.0)
    top = tl.max(tl.abs(finite), 0)
    power, inverse = power_of_two_near(top)
    before = finite * inverse
    out = table + block
    tl.store(out + TOP * blocks, top.to(tl.float64))
    tl.store(out + SCALE * blocks, power.to(tl.float64))
    tl.store(out + SQUARES * blocks, tl.sum(before * before, 0).to(tl.float64))
    tl.store(out + TOTAL * blocks, tl.sum(before, 0).to(tl.float64))
    tl.store(out + NONFINITE * blocks, count(is_finite == 0).to(tl.float64))
    is_nan = given != given  # noqa: PLR0124 -- that is what NaN is
    tl.store(out + NAN * blocks, count(is_nan).to(tl.float64))
    tl.store(out + ZERO * blocks, count(inside & (given == 0)).to(tl.float64))

    kept = finite if zero else given
    beyond = tl.abs(kept) > limit  # never so for NaN
    held = tl.where(kept < 0, limit * -1.0, limit)  # a minus of its own would lose the sign of -0
    after = tl.where(beyond, held, kept)
    changed = beyond | (is_finite == 0) if zero else beyond
    if count(changed) > 0:
        tl.store(pointers, narrow(after, kind), mask=changed)
    bound = tl.where(limit < float("inf"), limit, 0.0).to(tl.float64)
    power, inverse = power_of_two_near(tl.minimum(top, limit))
    later = tl.where(is_finite, after, 0.0) * inverse
    tl.store(out + CLIPPED * blocks, count(beyond).to(tl.float64))
    tl.store(out + HELD * blocks, count(beyond & (is_finite == 0)).to(tl.float64) * bound * bound)
    tl.store(out + SCALE_AFTER * blocks, power.to(tl.float64))
    tl.store(out + SQUARES_AFTER * blocks, tl.sum(later * later, 0).to(tl.float64))
    tl.store(out + DOT * blocks, tl.sum(before * later, 0).to(tl.float64))


@triton.jit
def scale(
    addresses,
    numel,
    block_tensor,
    block_start,
    first,
    coefficients,  # [T] float64, as the policy wants them
    factors,  # [T] in `wide`: the same rounded toward zero
    table,
    blocks,
    kind: tl.constexpr,
    wide: tl.constexpr,
    size: tl.constexpr,
):
    """Multiply a block where its tensor's coefficient is below 1; leave the squares of the products."""
    block = first + tl.program_id(0)
    tensor = tl.load(block_tensor + block)
    if tl.load(coefficients + tensor) < 1:
        places = tl.load(block_start + block) + tl.arange(0, size)
        inside = places < tl.load(numel + tensor)
        pointers = where(addresses, tensor, places, kind)
        given = widen(tl.load(pointers, mask=inside, other=0), kind, wide)
        product = narrow(given * tl.load(factors + tensor), kind)
        tl.store(pointers, product, mask=inside)
        later = widen(product, kind, wide)
        later = tl.where(tl.abs(later) < float("inf"), later, 0.0)
        power, inverse = power_of_two_near(tl.max(tl.abs(later), 0))
        later *= inverse
        tl.store(table + SCALE_AFTER * blocks + block, power.to(tl.float64))
        tl.store(table + SQUARES_AFTER * blocks + block, tl.sum(later * later, 0).to(tl.float64))


@triton.jit
def seen(table, blocks, row: tl.constexpr, at, end):
    """Return one row of the table for a batch of blocks; 0 beyond the last of them."""
    return tl.load(table + row * blocks + at, mask=at < end, other=0.0)


@triton.jit
def sum_of(table, blocks, row: tl.constexpr, begin, end):
    """Return the sum of one row over a tensor's blocks."""
    total = tl.zeros([BATCH], tl.float64)
    for start in range(begin, end, BATCH):
        total += seen(table, blocks, row, start + tl.arange(0, BATCH), end)
    return tl.sum(total, 0)


@triton.jit
def joint_root(table, blocks, squares: tl.constexpr, scales: tl.constexpr, begin, end):
    """Return the norm of a tensor divided by its largest scale, and that scale; 1 if all is zero."""
    scale = tl.zeros([BATCH], tl.float64)
    for start in range(begin, end, BATCH):
        at = start + tl.arange(0, BATCH)
        used = seen(table, blocks, squares, at, end) > 0
        scale = tl.maximum(scale, tl.where(used, seen(table, blocks, scales, at, end), 0.0))
    largest = tl.max(scale, 0)
    largest = tl.where(largest > 0, largest, 1.0)
    total = tl.zeros([BATCH], tl.float64)
    for start in range(begin, end, BATCH):
        at = start + tl.arange(0, BATCH)
        found = seen(table, blocks, squares, at, end)
        share = seen(table, blocks, scales, at, end) / largest
        total += tl.where(found > 0, found * share * share, 0.0)
    return tl.sqrt(tl.sum(total, 0)), largest


@triton.jit
def join(numel, present, begins, ends, table, blocks, rows, tensors):
    """Write the column of one tensor from what its blocks left; none where there is no gradient."""
    tensor = tl.program_id(0)
    begin, end = tl.load(begins + tensor), tl.load(ends + tensor)
    root, largest = joint_root(table, blocks, SQUARES, SCALE, begin, end)
    root_after, largest_after = joint_root(table, blocks, SQUARES_AFTER, SCALE_AFTER, begin, end)
    top, mean, dot = (
        tl.zeros([BATCH], tl.float64),
        tl.zeros([BATCH], tl.float64),
        tl.zeros([BATCH], tl.float64),
    )
    for start in range(begin, end, BATCH):
        at = start + tl.arange(0, BATCH)
        share = seen(table, blocks, SCALE, at, end) / largest
        share_after = seen(table, blocks, SCALE_AFTER, at, end) / largest_after
        top = tl.maximum(top, seen(table, blocks, TOP, at, end))
        mean += seen(table, blocks, TOTAL, at, end) * share
        dot += seen(table, blocks, DOT, at, end) * share * share_after
    dot = tl.sum(dot, 0)
    mean = tl.sum(mean, 0) / tl.maximum(tl.load(numel + tensor), 1).to(tl.float64) * largest
    both = root * root_after
    alike = dot / tl.where(both > 0, both, 1.0)
    cosine = tl.where(both > 0, tl.minimum(alike, 1.0), 0.0)
    cosine = tl.where((root_after > 0) | (root > 0), cosine, 1.0)
    if tl.load(present + tensor) != 0:
        out = rows + tensor
        tl.store(out + ROW_HELD * tensors, sum_of(table, blocks, HELD, begin, end))
        tl.store(out + ROW_NORM * tensors, tl.minimum(root * largest, LARGEST))
        tl.store(out + ROW_MAX_ABS * tensors, tl.max(top, 0))
        tl.store(out + ROW_MEAN * tensors, mean)
        tl.store(out + ROW_NONFINITE * tensors, sum_of(table, blocks, NONFINITE, begin, end))
        tl.store(out + ROW_NAN * tensors, sum_of(table, blocks, NAN, begin, end))
        tl.store(out + ROW_ZERO * tensors, sum_of(table, blocks, ZERO, begin, end))
        tl.store(out + ROW_CLIPPED * tensors, sum_of(table, blocks, CLIPPED, begin, end))
        tl.store(out + ROW_NORM_AFTER * tensors, tl.minimum(root_after * largest_after, LARGEST))
        tl.store(out + ROW_COSINE_AFTER * tensors, cosine)
        tl.store(out + ROW_PRESENT * tensors, 1.0)


@triton.jit
def join_scaled(present, begins, ends, coefficients, table, blocks, rows, tensors):
    """Write the norm of one scaled tensor."""
    tensor = tl.program_id(0)
    if tl.load(present + tensor) * (tl.load(coefficients + tensor) < 1) > 0:
        begin, end = tl.load(begins + tensor), tl.load(ends + tensor)
        root, largest = joint_root(table, blocks, SQUARES_AFTER, SCALE_AFTER, begin, end)
        norm = tl.minimum(root * largest, LARGEST)
        tl.store(rows + ROW_NORM_AFTER * tensors + tensor, norm)
