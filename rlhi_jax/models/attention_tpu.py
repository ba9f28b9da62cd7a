"""Tree attention as Pallas kernels for TPUs.

The forward and backward kernels visit only live blocks, in which some query attends to some key. A kernel first reads
the indices of live blocks from scalar memory and then fetches only these blocks, so other blocks cost neither
arithmetic nor bandwidth. The last axis of the grid is just long enough for the query block with the most live key
blocks. For the gradients of keys and values, it is just long enough for the key block with the most live query blocks.

JAX's splash attention compiles its mask into the program or reads a dense mask. The kernels in this module compute the
mask from the end of each key's subtree and, with a sliding window, from the position of each key and the lowest
position that each query attends to.

Dimension key: B rows, T tokens (a multiple of 128), N query heads, K key-value heads, H head width; Q queries and S
keys in one block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rlhi_jax.models.tree_blocks import NOTHING, Logits, Mask, ends, listed, live_blocks

PRODUCTS = 7  # matrix products in the gradient; logits and d_weights are computed once for dq, and again for dk and dv
LANES = 128
BLOCKS = (512, 256, 128)  # tokens per block: the largest of these that divides the row length
_NT = (((1,), (1,)), ((), ()))  # contracts the last dimensions of both operands


def forward(
    logits: Logits,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return the context [B, T, N, H] in q's dtype, and the log of each softmax denominator [B, N, T] in float32."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    batch, heads, length, width = q.shape
    live, counts, count, at_query, of_query, at_key, of_tokens = _over_queries(q, k, mask)
    block = length // count

    out, lse = pl.pallas_call(
        functools.partial(_forward, count=count, logits=logits),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, counts.max()),
            in_specs=[at_query, at_key, at_key, of_tokens],
            out_specs=[at_query, of_query],
            scratch_shapes=[
                pltpu.VMEM((block, LANES), jnp.float32),
                pltpu.VMEM((block, LANES), jnp.float32),
                pltpu.VMEM((block, width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        compiler_params=_parallel(3, 1),
        interpret=interpret,
        name='tree_attention_forward',
    )(live, counts, q, k, v, _numbers(mask))
    return out.swapaxes(1, 2), lse[:, :, 0]


def _forward(live, counts, q_ref, k_ref, v_ref, mask_refs, out_ref, lse_ref, top, total, out, *, count, logits):
    i, step, steps = pl.program_id(2), pl.program_id(3), pl.num_programs(3)
    queries = pl.program_id(0) * count + i

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, NOTHING)
        total[...] = jnp.zeros_like(total)
        out[...] = jnp.zeros_like(out)

    @pl.when(step < counts[queries])
    def _():
        seen_QS = _seen(i, live[queries * count + step], mask_refs, 0)
        logits_QS = jnp.where(seen_QS, logits.of(_dot(q_ref[...], k_ref[...], _NT)), NOTHING)
        before = top[...]
        after = jnp.maximum(before, logits_QS.max(axis=1, keepdims=True))
        weights_QS = jnp.exp(logits_QS - after[:, :1])
        shrink = jnp.exp(before - after)
        top[...] = after
        total[...] = total[...] * shrink + weights_QS.sum(axis=1, keepdims=True)
        more = _dot(weights_QS.astype(v_ref.dtype), v_ref[...])
        out[...] = out[...] * shrink[:, :1] + more

    @pl.when(step == steps - 1)
    def _():
        out_ref[...] = (out[...] / total[:, :1]).astype(out_ref.dtype)
        lse_ref[...] = (top[...] + jnp.log(total[...])).T[:1]


def backward(
    logits: Logits,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: Mask,
    lse_BNT: jax.Array,
    delta_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of q, k and v.

    `lse` is the log of each softmax denominator. `delta` is the sum over H of the context times its gradient.
    """
    q, k, v, d_out = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH, d_out_BTNH))
    rows = (q, k, v, d_out, lse_BNT[:, :, None], delta_BNT[:, :, None], _numbers(mask))
    dq = _d_queries(logits, mask, rows, interpret)
    dk, dv = _d_keys(logits, mask, rows, interpret)
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _d_queries(logits, mask, rows, interpret):
    q, k = rows[:2]
    batch, heads, length, width = q.shape
    live, counts, count, at_query, of_query, at_key, of_tokens = _over_queries(q, k, mask)
    block = length // count

    return pl.pallas_call(
        functools.partial(_d_query, count=count, logits=logits),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, counts.max()),
            in_specs=[at_query, at_key, at_key, at_query, of_query, of_query, of_tokens],
            out_specs=at_query,
            scratch_shapes=[pltpu.VMEM((block, width), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_parallel(3, 1),
        interpret=interpret,
        name='tree_attention_d_queries',
    )(live, counts, *rows)


def _d_query(live, counts, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, mask_refs, dq_ref, dq, *, count, logits):
    i, step, steps = pl.program_id(2), pl.program_id(3), pl.num_programs(3)
    queries = pl.program_id(0) * count + i

    @pl.when(step == 0)
    def _():
        dq[...] = jnp.zeros_like(dq)

    @pl.when(step < counts[queries])
    def _():
        lse_Q1, delta_Q1 = (jnp.expand_dims(ref[0], -1) for ref in (lse_ref, delta_ref))
        logits_QS = logits.of(_dot(q_ref[...], k_ref[...], _NT))
        seen_QS = _seen(i, live[queries * count + step], mask_refs, 0)
        weights_QS = jnp.exp(jnp.where(seen_QS, logits_QS, NOTHING) - lse_Q1)
        d_weights_QS = _dot(d_out_ref[...], v_ref[...], _NT)
        d_product_QS = weights_QS * (d_weights_QS - delta_Q1) * logits.slope(logits_QS)
        dq[...] += _dot(d_product_QS.astype(k_ref.dtype), k_ref[...])

    @pl.when(step == steps - 1)
    def _():
        dq_ref[...] = dq[...].astype(dq_ref.dtype)


def _d_keys(logits, mask, rows, interpret):
    q, k = rows[:2]
    batch, heads, length, width = q.shape
    kv_heads = k.shape[1]
    block, group = _block(length), heads // kv_heads
    live, counts = _listed(mask, block, by_key=True)
    count = length // block

    def at_key(b, n, j, *_):
        return b, n, j, 0

    def at_query(b, n, j, member, step, live, counts):
        return b, n * group + member, live[(b * count + j) * count + step], 0

    def of_query(b, n, j, member, step, live, counts):
        return b, n * group + member, 0, live[(b * count + j) * count + step]

    def of_queries(b, n, j, member, step, live, counts):
        return b, 0, live[(b * count + j) * count + step]

    of_keys = pl.BlockSpec((None, 1, block), lambda b, n, j, *_: (b, 0, j))
    return pl.pallas_call(
        functools.partial(_d_key, count=count, group=group, logits=logits),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads, count, group, counts.max()),
            in_specs=[
                pl.BlockSpec((None, None, block, width), at_query),
                pl.BlockSpec((None, None, block, width), at_key),
                pl.BlockSpec((None, None, block, width), at_key),
                pl.BlockSpec((None, None, block, width), at_query),
                pl.BlockSpec((None, None, 1, block), of_query),
                pl.BlockSpec((None, None, 1, block), of_query),
                _of_tokens(mask, of_keys, pl.BlockSpec((None, 1, block), of_queries)),
            ],
            out_specs=[pl.BlockSpec((None, None, block, width), at_key)] * 2,
            scratch_shapes=[pltpu.VMEM((block, width), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        compiler_params=_parallel(3, 2),
        interpret=interpret,
        name='tree_attention_d_keys',
    )(live, counts, *rows)


def _d_key(
    live, counts, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, mask_refs, dk_ref, dv_ref, dk, dv,
    *, count, group, logits,
):  # fmt: skip
    j, member, step, steps = *(pl.program_id(axis) for axis in (2, 3, 4)), pl.num_programs(4)
    keys = pl.program_id(0) * count + j

    @pl.when((member == 0) & (step == 0))
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(step < counts[keys])
    def _():
        logits_SQ = logits.of(_dot(k_ref[...], q_ref[...], _NT))
        seen_SQ = _seen(live[keys * count + step], j, mask_refs, 1)
        weights_SQ = jnp.exp(jnp.where(seen_SQ, logits_SQ, NOTHING) - lse_ref[...])
        dv[...] += _dot(weights_SQ.astype(d_out_ref.dtype), d_out_ref[...])
        d_weights_SQ = _dot(v_ref[...], d_out_ref[...], _NT)
        d_product_SQ = weights_SQ * (d_weights_SQ - delta_ref[...]) * logits.slope(logits_SQ)
        dk[...] += _dot(d_product_SQ.astype(q_ref.dtype), q_ref[...])

    @pl.when((member == group - 1) & (step == steps - 1))
    def _():
        dk_ref[...] = dk[...].astype(dk_ref.dtype)
        dv_ref[...] = dv[...].astype(dv_ref.dtype)


def _over_queries(q: jax.Array, k: jax.Array, mask: Mask) -> tuple:
    """Return the live key blocks and the block specs for the grid (rows, heads, query blocks, live key blocks).

    Returns:
      The indices of each query block's live key blocks, the number of live key blocks of each query block, the number
      of query blocks in a row, and block specs for four kinds of arrays: queries, arrays with one value per query,
      keys, and the mask arrays that `_numbers` returns.
    """
    length, width, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    block = _block(length)
    live, counts = _listed(mask, block)
    count = length // block

    def key_block(b, i, step, live):
        return live[(b * count + i) * count + step]

    at_query = pl.BlockSpec((None, None, block, width), lambda b, n, i, step, *_: (b, n, i, 0))
    of_query = pl.BlockSpec((None, None, 1, block), lambda b, n, i, step, *_: (b, n, 0, i))
    at_key = pl.BlockSpec(
        (None, None, block, width), lambda b, n, i, step, live, _: (b, n // group, key_block(b, i, step, live), 0)
    )
    of_keys = pl.BlockSpec((None, 1, block), lambda b, n, i, step, live, _: (b, 0, key_block(b, i, step, live)))
    of_queries = pl.BlockSpec((None, 1, block), lambda b, n, i, step, *_: (b, 0, i))
    return live, counts, count, at_query, of_query, at_key, _of_tokens(mask, of_keys, of_queries)


def _numbers(mask: Mask) -> tuple[jax.Array, ...]:
    """Return the arrays from which the kernels compute the mask, [B, 1, T] each.

    They contain the end of each key's subtree and, with a sliding window, the position of each key and the lowest
    position that each query attends to.
    """
    window = () if mask.lowest_BT is None else (mask.position_BT, mask.lowest_BT)
    return tuple(x_BT[:, None] for x_BT in (ends(mask.extent_BT), *window))


def _of_tokens(mask: Mask, of_keys: pl.BlockSpec, of_queries: pl.BlockSpec) -> tuple[pl.BlockSpec, ...]:
    """Return the block specs for the mask arrays that `_numbers` returns."""
    return (of_keys,) if mask.lowest_BT is None else (of_keys, of_keys, of_queries)


def _seen(i, j, mask_refs, query_axis: int) -> jax.Array:
    """Return a mask, [Q, S] or [S, Q], that is true where a query in block i attends to a key in block j."""
    (end, *window), key_axis = mask_refs, 1 - query_axis
    block = end.shape[-1]

    def along(ref, axis: int) -> jax.Array:
        return ref[...] if axis == 1 else jnp.expand_dims(ref[0], -1)

    query = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
    key = j * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), key_axis)
    seen = (key <= query) & (query < along(end, key_axis))
    if window:
        position, lowest = window
        seen &= along(position, key_axis) >= along(lowest, query_axis)
    return seen


def _dot(a: jax.Array, b: jax.Array, dims=(((1,), (0,)), ((), ()))) -> jax.Array:
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def _listed(mask: Mask, block: int, *, by_key: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return the live key blocks of each query block or, if `by_key`, the live query blocks of each key block.

    The block indices and their counts are flattened, because scalar memory would pad the last dimension.
    """
    live_BIJ = live_blocks(mask, block)
    indices, counts = listed(live_BIJ.swapaxes(1, 2) if by_key else live_BIJ)
    return indices.ravel(), counts.ravel()


def _parallel(parallel: int, sequential: int) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=('parallel',) * parallel + ('arbitrary',) * sequential)
