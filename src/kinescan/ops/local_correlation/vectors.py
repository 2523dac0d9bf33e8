"""Vector primitives for the correlation kernels, emitted as LLVM instructions.

Numba has no vector type, and a plain loop over an array of accumulators keeps them in memory. These intrinsics keep a
tile of sums in registers over a whole reduction: a multiply-add per instruction, each loaded vector used several times.
Addresses are plain integers and strides count float32 values, so the caller decides what is in bounds. A vector holds
`LANES` neighbouring patches of one row; no sum is reordered, so no fast-math flag but `contract` (fused multiply-add)
is needed.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8
"""Patches of a row that one vector holds."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_FLOAT_BYTES = 4
_INDEX = ir.IntType(32)


def make_row_products(num_rows: int, num_shifts: int) -> Any:
    """A primitive that adds to out[i, j] the products of rows i of one frame and a row of another, shifted by j.

    out[i, j][lane] += sum over c < count of a[i, c][lane] * b[c][lane + j], for i < num_rows and j < num_shifts,
    where a[i, c] starts at a + i * a_row + c * stride, b[c] at b + c * stride and out[i, j] at
    out + i * out_row + j * out_shift.
    """

    @intrinsic
    def row_products(  # type: ignore[no-untyped-def]
        typing_context, a, a_row, b, stride, count, out, out_row, out_shift
    ):
        def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            a, a_row, b, stride, count, out, out_row, out_shift = arguments
            sums = _sums(builder, num_rows, num_shifts)
            with cgutils.for_range(builder, count) as loop:
                step = builder.mul(loop.index, stride)
                shifted = [_load(builder, b, [step], extra=j) for j in range(num_shifts)]
                for i in range(num_rows):
                    row = _load(builder, a, [step, _times(builder, a_row, i)])
                    for j in range(num_shifts):
                        _add_product(builder, sums[i][j], row, shifted[j])
            _add_to_memory(builder, sums, out, out_row, out_shift)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), emit

    return row_products


def make_weighted_rows(num_rows: int, num_channels: int) -> Any:
    """A primitive that adds to out[i, c] the displaced rows of a frame, each weighted by its own map of weights.

    out[i, c][lane] += sum over m < count_m, n < count_n of w[i, m, n][lane] * f[c, m, n][lane], for i < num_rows and
    c < num_channels, where w[i, m, n] starts at w + i * w_row + m * w_m + n * w_n, f[c, m, n] at
    f + c * f_channel + m * f_m + n * f_n and out[i, c] at out + i * out_row + c * out_channel.
    """

    @intrinsic
    def weighted_rows(  # type: ignore[no-untyped-def]
        typing_context, w, w_row, w_m, w_n, f, f_channel, f_m, f_n, count_m, count_n, out, out_row, out_channel
    ):
        def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            w, w_row, w_m, w_n, f, f_channel, f_m, f_n, count_m, count_n, out, out_row, out_channel = arguments
            sums = _sums(builder, num_rows, num_channels)
            with cgutils.for_range(builder, count_m) as outer:
                w_step, f_step = builder.mul(outer.index, w_m), builder.mul(outer.index, f_m)
                with cgutils.for_range(builder, count_n) as inner:
                    w_offset = builder.add(w_step, builder.mul(inner.index, w_n))
                    f_offset = builder.add(f_step, builder.mul(inner.index, f_n))
                    weights = [_load(builder, w, [w_offset, _times(builder, w_row, i)]) for i in range(num_rows)]
                    for c in range(num_channels):
                        values = _load(builder, f, [f_offset, _times(builder, f_channel, c)])
                        for i in range(num_rows):
                            _add_product(builder, sums[i][c], weights[i], values)
            _add_to_memory(builder, sums, out, out_row, out_channel)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 13), emit

    return weighted_rows


@intrinsic
def copy_vector(typing_context, target, source):  # type: ignore[no-untyped-def]
    """Copies one vector."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, source = arguments
        _store(builder, _load(builder, source, []), target, [])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def clear_vector(typing_context, target):  # type: ignore[no-untyped-def]
    """Sets one vector to zeros."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _store(builder, ir.Constant(_VECTOR, None), arguments[0], [])
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def copy_lanes(typing_context, target, source, begin, end):  # type: ignore[no-untyped-def]
    """Copies lanes begin .. end - 1 of a vector and sets the others to zero."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, source, begin, end = arguments
        _store(builder, _load_lanes(builder, source, begin, end), target, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


@intrinsic
def add_lanes(typing_context, target, source, begin, end):  # type: ignore[no-untyped-def]
    """Adds lanes begin .. end - 1 of a vector to those of another."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, source, begin, end = arguments
        total = builder.fadd(_load(builder, target, []), _load_lanes(builder, source, begin, end))
        _store(builder, total, target, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


@intrinsic
def scale_lanes(typing_context, target, source, scale, end):  # type: ignore[no-untyped-def]
    """Sets target to source * scale in the lanes before `end` and to zero in the others."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, source, scale, end = arguments
        values = _load_lanes(builder, source, ir.Constant(end.type, 0), end)
        _store(builder, builder.fmul(values, _load(builder, scale, [])), target, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), emit


@intrinsic
def project_vector(typing_context, target, source, along, direction, scale):  # type: ignore[no-untyped-def]
    """Sets target to (source - along * direction) * scale."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        target, *addresses = arguments
        source, along, direction, scale = (_load(builder, address, []) for address in addresses)
        rest = builder.fsub(source, builder.fmul(along, direction))
        _store(builder, builder.fmul(rest, scale), target, [])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), emit


def _sums(builder: Any, num_rows: int, num_columns: int) -> list[list[Any]]:
    """A tile of zero vectors; LLVM moves these slots into registers."""
    zeros = ir.Constant(_VECTOR, None)
    tile = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(num_columns)] for _ in range(num_rows)]
    for slot in (slot for row in tile for slot in row):
        builder.store(zeros, slot)
    return tile


def _add_product(builder: Any, slot: Any, left: Any, right: Any) -> None:
    product = builder.fmul(left, right, flags=("contract",))
    builder.store(builder.fadd(builder.load(slot), product, flags=("contract",)), slot)


def _add_to_memory(builder: Any, sums: list[list[Any]], out: Any, out_row: Any, out_column: Any) -> None:
    for i, row in enumerate(sums):
        for j, slot in enumerate(row):
            offsets = [_times(builder, out_row, i), _times(builder, out_column, j)]
            total = builder.fadd(_load(builder, out, offsets), builder.load(slot))
            _store(builder, total, out, offsets)


def _times(builder: Any, stride: Any, factor: int) -> Any:
    return builder.mul(stride, ir.Constant(stride.type, factor))


def _load(builder: Any, address: Any, offsets: Sequence[Any], extra: int = 0) -> Any:
    vector = builder.load(_pointer(builder, address, offsets, extra))
    vector.align = _FLOAT_BYTES
    return vector


def _load_lanes(builder: Any, address: Any, begin: Any, end: Any) -> Any:
    """The vector with zeros outside of lanes begin .. end - 1."""
    lanes = ir.Constant(ir.VectorType(_INDEX, LANES), list(range(LANES)))
    is_wanted = builder.and_(
        builder.icmp_signed(">=", lanes, _splat(builder, begin)), builder.icmp_signed("<", lanes, _splat(builder, end))
    )
    return builder.select(is_wanted, _load(builder, address, []), ir.Constant(_VECTOR, None))


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(_INDEX, LANES), ir.Undefined)
    first = builder.insert_element(undefined, builder.trunc(number, _INDEX), ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _store(builder: Any, vector: Any, address: Any, offsets: Sequence[Any]) -> None:
    builder.store(vector, _pointer(builder, address, offsets, 0)).align = _FLOAT_BYTES


def _pointer(builder: Any, address: Any, offsets: Sequence[Any], extra: int) -> Any:
    floats = ir.Constant(address.type, extra)
    for offset in offsets:
        floats = builder.add(floats, offset)
    # One base pointer with an element index, so that LLVM can fold the sum into the instruction's address.
    base = builder.inttoptr(address, _FLOAT.as_pointer())
    return builder.bitcast(builder.gep(base, [floats]), _VECTOR.as_pointer())
