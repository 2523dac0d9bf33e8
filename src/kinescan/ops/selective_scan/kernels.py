"""Loops of the selective scan, compiled: float32, vectors of channels, states recomputed in the backward pass.

Legend as in `reference.py`: u, delta, A, B, C, D, z, h; `rates` is A log2(e), so that exp(Delta A) = 2**(Delta rates).
In a kernel, r is a track, t a step, s a position in the state; `LANES` neighbouring channels, a group, are one vector.
Where that does not divide the channels, the last group is padded with zeros. Tensors come as addresses of float32
memory, which saves counting references; the caller keeps the memory alive.

Exponentials are polynomials in registers, and most of the work. What is known about the rates saves some of it
(`kind_of_rates`): negative ones need no check of the range, and where a channel's are 1, 2, 3 ... S times its first, as
a Mamba block has them before training, one exponential serves `RUN` positions. That is looked up at every call.

The vectors are explicit: a numba type whose operations are written out as LLVM instructions, so that no loop has to be
recognised as one that can be vectorised, and no fast-math flag is needed. In particular not `reassoc`: it would allow
to simplify (x + 1.5 * 2**23) - 1.5 * 2**23, which rounds x to an integer, to x; then `exp2` is wrong and so is every
gradient.

All of it is one file on purpose: numba keeps compiled code as long as the file it came from does not change.
"""

import operator
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 32
"""Channels of a vector: four registers of AVX2 or two of AVX-512, enough to hide how long an instruction takes."""
CHUNK = 16
"""Steps whose states the backward pass holds at once; of longer sequences it keeps one state per chunk."""
STATE_SIZE = 16
"""The size of a state that fills half a vector: such a state is written, and a step of it made, as it lies."""
LINE = 64
"""Bytes of a cache line, a whole number of which a tensor's memory begins at."""
LARGE = 1 << 23
"""Values of a result that no cache holds until it is read: 32 MiB."""
RUN = 8
"""Positions of a state whose decays are products of one exponential, where rates are multiples; a power of 2.

Of a product of so many the relative error stays below 1e-6, whatever the number of positions.
"""
ANY, NEGATIVE, MULTIPLES = 0, 1, 2
"""What is known about rates; see `kind_of_rates`."""
_SAME_RATE = np.float32(2.0**-21)
"""Relative difference up to which a rate counts as a multiple: what exp(log(k)) in float32 may miss k by."""

HALF = LANES // 2

_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_HALF_FLOATS = ir.VectorType(ir.FloatType(), HALF)


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_VECTOR = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [float(np.float32(value))] * LANES)


def _pointer(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    floats = builder.inttoptr(address, ir.FloatType().as_pointer())
    return builder.bitcast(builder.gep(floats, [index]), kind.as_pointer())


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    name = f"llvm.fmuladd.v{LANES}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), name)
    return builder.call(function, [a, b, c])


def _at_least(builder: Any, low: Any, x: Any) -> Any:
    """The larger one; x where x is NaN."""
    return builder.select(builder.fcmp_ordered(">", low, x), low, x)


def _power(builder: Any, f: Any, shifted: Any) -> Any:
    """2**(f + n), f in [-1/2, 1/2], n in the lowest bits of `shifted`.

    2**f = 1 + f (E1 + f (E2 + ...)) has a relative error of 2e-9, with rounding 8e-8.
    """
    p = _constant(0.00015353362)
    for coefficient in (0.0013398874, 0.009618437, 0.055503324, 0.24022648, 0.69314718, 1.0):
        p = _fma(builder, p, f, _constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _FLOATS)


_MAGIC = 1.5 * 2**23
"""x + _MAGIC has x, rounded to an integer, in its lowest bits."""


def _emit_exp2(builder: Any, x: Any) -> Any:
    x = _at_least(builder, _constant(-127.0), x)
    x = builder.select(builder.fcmp_ordered("<", _constant(128.0), x), _constant(128.0), x)
    shifted = builder.fadd(x, _constant(_MAGIC))
    return _power(builder, builder.fsub(x, builder.fsub(shifted, _constant(_MAGIC))), shifted)


def _at_least_of_negative(builder: Any, low: float, x: Any) -> Any:
    """As `_at_least`, for x without a positive sign, compared as integers: units that multiply are left to the rest.

    A NaN is lost.
    """
    bits, bound = builder.bitcast(x, _INTS), builder.bitcast(_constant(low), _INTS)
    return builder.bitcast(builder.select(builder.icmp_unsigned("<", bits, bound), bits, bound), _FLOATS)


def _emit_exp2_of_negative(builder: Any, x: Any) -> Any:
    """As `_emit_exp2` for x <= 0 that is not a NaN; 0.0 may have either sign."""
    x = _at_least_of_negative(builder, -127.0, x)
    shifted = builder.fadd(x, _constant(_MAGIC))
    return _power(builder, builder.fsub(x, builder.fsub(shifted, _constant(_MAGIC))), shifted)


def _emit_exp_minus_abs(builder: Any, x: Any) -> Any:
    sign = ir.Constant(_INTS, [-(2**31)] * LANES)
    x = builder.bitcast(builder.or_(builder.bitcast(x, _INTS), sign), _FLOATS)
    x = _at_least(builder, _constant(-87.3), x)
    shifted = _fma(builder, x, _constant(1.4426950408889634), _constant(_MAGIC))
    whole = builder.fsub(shifted, _constant(_MAGIC))
    rest = _fma(builder, whole, _constant(-0.693359375), x)
    rest = _fma(builder, whole, _constant(2.12194440e-4), rest)
    return _power(builder, builder.fmul(rest, _constant(1.4426950408889634)), shifted)


def _emit_softplus(builder: Any, x: Any) -> Any:
    """max(x, 0) + log1p(w), w = exp(-|x|): log1p(w) = 2 artanh(q), q = w / (2 + w) in [0, 1/3], to 4e-9."""
    w = _emit_exp_minus_abs(builder, x)
    q = builder.fdiv(w, builder.fadd(_constant(2.0), w))
    square = builder.fmul(q, q)
    p = _constant(0.14089167)
    for coefficient in (0.139803, 0.20012455, 0.33333158, 1.0):
        p = _fma(builder, p, square, _constant(coefficient))
    return _fma(builder, builder.fadd(q, q), p, _at_least(builder, _constant(0.0), x))


def _emit_sigmoid(builder: Any, x: Any) -> Any:
    w = _emit_exp_minus_abs(builder, x)
    above = builder.select(builder.fcmp_ordered(">=", x, _constant(0.0)), _constant(1.0), w)
    return builder.fdiv(above, builder.fadd(_constant(1.0), w))


def _of_vectors(emit: Callable[..., Any], num_operands: int) -> Any:
    """A function on vectors for use in compiled code, from the instructions it emits."""
    signature = _VECTOR(*[_VECTOR] * num_operands)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return emit(builder, *values)

    if num_operands == 1:
        return intrinsic(lambda context, a: (signature, generate))
    if num_operands == 2:
        return intrinsic(lambda context, a, b: (signature, generate))
    return intrinsic(lambda context, a, b, c: (signature, generate))


exp2 = _of_vectors(_emit_exp2, 1)
exp2_of_negative = _of_vectors(_emit_exp2_of_negative, 1)
softplus = _of_vectors(_emit_softplus, 1)
sigmoid = _of_vectors(_emit_sigmoid, 1)
fma = _of_vectors(_fma, 3)
_add = _of_vectors(lambda builder, a, b: builder.fadd(a, b), 2)
_multiply = _of_vectors(lambda builder, a, b: builder.fmul(a, b), 2)


def _loading(kind: Any, result: Any) -> Any:
    def typing(context, address, index):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            address, index = values
            return builder.load(_pointer(builder, address, index, kind), align=4)

        return result(types.intp, types.intp), generate

    return intrinsic(typing)


def _store_past_caches(builder: Any, value: Any, pointer: Any, align: int) -> None:
    """To memory that is not read again soon, without its old content being read first; in whole cache lines."""
    stored = builder.store(value, pointer, align=align)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


def _storing(kind: Any, stored: Any, past_caches: bool = False) -> Any:
    def typing(context, address, index, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
            address, index, value = values
            pointer = _pointer(builder, address, index, kind)
            if past_caches:
                _store_past_caches(builder, value, pointer, LINE)
            else:
                builder.store(value, pointer, align=4)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, stored), generate

    return intrinsic(typing)


# From an address and an index, counted in floats: a vector of them, or one alone.
load, store = _loading(_FLOATS, _VECTOR), _storing(_FLOATS, _VECTOR)
store_past_caches = _storing(_FLOATS, _VECTOR, past_caches=True)
get, put = _loading(ir.FloatType(), types.float32), _storing(ir.FloatType(), types.float32)


def _emit_fetch(builder: Any, address: Any, index: Any) -> None:
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    pointer = builder.bitcast(_pointer(builder, address, index, ir.FloatType()), byte)
    builder.call(function, [pointer, ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)])


@intrinsic
def fetch(context, address, index):  # type: ignore[no-untyped-def]
    """Asks for the memory at an address, which may lie anywhere, before it is needed."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        _emit_fetch(builder, *values)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def settle(context):  # type: ignore[no-untyped-def]
    """What was written past the caches is there for every thread that learns of it."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def spread(context, number):  # type: ignore[no-untyped-def]
    """A float32 in all lanes."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), values[0], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(_INTS, [0] * LANES)
        return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), zeros)

    return _VECTOR(types.float32), generate


def _half(builder: Any, vector: Any, which: int) -> Any:
    """The lower or the upper half of the lanes."""
    width = vector.type.count // 2
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(which * width, (which + 1) * width)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


@intrinsic
def add_halves(context, address, index, vector):  # type: ignore[no-untyped-def]
    """Adds both halves of a vector to the HALF floats there: sums over channels that need no lane of their own."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        address, index, vector = values
        pointer = _pointer(builder, address, index, _HALF_FLOATS)
        both = builder.fadd(_half(builder, vector, 0), _half(builder, vector, 1))
        builder.store(builder.fadd(builder.load(pointer, align=4), both), pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, _VECTOR), generate


@intrinsic
def total(context, address, index):  # type: ignore[no-untyped-def]
    """The sum of the HALF floats there."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        address, index = values
        rest = builder.load(_pointer(builder, address, index, _HALF_FLOATS), align=4)
        while rest.type.count > 1:
            rest = builder.fadd(_half(builder, rest, 0), _half(builder, rest, 1))
        return builder.extract_element(rest, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.intp, types.intp), generate


def _transposing(size: int, past_caches: bool) -> Any:
    """`size` rows of as many floats, `stride` apart, become columns.

    `past_caches`: as `_store_past_caches`, which wants them to be whole cache lines.
    """
    kind, indices = ir.VectorType(ir.FloatType(), size), ir.VectorType(ir.IntType(32), size)

    def row(builder: Any, address: Any, first: Any, stride: Any, k: int) -> Any:
        return _pointer(builder, address, builder.add(first, builder.mul(stride, ir.Constant(stride.type, k))), kind)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, at, stride, target, target_at, target_stride = values
        rows = [builder.load(row(builder, source, at, stride, k), align=4) for k in range(size)]
        span = 1
        while span < size:  # swap the off-diagonal blocks of each pair of rows, of 1, then 2, then 4 ... lanes
            low = [k if not k & span else size + k - span for k in range(size)]
            high = [k + span if not k & span else size + k for k in range(size)]
            for k in range(size):
                if not k & span:
                    a, b = rows[k], rows[k + span]
                    rows[k] = builder.shuffle_vector(a, b, ir.Constant(indices, low))
                    rows[k + span] = builder.shuffle_vector(a, b, ir.Constant(indices, high))
            span *= 2
        for k in range(size):
            pointer = row(builder, target, target_at, target_stride, k)
            if past_caches:
                _store_past_caches(builder, rows[k], pointer, 4 * size)
            else:
                builder.store(rows[k], pointer, align=4)
        return context.get_dummy_value()

    def typing(context, source, at, stride, target, target_at, target_stride):  # type: ignore[no-untyped-def]
        return types.void(*[types.intp] * 6), generate

    return intrinsic(typing)


transpose_8x8, transpose_16x16 = _transposing(8, False), _transposing(16, True)


def _split(builder: Any, vector: Any, k: int) -> Any:
    """Lane 2 k in the first half of the lanes, lane 2 k + 1 in the second."""
    lanes = [2 * k + which for which in (0, 1) for _ in range(LANES // 2)]
    return builder.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, lanes))


def _half_totals(builder: Any, vectors: list[Any]) -> Any:
    """The sums of the halves of LANES / 2 vectors: lanes 2 k and 2 k + 1 are those of vector k."""
    span = LANES // 4
    while span:  # of each pair of vectors, one half of the lanes is added to the other, and both fit into one
        low = [i if not i & span else LANES + i - span for i in range(LANES)]
        high = [i + span if not i & span else LANES + i for i in range(LANES)]
        pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
        vectors = [
            builder.fadd(*(builder.shuffle_vector(a, b, ir.Constant(_INTS, lanes)) for lanes in (low, high)))
            for a, b in pairs
        ]
        span //= 2
    order = [k + LANES // 2 * which for k in range(LANES // 2) for which in (0, 1)]
    return builder.shuffle_vector(vectors[0], ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, order))


@intrinsic
def advance_as_it_lies(context, state, at, rates, rate_at, B, B_at, C, C_at, step, x, target):  # type: ignore[no-untyped-def]
    """One step of a group of channels, as they lie in a tensor [D, STATE_SIZE]; gives C h of each channel.

    A vector holds two channels. rates, like state and `target`, are [D, STATE_SIZE]; what is written begins at `at`,
    too, in whole cache lines, past the caches.
    """

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        state, at, rates, rate_at, B, B_at, C, C_at, step, x, target = values
        half = ir.VectorType(ir.FloatType(), STATE_SIZE)
        twice = ir.Constant(_INTS, list(range(STATE_SIZE)) * 2)

        def both(address: Any, index: Any) -> Any:
            vector = builder.load(_pointer(builder, address, index, half), align=4)
            return builder.shuffle_vector(vector, ir.Constant(half, ir.Undefined), twice)

        write, read, reads = both(B, B_at), both(C, C_at), []
        for k in range(LANES // 2):
            offset = ir.Constant(at.type, k * LANES)
            h = builder.load(_pointer(builder, state, builder.add(at, offset), _FLOATS), align=4)
            rate = builder.load(_pointer(builder, rates, builder.add(rate_at, offset), _FLOATS), align=4)
            for line in (0, STATE_SIZE):  # of the next group of channels
                _emit_fetch(builder, state, builder.add(at, ir.Constant(at.type, (LANES + k * 2) * STATE_SIZE + line)))
            decay = _emit_exp2(builder, builder.fmul(_split(builder, step, k), rate))
            new = _fma(builder, decay, h, builder.fmul(_split(builder, x, k), write))
            _store_past_caches(builder, new, _pointer(builder, target, builder.add(at, offset), _FLOATS), LINE)
            reads.append(builder.fmul(new, read))
        return _half_totals(builder, reads)

    return _VECTOR(*[types.intp] * 8, _VECTOR, _VECTOR, types.intp), generate


@overload(operator.add)
def _(a, b):  # type: ignore[no-untyped-def]
    if a == _VECTOR and b == _VECTOR:
        return lambda a, b: _add(a, b)
    return None


@overload(operator.mul)
def _(a, b):  # type: ignore[no-untyped-def]
    if a == _VECTOR and b == _VECTOR:
        return lambda a, b: _multiply(a, b)
    return None


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(error_model="numpy", forceinline=True)(unwrap(function))


def _compile(function: Callable[..., Any]) -> Any:
    function = unwrap(function)  # from the check of shapes that tests may put around it
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # nowhere to keep compiled code: compile again in every process
        return numba.njit(**options)(function)


_LARGEST = np.finfo(np.float32).max
_ZERO, _ONE, _LN2 = np.float32(0), np.float32(1), np.float32(0.6931471805599453)
_TILE = 8


@_inlined
def _load_some(array, at, count, padded):  # type: ignore[no-untyped-def]
    """`count` channels of one step, padded with zeros; `padded` is room for a vector."""
    if count == LANES:
        return load(array, at)
    for j in range(LANES):
        put(padded, j, get(array, at + j) if j < count else _ZERO)
    return load(padded, 0)


@_inlined
def _store_some(array, at, count, vector, padded, past_caches):  # type: ignore[no-untyped-def]
    if count == LANES and past_caches:
        store_past_caches(array, at, vector)
    elif count == LANES:
        store(array, at, vector)
    else:
        store(padded, 0, vector)
        for j in range(count):
            put(array, at + j, get(padded, j))


@_inlined
def _read_state(state, at, count, state_size, h, h_at, stride):  # type: ignore[no-untyped-def]
    """[count, S] of a flat array into S vectors of h, `stride` apart."""
    if count == LANES and state_size % _TILE == 0:
        for s in range(0, state_size, _TILE):
            for j in range(0, LANES, _TILE):
                transpose_8x8(state, at + j * state_size + s, state_size, h, h_at + s * stride + j, stride)
    else:
        for s in range(state_size):
            for j in range(LANES):
                put(h, h_at + s * stride + j, get(state, at + j * state_size + s) if j < count else _ZERO)


@_inlined
def _write_state(h, h_at, stride, count, state_size, state, at):  # type: ignore[no-untyped-def]
    """The reverse of `_read_state`."""
    if count == LANES and state_size % STATE_SIZE == 0 and state % LINE == 0:
        for j in range(0, LANES, STATE_SIZE):
            for s in range(0, state_size, STATE_SIZE):
                transpose_16x16(h, h_at + s * stride + j, stride, state, at + j * state_size + s, state_size)
    elif count == LANES and state_size % _TILE == 0:
        for j in range(0, LANES, _TILE):
            for s in range(0, state_size, _TILE):
                transpose_8x8(h, h_at + s * stride + j, stride, state, at + j * state_size + s, state_size)
    else:
        for j in range(count):
            for s in range(state_size):
                put(state, at + j * state_size + s, get(h, h_at + s * stride + j))


@_inlined
def _copy_state(source, source_at, state_size, h, h_at, stride):  # type: ignore[no-untyped-def]
    """S vectors into S vectors of h, `stride` apart."""
    for s in range(state_size):
        store(h, h_at + s * stride, load(source, source_at + s * LANES))


@_inlined
def _at(rows, r, t):  # type: ignore[no-untyped-def]
    """Where the entries of track r at step t begin in (flat array, stride of r, stride of t)."""
    return r * rows[1] + t * rows[2]


@_inlined
def _is_large(tracks, sizes, result):  # type: ignore[no-untyped-def]
    """Whether a result [R, T, D] is written past the caches."""
    num_steps, num_channels, _ = sizes
    values = (tracks[1] - tracks[0]) * num_steps * num_channels
    return values >= LARGE and num_channels % (LANES // 2) == 0 and result % LINE == 0


@_inlined
def _fetch_next(rows, r, t, channel, width):  # type: ignore[no-untyped-def]
    """Asks for the next group of channels: no processor foresees reads that go round many rows, a little of each."""
    if rows[0] != 0:
        for line in range(width, 2 * width, LANES // 2):
            fetch(rows[0], _at(rows, r, t) + channel + line)


@_compile
def kind_of_rates(rates, num_channels, state_size):  # type: ignore[no-untyped-def]
    """Whether rates [D, S] are ANY, all NEGATIVE (and finite), or MULTIPLES: 1, 2, 3 ... S times a channel's first."""
    kind = MULTIPLES if state_size > 1 else NEGATIVE
    for channel in range(num_channels):
        first = get(rates, channel * state_size)
        num_others, num_beside = 0, 0
        for s in range(state_size):
            rate = get(rates, channel * state_size + s)
            num_others += not (rate >= -_LARGEST and rate < _ZERO)  # NaN, too
            num_beside += not (abs(rate - np.float32(s + 1) * first) <= _SAME_RATE * -rate)
        if num_others > 0:
            return ANY
        if num_beside > 0:
            kind = NEGATIVE
    return kind


@_inlined
def _decay(step, rates, at, kind):  # type: ignore[no-untyped-def]
    """exp(Delta A), one position of a group."""
    exponent = step * load(rates, at)
    return exp2(exponent) if kind == ANY else exp2_of_negative(exponent)


@_inlined
def _advance(h, at, rates, rate_at, B, B_at, C, C_at, state_size, step, x, y, from_zeros, kind):  # type: ignore[no-untyped-def]
    """One step of the state, S vectors in h; gives y + C h.

    Where rates are multiples, all but every `RUN`th decay is that of the position before times that of the first.
    """
    if from_zeros:
        for s in range(state_size):
            new = x * spread(get(B, B_at + s))
            store(h, at + s * LANES, new)
            y = fma(new, spread(get(C, C_at + s)), y)
    else:
        first, decay, inside = spread(_ONE), spread(_ONE), RUN - 1 if kind == MULTIPLES else 0
        for s in range(state_size):
            decay = decay * first if s & inside else _decay(step, rates, rate_at + s * LANES, kind)
            if s == 0:
                first = decay
            new = fma(decay, load(h, at + s * LANES), x * spread(get(B, B_at + s)))
            store(h, at + s * LANES, new)
            y = fma(new, spread(get(C, C_at + s)), y)
    return y


@_inlined
def _advance_two(h, at, rates, rate_at, B, B_at, C, C_at, state_size, steps, xs, ys, kind):  # type: ignore[no-untyped-def]
    """As `_advance` for a group and the next, which share what is spread over lanes and the constants of exp2."""
    (step, next_step), (x, next_x), (y, next_y), group_size = steps, xs, ys, state_size * LANES
    first = decay = next_first = next_decay = spread(_ONE)
    inside = RUN - 1 if kind == MULTIPLES else 0
    for s in range(state_size):
        own, next_own = at + s * LANES, at + group_size + s * LANES
        into, out_of = spread(get(B, B_at + s)), spread(get(C, C_at + s))
        if s & inside == 0:
            decay = _decay(step, rates, rate_at + s * LANES, kind)
            next_decay = _decay(next_step, rates, rate_at + group_size + s * LANES, kind)
        else:
            decay, next_decay = decay * first, next_decay * next_first
        if s == 0:
            first, next_first = decay, next_decay
        new, next_new = fma(decay, load(h, own), x * into), fma(next_decay, load(h, next_own), next_x * into)
        store(h, own, new)
        store(h, next_own, next_new)
        y, next_y = fma(new, out_of, y), fma(next_new, out_of, next_y)
    return y, next_y


@_inlined
def _enter(r, t, channel, count, u, delta, D, bias, has_softplus, padded):  # type: ignore[no-untyped-def]
    """The step size of a group, what it writes, and what goes past the state."""
    u_t = _load_some(u[0], _at(u, r, t) + channel, count, padded)
    step = _load_some(delta[0], _at(delta, r, t) + channel, count, padded) + load(bias, channel)
    if has_softplus:
        step = softplus(step)
    return step, step * u_t, load(D, channel) * u_t if D != 0 else spread(_ZERO)


@_inlined
def _leave(r, t, channel, count, num_steps, num_channels, z, y, y_t, padded, is_large):  # type: ignore[no-untyped-def]
    """Writes what a group gives, through its gate."""
    if z[0] != 0:
        gate = _load_some(z[0], _at(z, r, t) + channel, count, padded)
        y_t = y_t * (gate * sigmoid(gate))
    _store_some(y, (r * num_steps + t) * num_channels + channel, count, y_t, padded, is_large)


def scan_room(num_groups: int, state_size: int) -> int:
    """Floats that `scan` needs to work in."""
    return LANES * (1 + num_groups * state_size)


@_compile
def scan(tracks, groups, sizes, u, delta, rates, B, C, D, z, bias, has_softplus, state, kind, y, last_state, room):  # type: ignore[no-untyped-def]
    """Fills y and the last state for a range of tracks and groups of channels.

    u, delta, B, C, z come as (address, stride of r, stride of t), all else as the address of a tensor without gaps:
    rates [groups, S, LANES], D and bias [groups, LANES], state, y, last_state. 0 means absent. `room` has `scan_room`
    floats.
    """
    num_steps, num_channels, state_size = sizes
    group_size = state_size * LANES
    padded, carried = room, room + 4 * LANES
    is_large = _is_large(tracks, sizes, y)
    for r in range(tracks[0], tracks[1]):
        for first_step in range(0, num_steps, CHUNK):
            past_step = min(first_step + CHUNK, num_steps)
            for group in range(groups[0], groups[1], 2):
                channel, h_at, rate_at = group * LANES, (group - groups[0]) * group_size, group * group_size
                past_group = min(group + 2, groups[1])
                if first_step == 0 and state != 0:
                    for k in range(past_group - group):
                        count = min(LANES, num_channels - channel - k * LANES)
                        state_at = (r * num_channels + channel + k * LANES) * state_size
                        _read_state(state, state_at, count, state_size, carried, h_at + k * group_size, LANES)
                for t in range(first_step, past_step):
                    B_at, C_at, from_zeros = _at(B, r, t), _at(C, r, t), t == 0 and state == 0
                    _fetch_next(u, r, t, channel, 2 * LANES)
                    _fetch_next(delta, r, t, channel, 2 * LANES)
                    _fetch_next(z, r, t, channel, 2 * LANES)
                    if past_group - group == 2 and num_channels >= channel + 2 * LANES and not from_zeros:
                        inputs = (u, delta, D, bias, has_softplus, padded)
                        step, x, y_t = _enter(r, t, channel, LANES, *inputs)
                        next_step, next_x, next_y = _enter(r, t, channel + LANES, LANES, *inputs)
                        y_t, next_y = _advance_two(
                            carried, h_at, rates, rate_at, B[0], B_at, C[0], C_at, state_size,
                            (step, next_step), (x, next_x), (y_t, next_y), kind,
                        )  # fmt: skip
                        _leave(r, t, channel, LANES, num_steps, num_channels, z, y, y_t, padded, is_large)
                        _leave(r, t, channel + LANES, LANES, num_steps, num_channels, z, y, next_y, padded, is_large)
                        continue
                    for k in range(past_group - group):
                        own, count = channel + k * LANES, min(LANES, num_channels - channel - k * LANES)
                        step, x, y_t = _enter(r, t, own, count, u, delta, D, bias, has_softplus, padded)
                        y_t = _advance(
                            carried, h_at + k * group_size, rates, rate_at + k * group_size, B[0], B_at, C[0], C_at,
                            state_size, step, x, y_t, from_zeros, kind,
                        )  # fmt: skip
                        _leave(r, t, own, count, num_steps, num_channels, z, y, y_t, padded, is_large)
                if past_step == num_steps:
                    for k in range(past_group - group):
                        count = min(LANES, num_channels - channel - k * LANES)
                        state_at = (r * num_channels + channel + k * LANES) * state_size
                        _write_state(carried, h_at + k * group_size, LANES, count, state_size, last_state, state_at)
    settle()


@_compile
def step_as_it_lies(tracks, sizes, u, delta, rates, B, C, D, z, bias, has_softplus, state, kind, y, last_state):  # type: ignore[no-untyped-def]
    """What `scan` does, for a single step from a state with STATE_SIZE positions and of channels that LANES divides.

    The arguments are those of `scan`, but that rates are [D, S]; `last_state` begins with a cache line. Nothing is
    transposed: this is the step of a stream, which reads the state and writes it, and computes little between.
    """
    num_channels = sizes[1]
    for r in range(tracks[0], tracks[1]):
        first = r * num_channels * STATE_SIZE
        for channel in range(0, num_channels, LANES):
            u_t = load(u[0], r * u[1] + channel)
            step = load(delta[0], r * delta[1] + channel) + load(bias, channel)
            if has_softplus:
                step = softplus(step)
            y_t = advance_as_it_lies(
                state, first + channel * STATE_SIZE, rates, channel * STATE_SIZE, B[0], r * B[1], C[0], r * C[1],
                step, step * u_t, last_state,
            )  # fmt: skip
            if D != 0:
                y_t = fma(load(D, channel), u_t, y_t)
            if z[0] != 0:
                gate = load(z[0], r * z[1] + channel)
                y_t = y_t * (gate * sigmoid(gate))
            store(y, r * num_channels + channel, y_t)
    settle()


@_inlined
def _advance_and_keep(past, decays, i, rates, rate_at, B, B_at, C, C_at, state_size, step, x, y, from_zeros, kind):  # type: ignore[no-untyped-def]
    """As `_advance`, from past[i] to past[i + 1], each [S, LANES]; unless rates are multiples, decays are kept, too."""
    before = i * state_size * LANES
    after = before + state_size * LANES
    if from_zeros:
        for s in range(state_size):
            new = x * spread(get(B, B_at + s))
            store(past, after + s * LANES, new)
            y = fma(new, spread(get(C, C_at + s)), y)
    else:
        first, decay, inside = spread(_ONE), spread(_ONE), RUN - 1 if kind == MULTIPLES else 0
        for s in range(state_size):
            decay = decay * first if s & inside else _decay(step, rates, rate_at + s * LANES, kind)
            if s == 0:
                first = decay
            new = fma(decay, load(past, before + s * LANES), x * spread(get(B, B_at + s)))
            store(past, after + s * LANES, new)
            if kind != MULTIPLES:
                store(decays, before + s * LANES, decay)
            y = fma(new, spread(get(C, C_at + s)), y)
    return y


@_inlined
def _retreat(  # type: ignore[no-untyped-def]
    past, decays, i, adjoint, at, rates, rate_at, B, B_at, C, C_at, state_size, step, x, dy, dBC, from_zeros, kind
):
    """The reverse of a step; gradients of x = Delta u, and of Delta by way of the decay.

    adjoint [S, 2, LANES] holds the gradient of the state and, added up, that of A; dBC [CHUNK, S, 2, HALF] those of B
    and C, added up over groups and the halves of their lanes.
    """
    before, after, sums = i * state_size * LANES, (i + 1) * state_size * LANES, i * state_size * 2 * HALF
    dx, dstep, first, decay = spread(_ZERO), spread(_ZERO), spread(_ONE), spread(_ONE)
    for s in range(state_size):
        pair = s * 2 * LANES
        dh = fma(dy, spread(get(C, C_at + s)), load(adjoint, at + pair))
        add_halves(dBC, sums + s * 2 * HALF, dh * x)
        add_halves(dBC, sums + s * 2 * HALF + HALF, dy * load(past, after + s * LANES))
        dx = fma(dh, spread(get(B, B_at + s)), dx)
        if not from_zeros:
            if kind != MULTIPLES:
                decay = load(decays, before + s * LANES)
            elif s & (RUN - 1) == 0:
                decay = exp2_of_negative(step * load(rates, rate_at + s * LANES))
            else:
                decay = decay * first
            if s == 0:
                first = decay
            dh = dh * decay
            store(adjoint, at + pair, dh)
            dh = dh * load(past, before + s * LANES)  # now the gradient of Delta A
            dstep = fma(dh, load(rates, rate_at + s * LANES), dstep)
            store(adjoint, at + pair + LANES, fma(dh, step, load(adjoint, at + pair + LANES)))
    return dx, dstep * spread(_LN2)


@_inlined
def _find_starts(r, groups, sizes, u, delta, rates, B, C, bias, has_softplus, state, kind, starts, padded):  # type: ignore[no-untyped-def]
    """The state before every chunk of a track, in starts [chunks, groups, S, LANES]."""
    num_steps, num_channels, state_size = sizes
    group_size = state_size * LANES
    chunk_size = (groups[1] - groups[0]) * group_size
    for group in range(groups[0], groups[1]):
        channel, h_at = group * LANES, (group - groups[0]) * group_size
        if state != 0:
            state_at, count = (r * num_channels + channel) * state_size, min(LANES, num_channels - channel)
            _read_state(state, state_at, count, state_size, starts, h_at, LANES)
        else:
            for s in range(state_size):
                store(starts, h_at + s * LANES, spread(_ZERO))
    for past_step in range(CHUNK, num_steps, CHUNK):
        for group in range(groups[0], groups[1]):
            channel, rate_at = group * LANES, group * group_size
            count = min(LANES, num_channels - channel)
            from_at = (past_step // CHUNK - 1) * chunk_size + (group - groups[0]) * group_size
            h_at = from_at + chunk_size
            _copy_state(starts, from_at, state_size, starts, h_at, LANES)
            for t in range(past_step - CHUNK, past_step):
                u_t = _load_some(u[0], _at(u, r, t) + channel, count, padded)
                step = _load_some(delta[0], _at(delta, r, t) + channel, count, padded) + load(bias, channel)
                if has_softplus:
                    step = softplus(step)
                _advance(
                    starts, h_at, rates, rate_at, B[0], _at(B, r, t), C[0], _at(C, r, t), state_size,
                    step, step * u_t, spread(_ZERO), t == 0 and state == 0, kind,
                )  # fmt: skip


def backward_room(num_groups: int, num_steps: int, state_size: int) -> int:
    """Floats that `scan_backward` needs to work in."""
    num_chunks, longest = -(-num_steps // CHUNK), min(CHUNK, num_steps)
    return LANES * (1 + 4 * longest + (3 * longest + 1 + num_chunks * num_groups) * state_size)


@_compile
def scan_backward(  # type: ignore[no-untyped-def]
    tracks, groups, sizes, u, delta, rates, B, C, D, z, bias, has_softplus, state, kind, dy, dlast_state,
    du, ddelta, dB, dC, dz, dstate, adjoints, sums, room,
):  # fmt: skip
    """All gradients for a range of tracks and groups of channels; the arguments up to `state` as for `scan`.

    dy comes as u does, all else without gaps. du, ddelta, dz, dstate, dB, dC are written. adjoints [groups, S, 2,
    LANES] and sums [groups, 2, LANES] come as zeros and leave with the gradients of A, in the second of each pair, and
    of D and the bias. `room` has `backward_room` floats.
    """
    num_steps, num_channels, state_size = sizes
    group_size = state_size * LANES
    num_chunks, longest = (num_steps + CHUNK - 1) // CHUNK, min(CHUNK, num_steps)
    chunk_size = (groups[1] - groups[0]) * group_size
    is_large = _is_large(tracks, sizes, du) and _is_large(tracks, sizes, ddelta) and _is_large(tracks, sizes, dz)
    padded, kept = room, room + 4 * LANES  # kept: delta + bias, Delta, u, C h + D u of each step
    past = kept + 4 * longest * 4 * LANES
    decays = past + 4 * (longest + 1) * group_size
    dBC = decays + 4 * longest * group_size
    starts = dBC + 4 * longest * state_size * 2 * HALF
    for r in range(tracks[0], tracks[1]):
        _find_starts(r, groups, sizes, u, delta, rates, B, C, bias, has_softplus, state, kind, starts, padded)
        for chunk in range(num_chunks - 1, -1, -1):
            first_step, past_step = chunk * CHUNK, min((chunk + 1) * CHUNK, num_steps)
            for i in range(longest * state_size):
                store(dBC, i * 2 * HALF, spread(_ZERO))
            for group in range(groups[0], groups[1]):
                channel, own, rate_at = group * LANES, group - groups[0], group * group_size
                count = min(LANES, num_channels - channel)
                state_at, adjoint_at = (r * num_channels + channel) * state_size, 2 * own * group_size
                if past_step == num_steps and dlast_state != 0:
                    _read_state(dlast_state, state_at, count, state_size, adjoints, adjoint_at, 2 * LANES)
                elif past_step == num_steps:
                    for s in range(state_size):
                        store(adjoints, adjoint_at + s * 2 * LANES, spread(_ZERO))
                _copy_state(starts, chunk * chunk_size + own * group_size, state_size, past, 0, LANES)
                for t in range(first_step, past_step):
                    i, from_zeros = t - first_step, t == 0 and state == 0
                    _fetch_next(u, r, t, channel, LANES)
                    _fetch_next(delta, r, t, channel, LANES)
                    _fetch_next(dy, r, t, channel, LANES)
                    _fetch_next(z, r, t, channel, LANES)
                    u_t = _load_some(u[0], _at(u, r, t) + channel, count, padded)
                    step = _load_some(delta[0], _at(delta, r, t) + channel, count, padded) + load(bias, channel)
                    store(kept, i * 4 * LANES, step)
                    if has_softplus:
                        step = softplus(step)
                    y_t = load(D, channel) * u_t if D != 0 else spread(_ZERO)
                    y_t = _advance_and_keep(
                        past, decays, i, rates, rate_at, B[0], _at(B, r, t), C[0], _at(C, r, t), state_size,
                        step, step * u_t, y_t, from_zeros, kind,
                    )  # fmt: skip
                    store(kept, (i * 4 + 1) * LANES, step)
                    store(kept, (i * 4 + 2) * LANES, u_t)
                    store(kept, (i * 4 + 3) * LANES, y_t)
                for t in range(past_step - 1, first_step - 1, -1):
                    i, from_zeros = t - first_step, t == 0 and state == 0
                    at = (r * num_steps + t) * num_channels + channel
                    step, u_t = load(kept, (i * 4 + 1) * LANES), load(kept, (i * 4 + 2) * LANES)
                    dy_t = _load_some(dy[0], _at(dy, r, t) + channel, count, padded)
                    if z[0] != 0:
                        gate = _load_some(z[0], _at(z, r, t) + channel, count, padded)
                        opened = sigmoid(gate)
                        slope = opened * fma(gate, fma(opened, spread(-_ONE), spread(_ONE)), spread(_ONE))
                        _store_some(dz, at, count, dy_t * load(kept, (i * 4 + 3) * LANES) * slope, padded, is_large)
                        dy_t = dy_t * (gate * opened)
                    dx, dstep = _retreat(
                        past, decays, i, adjoints, adjoint_at, rates, rate_at, B[0], _at(B, r, t), C[0], _at(C, r, t),
                        state_size, step, step * u_t, dy_t, dBC, from_zeros, kind,
                    )  # fmt: skip
                    dstep = fma(dx, u_t, dstep)
                    if has_softplus:
                        dstep = dstep * sigmoid(load(kept, i * 4 * LANES))
                    du_t = dx * step
                    if D != 0:
                        du_t = fma(dy_t, load(D, channel), du_t)
                    _store_some(du, at, count, du_t, padded, is_large)
                    _store_some(ddelta, at, count, dstep, padded, is_large)
                    sums_at = own * 2 * LANES
                    store(sums, sums_at, fma(dy_t, u_t, load(sums, sums_at)))
                    store(sums, sums_at + LANES, dstep + load(sums, sums_at + LANES))
                if first_step == 0 and state != 0:
                    _write_state(adjoints, adjoint_at, 2 * LANES, count, state_size, dstate, state_at)
            for t in range(first_step, past_step):
                for s in range(state_size):
                    lanes_at = ((t - first_step) * state_size + s) * 2 * HALF
                    put(dB, (r * num_steps + t) * state_size + s, total(dBC, lanes_at))
                    put(dC, (r * num_steps + t) * state_size + s, total(dBC, lanes_at + HALF))
    settle()
