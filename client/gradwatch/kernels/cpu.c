/* Clip and measure gradients in one pass over memory.
 *
 * The Python side (cpu.py) hands over arrays of pointers, lengths and dtypes; every statistic comes
 * back as one column of `rows`, laid out as gradwatch.kernels.Row says. What each number means is
 * written there and in reference.py, with which this file must agree: the same bits in every
 * gradient, the same statistics to rounding. It is tested against both.
 *
 * How it is fast. On one core the time goes into bringing gradients from memory, so memory is
 * visited once, in blocks that stay in the first-level cache:
 *   look    sum, sum of squares, largest magnitude and zeros of a block: four vectorised reductions,
 *           while the block after it is on its way from memory;
 *   tally   only for blocks that a histogram takes: their magnitudes are counted;
 *   clamp   only if that largest magnitude is beyond the limit: the block is changed in place;
 *   careful only if it is not finite, or its squares leave the range: element by element.
 * Magnitudes are compared as integers: with the sign bit off, IEEE numbers are ordered like the
 * integers of their bits, infinity and NaN above all others. So one maximum answers both "beyond the
 * limit?" and "all finite?", and clamping is exact, odd, and never touches another element's bits.
 *
 * 16-bit gradients are widened block by block into a buffer; their own integers are clamped.
 * No allocation outlives a call, nothing is global but the thread starter, no header of torch or
 * Python is needed.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096          /* elements that are looked at, then changed, while still in cache */
#define PART 128            /* elements of each quarter of a block that are summed in float32 */
#define LINE 64             /* bytes that come from memory together */
#define CHUNK (1L << 17)    /* elements one thread takes at a time; sums join in order of chunks, so
                               that results do not depend on the number of threads */
#define WORTH_A_THREAD (1L << 19) /* elements below which waking a thread costs more than it saves */

#define INLINE static inline __attribute__((always_inline))

/* One body, compiled for several generations of x86 and chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

typedef uint16_t __attribute__((may_alias)) u16;
typedef uint32_t __attribute__((may_alias)) u32;
typedef uint64_t __attribute__((may_alias)) u64;
typedef long double wide; /* squares of float64 neither overflow nor vanish in it */

/* The same codes as in cpu.py. */
enum Dtype { FLOAT32, BFLOAT16, FLOAT16, FLOAT64, NOTHING /* no gradient: its length is 0 */ };

/* The rows of gradwatch.kernels.Row. */
enum Row { HELD, NORM, MAX_ABS, MEAN, NONFINITE, NANS, ZERO, CLIPPED, NORM_AFTER, COSINE_AFTER, PRESENT };

typedef struct {
    wide sum, squares, squares_after, dot;
    double max_abs;
    int64_t nonfinite, nans, zeros, clipped, held;
} Sums;

/* One chunk of one tensor. */
typedef struct {
    int64_t tensor, start, length;
    Sums sums;
} Job;

/* Everything a thread needs to know; shared, read-only but for `next` and each job's own sums. */
typedef struct {
    void *const *data;
    const int64_t *numel;
    const uint8_t *dtype;
    const double *limits;       /* one per tensor, or NULL: nothing is clipped */
    const double *coefficients; /* one per tensor, when scaling */
    int zero_nonfinite;
    int64_t every, phase;       /* of the blocks that the histogram takes */
    int64_t *counts;            /* one row of BINS per tensor, or NULL: no histogram */
    Job *jobs;
    int64_t job_count, next;
} Work;

/* ---- dtypes ---------------------------------------------------------------------------------- */

#define MAGNITUDE16 0x7fffu
#define MAGNITUDE32 0x7fffffffu
#define MAGNITUDE64 0x7fffffffffffffffull
#define INFINITE_BF16 0x7f80u
#define INFINITE_F16 0x7c00u
#define INFINITE32 0x7f800000u
#define INFINITE64 0x7ff0000000000000ull

INLINE float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
INLINE double double_of(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
INLINE uint64_t bits_of_double(double x) { uint64_t bits; memcpy(&bits, &x, 8); return bits; }

INLINE float widen_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

/* To nearest, ties to even; NaN stays NaN. */
INLINE uint16_t narrow_bf16(float x)
{
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return (bits & MAGNITUDE32) > INFINITE32 ? bits >> 16 | 0x40u : rounded;
}

/* Widening is spelled out in integers because compilers vectorise that, and not a cast. */
INLINE float widen_f16(uint16_t bits)
{
    uint32_t magnitude = (uint32_t)(bits & MAGNITUDE16) << 13, sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t normal = magnitude + (112u << 23), infinite = magnitude + (224u << 23);
    uint32_t subnormal = bits_of((float)(int32_t)(bits & 0x3ffu) * 0x1p-24f);
    uint32_t wide_bits = magnitude < 1u << 23 ? subnormal : magnitude < 31u << 23 ? normal : infinite;
    return float_of(sign | wide_bits);
}

#ifdef __FLT16_MAX__
#define HAS_FLOAT16 1
INLINE uint16_t narrow_f16(float x) { _Float16 y = (_Float16)x; uint16_t bits; memcpy(&bits, &y, 2); return bits; }
#else
#define HAS_FLOAT16 0
INLINE uint16_t narrow_f16(float x) { (void)x; return 0; }
#endif

/* Return the bits of the largest number of a dtype that is not above `limit`; limit >= 0. */
INLINE uint64_t round_down(double limit, enum Dtype dtype)
{
    if (dtype == FLOAT64)
        return bits_of_double(limit);
    uint32_t bits = bits_of((float)limit);
    if (float_of(bits) > limit)
        bits--;
    if (dtype == BFLOAT16)
        return bits >> 16;
    if (dtype == FLOAT16) {
        uint16_t half = narrow_f16(float_of(bits));
        return widen_f16(half) > float_of(bits) ? half - 1 : half;
    }
    return bits;
}

/* Magnitudes, as bits, whose squares summed over a block stay in float32's normal range: 2^-40, 2^58. */
#define SMALL32 (87u << 23)
#define LARGE32 (185u << 23)

#define LARGER(a, b) ((a) > (b) ? (a) : (b))

/* Ask for memory that is needed soon. The processor's own prefetchers stop at the end of every page of
   4096 bytes and start slowly in the next: asking a block ahead saves a fifth of the time. Beyond the end
   of a tensor this does nothing. */
INLINE void fetch(const void *memory, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += LINE)
        __builtin_prefetch((const char *)memory + i);
}

/* ---- look: what is in a block ---------------------------------------------------------------- */

typedef struct {
    double sum, squares;
    uint64_t top; /* largest magnitude, as the integer of its bits */
    int64_t zeros;
} Look;

/* In float64: for the last elements of a tensor, and for squares that float32 cannot hold. */
INLINE Look look32_wide(const float *x, int64_t n)
{
    const u32 *bits = (const u32 *)x;
    double sum = 0, squares = 0;
    uint32_t top = 0, zeros = 0;
#pragma omp simd reduction(+ : sum, squares, zeros) reduction(max : top)
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = bits[i] & MAGNITUDE32;
        double value = x[i];
        sum += value;
        squares += value * value;
        top = magnitude > top ? magnitude : top;
        zeros += magnitude == 0;
    }
    return (Look){sum, squares, top, zeros};
}

/* In float32 where that is exact enough: no lane adds more than PART / 4 numbers before they move to
   float64, so a sum of squares is off by less than 2^-18, in practice 2^-23, and a norm by half.

   Four rows are read side by side, because the processor's prefetchers follow pages, and the same places of
   `next`, the block after this one, are asked for; NULL where there is nothing to bring in. */
INLINE Look look32(const float *x, int64_t n, const float *next)
{
    int64_t row = n / 4;
    Look seen = {0};
    uint32_t top = 0;
    for (int64_t part = 0; part < row; part += PART) {
        int64_t length = row - part < PART ? row - part : PART;
        const float *first = x + part;
        const u32 *bits = (const u32 *)first;
        float sum = 0, squares = 0;
        uint32_t part_top = 0, zeros = 0;
        for (int64_t i = part; next && i < 4 * row; i += row)
            fetch(next + i, length * sizeof(float));
#pragma omp simd reduction(+ : sum, squares, zeros) reduction(max : part_top)
        for (int64_t i = 0; i < length; i++) {
            float a = first[i], b = first[i + row], c = first[i + 2 * row], d = first[i + 3 * row];
            uint32_t ma = bits[i] & MAGNITUDE32, mb = bits[i + row] & MAGNITUDE32;
            uint32_t mc = bits[i + 2 * row] & MAGNITUDE32, md = bits[i + 3 * row] & MAGNITUDE32;
            sum += (a + b) + (c + d);
            squares += (a * a + b * b) + (c * c + d * d);
            uint32_t highest = LARGER(LARGER(ma, mb), LARGER(mc, md));
            part_top = LARGER(highest, part_top);
            zeros += (ma == 0) + (mb == 0) + (mc == 0) + (md == 0);
        }
        seen.sum += sum;
        seen.squares += squares;
        seen.zeros += zeros;
        top = LARGER(top, part_top);
    }
    Look rest = look32_wide(x + 4 * row, n - 4 * row);
    seen.top = LARGER(top, rest.top);
    if (seen.top < INFINITE32 && (seen.top > LARGE32 || (seen.top && seen.top < SMALL32)))
        return look32_wide(x, n);
    seen.sum += rest.sum;
    seen.squares += rest.squares;
    seen.zeros += rest.zeros;
    return seen;
}

INLINE Look look64(const double *x, int64_t n)
{
    const u64 *bits = (const u64 *)x;
    double sum = 0, squares = 0;
    uint64_t top = 0, zeros = 0;
    for (int64_t part = 0; part < n; part += 4 * PART) {
        int64_t end = n - part < 4 * PART ? n : part + 4 * PART;
        fetch(x + part + BLOCK, (end - part) * sizeof(double));
#pragma omp simd reduction(+ : sum, squares, zeros) reduction(max : top)
        for (int64_t i = part; i < end; i++) {
            uint64_t magnitude = bits[i] & MAGNITUDE64;
            sum += x[i];
            squares += x[i] * x[i];
            top = magnitude > top ? magnitude : top;
            zeros += magnitude == 0;
        }
    }
    return (Look){sum, squares, top, zeros};
}

/* ---- tally: how many elements of each magnitude ---------------------------------------------- */

#define BINS 256           /* four per octave, the first from 2^LOWEST */
#define LOWEST (-48)

/* The counts of one chunk. Four tables in turn: neighbours often fall into one bin, and adding to it twice
   would wait. */
typedef struct {
    uint32_t tables[4][BINS];
} Tally;

INLINE int32_t bin_of(int32_t octave, int32_t quarter)
{
    int32_t bin = (octave - LOWEST) * 4 + quarter;
    return bin < 0 ? 0 : bin > BINS - 1 ? BINS - 1 : bin;
}

/* The fourth power of a mantissa, from 1 to 2, lies between 1 and 16: its exponent is the quarter of the
   octave. Rounding moves no number across a border: tested at the neighbours of all three, in both dtypes. */
INLINE void bins32(const float *x, int64_t n, uint8_t *bins)
{
    const u32 *bits = (const u32 *)x;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float mantissa = float_of((bits[i] & 0x7fffffu) | 127u << 23), square = mantissa * mantissa;
        int32_t quarter = (int32_t)(bits_of(square * square) >> 23) - 127;
        bins[i] = (uint8_t)bin_of((int32_t)(bits[i] >> 23 & 0xffu) - 127, quarter);
    }
}

INLINE void bins64(const double *x, int64_t n, uint8_t *bins)
{
    const u64 *bits = (const u64 *)x;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double mantissa = double_of((bits[i] & 0xfffffffffffffull) | 1023ull << 52), square = mantissa * mantissa;
        int32_t quarter = (int32_t)(bits_of_double(square * square) >> 52) - 1023;
        bins[i] = (uint8_t)bin_of((int32_t)(bits[i] >> 52 & 0x7ffu) - 1023, quarter);
    }
}

/* Elements that belong to no bin: zeros, and what is not finite. */
typedef struct {
    int64_t zeros, nonfinite;
} Unbinned;

INLINE Unbinned unbinned32(const float *x, int64_t n)
{
    const u32 *bits = (const u32 *)x;
    uint32_t zeros = 0, nonfinite = 0;
#pragma omp simd reduction(+ : zeros, nonfinite)
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = bits[i] & MAGNITUDE32;
        zeros += magnitude == 0;
        nonfinite += magnitude >= INFINITE32;
    }
    return (Unbinned){zeros, nonfinite};
}

INLINE Unbinned unbinned64(const double *x, int64_t n)
{
    const u64 *bits = (const u64 *)x;
    uint64_t zeros = 0, nonfinite = 0;
#pragma omp simd reduction(+ : zeros, nonfinite)
    for (int64_t i = 0; i < n; i++) {
        uint64_t magnitude = bits[i] & MAGNITUDE64;
        zeros += magnitude == 0;
        nonfinite += magnitude >= INFINITE64;
    }
    return (Unbinned){zeros, nonfinite};
}

/* Count n bins, at most a block; the numbers in no bin stand in the first and the last. */
INLINE void count_bins(Tally *tally, const uint8_t *bins, int64_t n, Unbinned none)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, bins + i, 8); /* one load instead of eight */
        for (int k = 0; k < 8; k++)
            tally->tables[k & 3][eight >> 8 * k & 0xff]++;
    }
    for (; i < n; i++)
        tally->tables[0][bins[i]]++;
    tally->tables[0][0] -= (uint32_t)none.zeros;
    tally->tables[0][BINS - 1] -= (uint32_t)none.nonfinite;
}

/* Which elements of a block a histogram takes, `at` being the place of its first in the tensor: all or none
   of them; of a tensor of less than `every` blocks, every `every`-th element. */
typedef struct {
    Tally *tally; /* NULL: no histogram */
    int64_t every, phase;
    int scattered;
} Taken;

/* Whether a histogram takes a whole block. */
INLINE int takes_block(Taken taken, int64_t at) { return !taken.scattered && at / BLOCK % taken.every == taken.phase; }

/* Return the first element of a block that a scattered histogram takes. */
INLINE int64_t first_taken(Taken taken, int64_t at)
{
    int64_t ahead = (taken.phase - at) % taken.every;
    return ahead < 0 ? ahead + taken.every : ahead;
}

INLINE void take32(Taken taken, const float *block, int64_t at, int64_t n, Look seen)
{
    float scattered[BLOCK];
    uint8_t bins[BLOCK];
    if (taken.tally && takes_block(taken, at)) {
        bins32(block, n, bins);
        count_bins(taken.tally, bins, n, seen.top < INFINITE32 ? (Unbinned){seen.zeros, 0} : unbinned32(block, n));
    } else if (taken.tally && taken.scattered) {
        int64_t count = 0;
        for (int64_t i = first_taken(taken, at); i < n; i += taken.every)
            scattered[count++] = block[i];
        bins32(scattered, count, bins);
        count_bins(taken.tally, bins, count, unbinned32(scattered, count));
    }
}

INLINE void take64(Taken taken, const double *block, int64_t at, int64_t n)
{
    double scattered[BLOCK];
    uint8_t bins[BLOCK];
    if (taken.tally && takes_block(taken, at)) {
        bins64(block, n, bins);
        count_bins(taken.tally, bins, n, unbinned64(block, n));
    } else if (taken.tally && taken.scattered) {
        int64_t count = 0;
        for (int64_t i = first_taken(taken, at); i < n; i += taken.every)
            scattered[count++] = block[i];
        bins64(scattered, count, bins);
        count_bins(taken.tally, bins, count, unbinned64(scattered, count));
    }
}

/* ---- clamp: hold a finite block within its limit ---------------------------------------------- */

typedef struct {
    double squares_after, dot;
    int64_t clipped;
} Clamped;

/* In float64: for squares that float32 cannot hold. */
INLINE Clamped clamp32_wide(float *x, int64_t n, uint32_t limit)
{
    u32 *bits = (u32 *)x;
    double squares_after = 0, dot = 0;
    uint32_t clipped = 0;
#pragma omp simd reduction(+ : squares_after, dot, clipped)
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = bits[i] & MAGNITUDE32, sign = bits[i] & ~MAGNITUDE32;
        double before = x[i];
        clipped += magnitude > limit;
        bits[i] = sign | (magnitude > limit ? limit : magnitude);
        double after = x[i];
        squares_after += after * after;
        dot += before * after;
    }
    return (Clamped){squares_after, dot, clipped};
}

/* In float32 where that is exact enough, as look32 does; `top` is the largest magnitude. */
INLINE Clamped clamp32(float *x, int64_t n, uint32_t limit, uint64_t top)
{
    Clamped total = {0};
    if (limit < SMALL32 || top > LARGE32)
        return clamp32_wide(x, n, limit);
    for (int64_t part = 0; part < n; part += 2 * PART) {
        int64_t length = n - part < 2 * PART ? n - part : 2 * PART;
        float *first = x + part, squares_after = 0, dot = 0;
        u32 *bits = (u32 *)first;
        uint32_t clipped = 0;
#pragma omp simd reduction(+ : squares_after, dot, clipped)
        for (int64_t i = 0; i < length; i++) {
            uint32_t magnitude = bits[i] & MAGNITUDE32, sign = bits[i] & ~MAGNITUDE32;
            uint32_t held = magnitude > limit ? limit : magnitude;
            float before = first[i], after = float_of(sign | held);
            clipped += magnitude > limit;
            bits[i] = sign | held;
            squares_after += after * after;
            dot += before * after;
        }
        total.squares_after += squares_after;
        total.dot += dot;
        total.clipped += clipped;
    }
    return total;
}

INLINE Clamped clamp64(double *x, int64_t n, uint64_t limit)
{
    u64 *bits = (u64 *)x;
    double squares_after = 0, dot = 0;
    uint64_t clipped = 0;
#pragma omp simd reduction(+ : squares_after, dot, clipped)
    for (int64_t i = 0; i < n; i++) {
        uint64_t magnitude = bits[i] & MAGNITUDE64, sign = bits[i] & ~MAGNITUDE64;
        double before = x[i];
        clipped += magnitude > limit;
        bits[i] = sign | (magnitude > limit ? limit : magnitude);
        double after = x[i];
        squares_after += after * after;
        dot += before * after;
    }
    return (Clamped){squares_after, dot, clipped};
}

/* ---- careful: a block with NaN, infinities, or squares out of range --------------------------- */

/* One element, given as its value and changed through `after`; returns whether it changed. */
INLINE int careful_one(double before, double limit, int zero_nonfinite, double *after, Sums *s)
{
    int finite = isfinite(before);
    *after = before;
    if (!finite) {
        s->nonfinite++;
        s->nans += isnan(before) != 0;
        if (zero_nonfinite)
            *after = 0;
    }
    if (fabs(*after) > limit) {
        s->clipped++;
        s->held += !finite;
        *after = copysign(limit, before);
    }
    if (finite) {
        double magnitude = fabs(before);
        s->max_abs = magnitude > s->max_abs ? magnitude : s->max_abs;
        s->zeros += magnitude == 0;
        s->sum += before;
        s->squares += (wide)before * before;
        s->squares_after += (wide)*after * *after;
        s->dot += (wide)before * *after;
    }
    return *after != before && !(isnan(*after) && isnan(before));
}

/* ---- one chunk of one tensor ------------------------------------------------------------------ */

INLINE void add_look(Sums *s, Look seen, double top)
{
    s->sum += seen.sum;
    s->squares += seen.squares;
    s->zeros += seen.zeros;
    s->max_abs = top > s->max_abs ? top : s->max_abs;
}

INLINE void add_unchanged(Sums *s, Look seen)
{
    s->squares_after += seen.squares;
    s->dot += seen.squares;
}

INLINE void add_clamped(Sums *s, Clamped c)
{
    s->squares_after += c.squares_after;
    s->dot += c.dot;
    s->clipped += c.clipped;
}

INLINE void measure32(float *x, int64_t at, int64_t length, double limit, int clip, int zero, Taken taken, Sums *s)
{
    uint32_t limit_bits = clip ? (uint32_t)round_down(limit, FLOAT32) : INFINITE32;
    double used = clip ? float_of(limit_bits) : INFINITY;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK;
        float *block = x + start;
        Look seen = look32(block, n, block + BLOCK);
        take32(taken, block, at + start, n, seen);
        if (seen.top >= INFINITE32) {
            for (int64_t i = 0; i < n; i++) {
                double after;
                if (careful_one(block[i], used, zero, &after, s))
                    block[i] = (float)after;
            }
            continue;
        }
        add_look(s, seen, float_of((uint32_t)seen.top));
        if (seen.top > limit_bits)
            add_clamped(s, clamp32(block, n, limit_bits, seen.top));
        else
            add_unchanged(s, seen);
    }
}

/* Squares beyond these leave float64's range when a block of them is summed, or lose precision. */
#define LARGE 1e150
#define SMALL 1e-140

INLINE void measure64(double *x, int64_t at, int64_t length, double limit, int clip, int zero, Taken taken, Sums *s)
{
    uint64_t limit_bits = clip ? round_down(limit, FLOAT64) : INFINITE64;
    double used = clip ? double_of(limit_bits) : INFINITY;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK;
        double *block = x + start;
        Look seen = look64(block, n);
        take64(taken, block, at + start, n);
        double top = double_of(seen.top);
        if (seen.top >= INFINITE64 || top > LARGE || (top > 0 && top < SMALL) || (top > used && used < SMALL)) {
            for (int64_t i = 0; i < n; i++) {
                double after;
                if (careful_one(block[i], used, zero, &after, s))
                    block[i] = after;
            }
            continue;
        }
        add_look(s, seen, top);
        if (seen.top > limit_bits)
            add_clamped(s, clamp64(block, n, limit_bits));
        else
            add_unchanged(s, seen);
    }
}

/* 16-bit gradients: the block is widened, looked at and clamped there; what changed is written back
   exactly, since a clamped element is either its old self or the limit. */
INLINE void measure16(u16 *x, int64_t at, int64_t length, double limit, int clip, int zero, enum Dtype dtype,
                      Taken taken, Sums *s)
{
    int brain = dtype == BFLOAT16;
    uint16_t limit_half = clip ? (uint16_t)round_down(limit, dtype) : (brain ? INFINITE_BF16 : INFINITE_F16);
    float used = brain ? widen_bf16(limit_half) : widen_f16(limit_half);
    float block[BLOCK];
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK;
        u16 *half = x + start;
        for (int64_t part = 0; part < n; part += 4 * PART) {
            int64_t end = n - part < 4 * PART ? n : part + 4 * PART;
            fetch(half + part + BLOCK, (end - part) * sizeof(u16));
            if (brain)
                for (int64_t i = part; i < end; i++)
                    block[i] = widen_bf16(half[i]);
            else
                for (int64_t i = part; i < end; i++)
                    block[i] = widen_f16(half[i]);
        }
        Look seen = look32(block, n, NULL);
        take32(taken, block, at + start, n, seen);
        if (seen.top >= INFINITE32) {
            for (int64_t i = 0; i < n; i++) {
                double after;
                if (careful_one(block[i], used, zero, &after, s))
                    half[i] = brain ? narrow_bf16((float)after) : narrow_f16((float)after);
            }
            continue;
        }
        add_look(s, seen, float_of((uint32_t)seen.top));
        if (seen.top <= bits_of(used)) {
            add_unchanged(s, seen);
            continue;
        }
        add_clamped(s, clamp32(block, n, bits_of(used), seen.top));
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            uint16_t magnitude = half[i] & MAGNITUDE16, sign = half[i] & (uint16_t)~MAGNITUDE16;
            half[i] = sign | (magnitude > limit_half ? limit_half : magnitude);
        }
    }
}

/* ---- scale: multiply a chunk, and measure what came out --------------------------------------- */

/* Add the squares of the finite elements; taken when the fast sum met something that is not finite
   or squares that leave float64's range. */
#define ADD_FINITE_SQUARES(s, value, n)                    \
    for (int64_t i = 0; i < (n); i++) {                    \
        double one = (value);                              \
        if (isfinite(one))                                 \
            (s)->squares_after += (wide)one * one;         \
    }

/* Squares whose sum over a block lies between these lost nothing in float32: 2^-90, 2^120. */
#define LEAST_SUM 0x1p-90
#define MOST_SUM 0x1p120

/* Four rows side by side and the next block asked for, as in look32. */
INLINE void scale32(float *x, int64_t length, float factor, Sums *s)
{
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK, row = n / 4;
        float *block = x + start, *second = block + row, *third = second + row, *fourth = third + row;
        double squares = 0;
        for (int64_t part = 0; part < row; part += PART) {
            int64_t end = row - part < PART ? row : part + PART;
            float sum = 0;
            for (int64_t i = part; i < 4 * row; i += row)
                fetch(block + BLOCK + i, (end - part) * sizeof(float));
#pragma omp simd reduction(+ : sum)
            for (int64_t i = part; i < end; i++) {
                float a = block[i] * factor, b = second[i] * factor, c = third[i] * factor, d = fourth[i] * factor;
                block[i] = a, second[i] = b, third[i] = c, fourth[i] = d;
                sum += (a * a + b * b) + (c * c + d * d);
            }
            squares += sum;
        }
        for (int64_t i = 4 * row; i < n; i++) {
            block[i] *= factor;
            squares += (double)block[i] * block[i];
        }
        if (!(squares > LEAST_SUM && squares < MOST_SUM))
            squares = look32_wide(block, n).squares;
        if (isfinite(squares))
            s->squares_after += squares;
        else
            ADD_FINITE_SQUARES(s, block[i], n)
    }
}

INLINE void scale64(double *x, int64_t length, double factor, Sums *s)
{
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK;
        double *block = x + start, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) {
            block[i] *= factor;
            squares += block[i] * block[i];
        }
        if (squares < LARGE && squares > 1 / LARGE)
            s->squares_after += squares;
        else
            ADD_FINITE_SQUARES(s, block[i], n)
    }
}

INLINE void scale16(u16 *x, int64_t length, float factor, enum Dtype dtype, Sums *s)
{
    int brain = dtype == BFLOAT16;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int64_t n = length - start < BLOCK ? length - start : BLOCK;
        u16 *half = x + start;
        double squares = 0;
        if (brain) {
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < n; i++) {
                half[i] = narrow_bf16(widen_bf16(half[i]) * factor);
                double after = widen_bf16(half[i]);
                squares += after * after;
            }
        } else {
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < n; i++) {
                half[i] = narrow_f16(widen_f16(half[i]) * factor);
                double after = widen_f16(half[i]);
                squares += after * after;
            }
        }
        if (isfinite(squares))
            s->squares_after += squares;
        else
            ADD_FINITE_SQUARES(s, brain ? widen_bf16(half[i]) : widen_f16(half[i]), n)
    }
}

/* ---- work: chunks of tensors, shared out among threads ---------------------------------------- */

INLINE int64_t size_of(enum Dtype dtype) { return dtype == FLOAT64 ? 8 : dtype == FLOAT32 ? 4 : 2; }

/* Other threads may have other chunks of the same tensor, unless this is all of it. */
INLINE void add_tally(int64_t *counts, const Tally *tally, int all_of_it)
{
    int64_t sums[BINS];
    for (int bin = 0; bin < BINS; bin++) /* unsigned: what was taken off one table is in the others */
        sums[bin] = tally->tables[0][bin] + tally->tables[1][bin] + tally->tables[2][bin] + tally->tables[3][bin];
    for (int bin = 0; all_of_it && bin < BINS; bin++)
        counts[bin] += sums[bin];
    for (int bin = 0; !all_of_it && bin < BINS; bin++)
        if (sums[bin])
            __atomic_fetch_add(&counts[bin], sums[bin], __ATOMIC_RELAXED);
}

CLONES static void do_job(const Work *work, Job *job)
{
    int64_t tensor = job->tensor, n = job->length;
    enum Dtype dtype = work->dtype[tensor];
    char *x = (char *)work->data[tensor] + job->start * size_of(dtype);
    Sums *s = &job->sums;
    if (work->coefficients) {
        double factor = work->coefficients[tensor];
        float single = float_of((uint32_t)round_down(factor, FLOAT32));
        if (dtype == FLOAT32)
            scale32((float *)x, n, single, s);
        else if (dtype == FLOAT64)
            scale64((double *)x, n, factor, s);
        else
            scale16((u16 *)x, n, single, dtype, s);
        return;
    }
    int clip = work->limits != NULL, zero = work->zero_nonfinite;
    double limit = clip ? work->limits[tensor] : INFINITY;
    Tally tally;
    Taken taken = {NULL, work->every, work->phase, work->numel[tensor] < work->every * BLOCK};
    if (work->counts) {
        memset(&tally, 0, sizeof tally);
        taken.tally = &tally;
    }
    if (dtype == FLOAT32)
        measure32((float *)x, job->start, n, limit, clip, zero, taken, s);
    else if (dtype == FLOAT64)
        measure64((double *)x, job->start, n, limit, clip, zero, taken, s);
    else
        measure16((u16 *)x, job->start, n, limit, clip, zero, dtype, taken, s);
    if (work->counts)
        add_tally(work->counts + tensor * BINS, &tally, n == work->numel[tensor]);
}

static void do_jobs(void *shared)
{
    Work *work = shared;
    for (;;) {
        int64_t index = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (index >= work->job_count)
            return;
        do_job(work, &work->jobs[index]);
    }
}

/* GOMP_parallel of the OpenMP library that torch has already loaded: its threads are awake and as
   many as the user asked torch for. A second pool beside it would fight for the same cores. */
typedef void (*StartThreads)(void (*)(void *), void *, unsigned, unsigned);
static StartThreads start_threads;

void gw_use_threads_of(StartThreads starter) { start_threads = starter; }

/* Fill in jobs for every tensor with elements (and, when scaling, a coefficient below 1). */
static int64_t plan(Work *work, int64_t tensors, int64_t *elements)
{
    int64_t count = 0;
    *elements = 0;
    for (int64_t t = 0; t < tensors; t++) {
        if (work->coefficients && !(work->coefficients[t] < 1))
            continue;
        for (int64_t start = 0; start < work->numel[t]; start += CHUNK) {
            int64_t left = work->numel[t] - start, length = left < CHUNK ? left : CHUNK;
            if (work->jobs)
                work->jobs[count] = (Job){.tensor = t, .start = start, .length = length};
            *elements += length;
            count++;
        }
    }
    return count;
}

/* Do all the work; returns 0, or -1 when there is no memory, with nothing changed. */
static int run(Work *work, int64_t tensors, unsigned threads)
{
    int64_t elements;
    work->job_count = plan(work, tensors, &elements);
    work->jobs = malloc((work->job_count + 1) * sizeof(Job));
    if (!work->jobs)
        return -1;
    plan(work, tensors, &elements);
    if (threads > elements / WORTH_A_THREAD)
        threads = elements / WORTH_A_THREAD;
    if (start_threads && threads > 1)
        start_threads(do_jobs, work, threads, 0);
    else
        do_jobs(work);
    return 0;
}

static void add_sums(Sums *to, const Sums *from)
{
    to->sum += from->sum;
    to->squares += from->squares;
    to->squares_after += from->squares_after;
    to->dot += from->dot;
    to->max_abs = from->max_abs > to->max_abs ? from->max_abs : to->max_abs;
    to->nonfinite += from->nonfinite;
    to->nans += from->nans;
    to->zeros += from->zeros;
    to->clipped += from->clipped;
    to->held += from->held;
}

/* Return the sums of one tensor, joined in order; `job` moves past its last job. */
static Sums join(const Work *work, int64_t tensor, int64_t *job)
{
    Sums total = {0};
    for (; *job < work->job_count && work->jobs[*job].tensor == tensor; ++*job)
        add_sums(&total, &work->jobs[*job].sums);
    return total;
}

static double root(wide squares)
{
    wide value = sqrtl(squares);
    return value > DBL_MAX ? DBL_MAX : (double)value;
}

static void write_column(double *rows, int64_t stride, int64_t t, const Work *work, const Sums *s)
{
    double norm = root(s->squares), after = root(s->squares_after), cosine = norm > 0 ? 0 : 1;
    if (after > 0) {
        cosine = (double)(s->dot / (sqrtl(s->squares) * sqrtl(s->squares_after)));
        cosine = cosine > 1 ? 1 : cosine;
    }
    double limit = 0;
    if (s->held) {
        enum Dtype dtype = work->dtype[t];
        uint64_t bits = round_down(work->limits[t], dtype);
        limit = dtype == FLOAT64    ? double_of(bits)
                : dtype == FLOAT32  ? float_of((uint32_t)bits)
                : dtype == BFLOAT16 ? widen_bf16((uint16_t)bits)
                                    : widen_f16((uint16_t)bits);
    }
    rows[HELD * stride + t] = (double)s->held * limit * limit;
    rows[NORM * stride + t] = norm;
    rows[MAX_ABS * stride + t] = s->max_abs;
    rows[MEAN * stride + t] = work->numel[t] ? (double)(s->sum / work->numel[t]) : 0;
    rows[NONFINITE * stride + t] = (double)s->nonfinite;
    rows[NANS * stride + t] = (double)s->nans;
    rows[ZERO * stride + t] = (double)s->zeros;
    rows[CLIPPED * stride + t] = (double)s->clipped;
    rows[NORM_AFTER * stride + t] = after;
    rows[COSINE_AFTER * stride + t] = cosine;
    rows[PRESENT * stride + t] = 1;
}

/* ---- samples: parts of tensors, for cosines ------------------------------------------------------ */

#define SLICE 512          /* neighbours that are sampled together: strided single elements would bring in
                              every cache line all the same */

/* Widen n elements at x into floats. */
INLINE void widen(const void *x, int64_t n, enum Dtype dtype, float *out)
{
    if (dtype == FLOAT32)
        memcpy(out, x, n * sizeof(float));
    else if (dtype == BFLOAT16)
        for (int64_t i = 0; i < n; i++)
            out[i] = widen_bf16(((const u16 *)x)[i]);
    else if (dtype == FLOAT16)
        for (int64_t i = 0; i < n; i++)
            out[i] = widen_f16(((const u16 *)x)[i]);
    else
        for (int64_t i = 0; i < n; i++)
            out[i] = (float)((const double *)x)[i];
}

/* Copy n elements as floats, those that are not finite as zero. */
CLONES static void sample_slice(const void *x, int64_t n, enum Dtype dtype, float *out)
{
    widen(x, n, dtype, out);
    u32 *bits = (u32 *)out;
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        bits[i] = (bits[i] & MAGNITUDE32) >= INFINITE32 ? 0 : bits[i];
}

typedef struct {
    double aa, bb, ab;
} Products;

INLINE Products products_wide(const float *a, const float *b, int64_t n)
{
    double aa = 0, bb = 0, ab = 0;
#pragma omp simd reduction(+ : aa, bb, ab)
    for (int64_t i = 0; i < n; i++) {
        double x = a[i], y = b[i];
        aa += x * x, bb += y * y, ab += x * y;
    }
    return (Products){aa, bb, ab};
}

/* In float32 over a slice and float64 beyond: cosines need no more. */
CLONES static Products products(const float *a, const float *b, int64_t n)
{
    Products sums = {0};
    for (int64_t start = 0; start < n; start += SLICE) {
        int64_t end = n - start < SLICE ? n : start + SLICE;
        float aa = 0, bb = 0, ab = 0;
#pragma omp simd reduction(+ : aa, bb, ab)
        for (int64_t i = start; i < end; i++)
            aa += a[i] * a[i], bb += b[i] * b[i], ab += a[i] * b[i];
        sums.aa += aa, sums.bb += bb, sums.ab += ab;
    }
    int in_range = sums.aa > 1e-30 && sums.aa < 1e30 && sums.bb > 1e-30 && sums.bb < 1e30;
    return in_range ? sums : products_wide(a, b, n);
}

/* ---- what Python calls ------------------------------------------------------------------------ */

/* Raised whenever a signature or a row changes; cpu.py refuses another number. */
int gw_version(void) { return 3; }

/* One bit per enum Dtype: what this build can do. */
int gw_dtypes(void)
{
    int wide_enough = LDBL_MAX_EXP > DBL_MAX_EXP; /* else squares of float64 would overflow */
    return 1 << FLOAT32 | 1 << BFLOAT16 | HAS_FLOAT16 << FLOAT16 | wide_enough << FLOAT64;
}

/* Measure, clamp to `limits` unless NULL, measure again. NOTHING leaves its column alone.
   Unless `counts` is NULL, also add the magnitudes before clamping of every `every`-th block of each tensor,
   beginning with number `phase`, to counts[t][BINS].
   Returns 0, or -1 without having changed anything. */
int gw_measure(int64_t tensors, void *const *data, const int64_t *numel, const uint8_t *dtype,
               const double *limits, int zero_nonfinite, unsigned threads, double *rows, int64_t every,
               int64_t phase, int64_t *counts)
{
    Work work = {.data = data, .numel = numel, .dtype = dtype, .limits = limits,
                 .zero_nonfinite = zero_nonfinite, .every = every, .phase = phase, .counts = counts};
    if (run(&work, tensors, threads))
        return -1;
    for (int64_t t = 0, job = 0; t < tensors; t++) {
        Sums sums = join(&work, t, &job);
        if (dtype[t] != NOTHING)
            write_column(rows, tensors, t, &work, &sums);
    }
    free(work.jobs);
    return 0;
}

/* Multiply tensor t by coefficients[t] where that is below 1 and write its norm then. */
int gw_scale(int64_t tensors, void *const *data, const int64_t *numel, const uint8_t *dtype,
             const double *coefficients, unsigned threads, double *rows)
{
    Work work = {.data = data, .numel = numel, .dtype = dtype, .coefficients = coefficients};
    if (run(&work, tensors, threads))
        return -1;
    for (int64_t t = 0, job = 0; t < tensors; t++) {
        Sums sums = join(&work, t, &job);
        if (dtype[t] != NOTHING && coefficients[t] < 1)
            rows[NORM_AFTER * tensors + t] = root(sums.squares_after);
    }
    free(work.jobs);
    return 0;
}

/* Set every element to zero if *when is not 0. */
void gw_zero(int64_t tensors, void *const *data, const int64_t *numel, const uint8_t *dtype,
             const double *when)
{
    if (*when == 0)
        return;
    for (int64_t t = 0; t < tensors; t++)
        if (numel[t])
            memset(data[t], 0, numel[t] * size_of(dtype[t]));
}

/* Copy slices[t] slices of each tensor, evenly spread, or all of it where slices[t] is 0, one tensor
   after the other into `out`, as floats, what is not finite as zero. */
void gw_sample(int64_t tensors, void *const *data, const int64_t *numel, const uint8_t *dtype,
               const int64_t *slices, float *out)
{
    for (int64_t t = 0; t < tensors; t++) {
        const char *x = data[t];
        int64_t size = size_of(dtype[t]);
        if (!slices[t]) {
            sample_slice(x, numel[t], dtype[t], out);
            out += numel[t];
        }
        for (int64_t s = 0; s < slices[t]; s++, out += SLICE)
            sample_slice(x + numel[t] / slices[t] * s * size, SLICE, dtype[t], out);
    }
}

/* Write sum a*a, sum b*b and sum a*b of each tensor's samples into out[0][t], out[1][t], out[2][t]. */
void gw_products(int64_t tensors, const int64_t *lengths, const float *a, const float *b, double *out)
{
    for (int64_t t = 0; t < tensors; a += lengths[t], b += lengths[t], t++) {
        Products sums = products(a, b, lengths[t]);
        out[t] = sums.aa, out[tensors + t] = sums.bb, out[2 * tensors + t] = sums.ab;
    }
}
