r"""Products in Z[X]/(X^N + 1) through a complex transform of half the length, N = 4096.

The transform evaluates a real polynomial x at the N/2 points ζ^(4k+1), ζ = exp(iπ/N); the other roots of X^N + 1 are
their conjugates. It folds x into z_j = (x_j + i·x_{j+N/2})·ζ^j and takes a DFT of length N/2 = 2048 of it ("right-angle
convolution": Crandall & Fagin, Math. Comp. 62, 1994). Multiplying by the conjugate of a transform multiplies by
the adjoint a(X^-1), which is what a correlation needs.

The DFT treats its input as a 32 × 64 matrix (Bailey's four steps): transforms down the columns, a twiddle,
a transposition, transforms down the columns again, so every inner loop runs over contiguous lanes that fill
vector registers. Points are left in the order that falls out; only products of transforms use them.

Numbers: multiplicands are the two centred 32-bit limbs of a 64-bit word (|limb| ≤ 2^31) and small integers. With
ternary s, ‖limb‖₂·‖s‖₂ ≤ 2^37·2^6 = 2^43 bounds a coefficient, and the rounding error of three transforms
of length 2^11 in double precision stays below 2^43 · 3·11·2^-52 < 2^-3: rounding to the nearest integer is exact,
worst case, not only on average (measured: 2^-13).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fedlearn.kernels.compiled import njit

N = 4096
H = N // 2
_ROWS, _COLUMNS = 32, 64

F64 = NDArray[np.float64]
U64 = NDArray[np.uint64]

_FLAGS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"contract"}, "boundscheck": False}


def _order(stages: tuple[int, ...]) -> NDArray[np.int64]:
    """Which output a decimation-in-frequency transform of these radices leaves at each position."""
    if not stages:
        return np.zeros(1, np.int64)
    inner = _order(stages[1:])
    return np.concatenate([stages[0] * inner + r for r in range(stages[0])])


def _unit(numerator: NDArray[np.int64] | NDArray[np.float64], denominator: int) -> tuple[F64, F64]:
    """Cosine and sine of 2π·numerator/denominator."""
    angle = 2 * np.pi * (np.asarray(numerator) / denominator)
    return np.cos(angle), np.sin(angle)


_TWIST_RE, _TWIST_IM = _unit(np.arange(H), 2 * N)
# Twiddle between the two passes, by row position and column.
_MID_RE, _MID_IM = _unit(np.outer(_order((4, 4, 2)), np.arange(_COLUMNS)).ravel(), H)
# Powers of exp(2πi/m) for the radix-4 stages of length m.
_W64_RE, _W64_IM = _unit(np.arange(64), 64)


def _radix4_stage(length: int, rows: int, lanes: int) -> tuple[Any, Any]:
    """Forward and inverse butterflies of one radix-4 stage down ``rows`` rows, in blocks of ``length`` rows."""
    quarter = length // 4
    step = 64 // length
    b, c, d = quarter * lanes, 2 * quarter * lanes, 3 * quarter * lanes

    @njit(**_FLAGS)
    def forward(re: F64, im: F64) -> None:
        for block in range(0, rows, length):
            for t in range(quarter):
                at = (block + t) * lanes
                w1r, w1i = _W64_RE[t * step], _W64_IM[t * step]
                w2r, w2i = _W64_RE[2 * t * step], _W64_IM[2 * t * step]
                w3r, w3i = _W64_RE[3 * t * step], _W64_IM[3 * t * step]
                for j in range(at, at + lanes):
                    sr, si = re[j] + re[j + c], im[j] + im[j + c]
                    dr, di = re[j] - re[j + c], im[j] - im[j + c]
                    ur, ui = re[j + b] + re[j + d], im[j + b] + im[j + d]
                    vr, vi = im[j + d] - im[j + b], re[j + b] - re[j + d]  # i·(x_b - x_d)
                    re[j], im[j] = sr + ur, si + ui
                    xr, xi = dr + vr, di + vi
                    re[j + b], im[j + b] = xr * w1r - xi * w1i, xr * w1i + xi * w1r
                    xr, xi = sr - ur, si - ui
                    re[j + c], im[j + c] = xr * w2r - xi * w2i, xr * w2i + xi * w2r
                    xr, xi = dr - vr, di - vi
                    re[j + d], im[j + d] = xr * w3r - xi * w3i, xr * w3i + xi * w3r

    @njit(**_FLAGS)
    def inverse(re: F64, im: F64) -> None:
        for block in range(0, rows, length):
            for t in range(quarter):
                at = (block + t) * lanes
                w1r, w1i = _W64_RE[t * step], _W64_IM[t * step]
                w2r, w2i = _W64_RE[2 * t * step], _W64_IM[2 * t * step]
                w3r, w3i = _W64_RE[3 * t * step], _W64_IM[3 * t * step]
                for j in range(at, at + lanes):
                    ar, ai = re[j], im[j]
                    br, bi = re[j + b] * w1r + im[j + b] * w1i, im[j + b] * w1r - re[j + b] * w1i
                    cr, ci = re[j + c] * w2r + im[j + c] * w2i, im[j + c] * w2r - re[j + c] * w2i
                    dr, di = re[j + d] * w3r + im[j + d] * w3i, im[j + d] * w3r - re[j + d] * w3i
                    sr, si = ar + cr, ai + ci
                    tr, ti = ar - cr, ai - ci
                    ur, ui = br + dr, bi + di
                    vr, vi = bi - di, dr - br  # -i·(y_b - y_d)
                    re[j], im[j] = sr + ur, si + ui
                    re[j + b], im[j + b] = tr + vr, ti + vi
                    re[j + c], im[j + c] = sr - ur, si - ui
                    re[j + d], im[j + d] = tr - vr, ti - vi

    return forward, inverse


_first_32, _last_32 = _radix4_stage(32, _ROWS, _COLUMNS)
_second_32, _second_last_32 = _radix4_stage(8, _ROWS, _COLUMNS)
_first_64, _last_64 = _radix4_stage(64, _COLUMNS, _ROWS)
_second_64, _second_last_64 = _radix4_stage(16, _COLUMNS, _ROWS)
_third_64, _third_last_64 = _radix4_stage(4, _COLUMNS, _ROWS)


@njit(**_FLAGS)
def _pairs(re: F64, im: F64) -> None:
    """The radix-2 stage that ends a column of 32; it is its own inverse up to the factor 2."""
    for row in range(0, _ROWS, 2):
        for j in range(row * _COLUMNS, (row + 1) * _COLUMNS):
            ar, ai = re[j], im[j]
            br, bi = re[j + _COLUMNS], im[j + _COLUMNS]
            re[j], im[j] = ar + br, ai + bi
            re[j + _COLUMNS], im[j + _COLUMNS] = ar - br, ai - bi


@intrinsic
def _transpose8(
    typing_context: Any, target: Any, target_at: Any, target_step: Any, source: Any, at: Any, step: Any
) -> Any:
    """Transpose an 8 × 8 tile of float64 in registers: three rounds of shuffles that any vector unit can do.

    Left to itself LLVM turns a transposition into gathers, which cost more than the whole transform.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(ir.DoubleType(), 8)

        def pointer(array: int, offset: int, stride: int, row: int) -> Any:
            data = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            index = builder.add(arguments[offset], builder.mul(arguments[stride], ir.Constant(ir.IntType(64), row)))
            return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

        def shuffle(left: Any, right: Any, lanes: list[int]) -> Any:
            return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), 8), lanes))

        rows = [builder.load(pointer(3, 4, 5, r), align=8) for r in range(8)]
        for width in (1, 2, 4):  # exchange blocks of `width` lanes between rows `width` apart
            low = [lane if not lane & width else 8 + lane - width for lane in range(8)]
            high = [lane + width if not lane & width else 8 + lane for lane in range(8)]
            swapped = list(rows)
            for r in range(8):
                if not r & width:
                    swapped[r] = shuffle(rows[r], rows[r + width], low)
                    swapped[r + width] = shuffle(rows[r], rows[r + width], high)
            rows = swapped
        for r in range(8):
            builder.store(rows[r], pointer(0, 1, 2, r), align=8)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, source, types.int64, types.int64), emit


@njit(**_FLAGS)
def _transpose(source: F64, target: F64, rows: int, columns: int) -> None:
    """target[column][row] = source[row][column]; both flat, both sides multiples of 8."""
    for row in range(0, rows, 8):
        for column in range(0, columns, 8):
            _transpose8(target, column * rows + row, rows, source, row * columns + column, columns)  # type: ignore[call-arg]


@njit(**_FLAGS)
def transform(re: F64, im: F64, out_re: F64, out_im: F64) -> None:
    """Forward transform of a folded polynomial.

    Args:
        re, im: float64 (H,), x_j and x_{j+H}; overwritten (scratch).
        out_re, out_im: float64 (H,), the transform, in this module's own order of points.
    """
    for j in range(H):
        xr, xi = re[j], im[j]
        re[j], im[j] = xr * _TWIST_RE[j] - xi * _TWIST_IM[j], xr * _TWIST_IM[j] + xi * _TWIST_RE[j]
    _first_32(re, im)
    _second_32(re, im)
    _pairs(re, im)
    for j in range(H):
        xr, xi = re[j], im[j]
        re[j], im[j] = xr * _MID_RE[j] - xi * _MID_IM[j], xr * _MID_IM[j] + xi * _MID_RE[j]
    _transpose(re, out_re, _ROWS, _COLUMNS)
    _transpose(im, out_im, _ROWS, _COLUMNS)
    _first_64(out_re, out_im)
    _second_64(out_re, out_im)
    _third_64(out_re, out_im)


@njit(**_FLAGS)
def inverse(re: F64, im: F64, out_re: F64, out_im: F64) -> None:
    """Inverse of :func:`transform`.

    Args:
        re, im: float64 (H,), a transform; overwritten (scratch).
        out_re, out_im: float64 (H,), coefficients 0..H-1 and H..N-1.
    """
    _third_last_64(re, im)
    _second_last_64(re, im)
    _last_64(re, im)
    _transpose(re, out_re, _COLUMNS, _ROWS)
    _transpose(im, out_im, _COLUMNS, _ROWS)
    for j in range(H):
        xr, xi = out_re[j], out_im[j]
        out_re[j], out_im[j] = xr * _MID_RE[j] + xi * _MID_IM[j], xi * _MID_RE[j] - xr * _MID_IM[j]
    _pairs(out_re, out_im)
    _second_last_32(out_re, out_im)
    _last_32(out_re, out_im)
    for j in range(H):
        xr, xi = out_re[j] / H, out_im[j] / H
        out_re[j], out_im[j] = xr * _TWIST_RE[j] + xi * _TWIST_IM[j], xi * _TWIST_RE[j] - xr * _TWIST_IM[j]
