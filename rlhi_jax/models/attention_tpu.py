"""Tree attention as Pallas kernels for TPUs.

The forward and backward kernels visit only live blocks, in which some query attends to some key. A kernel first reads
the indices of live blocks from scalar memory and then fetches only these blocks, so a dead block costs neither
arithmetic nor bandwidth. The last axis of the grid is just long enough for the query block with the most live key
blocks. For the gradients of keys and values, it is just long enough for the key block with the most live query blocks.

JAX's splash attention compiles its mask into the program or reads a dense mask. The kernels in this module compute the
mask from one number per key.

Dimension key: B rows, T tokens (a multiple of 128), N query heads, K key-value heads, H head width; Q queries and S
keys in one block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rlhi_jax.models.tree_blocks import NOTHING, ends, listed, live_blocks

PRODUCTS = 7  # matrix products in the gradient; logits and d_weights are computed once for dq, and again for dk and dv
LANES = 128
BLOCKS = (512, 256, 128)  # tokens per block: the largest of these that divides the row length
_NT = (((1,), (1,)), ((), ()))  # contract the last dimensions of both operands


def forward(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, extent_BT: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Return the context [B, T, N, H] in q's dtype, and the log of each softmax denominator [B, N, T] in float32."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    batch, heads, length, width = q.shape
    live, counts, count, at_query, of_query, at_key, at_end = _over_queries(q, k, extent_BT)
    block = length // count

    out, lse = pl.pallas_call(
        functools.partial(_forward, count=count, scale=width**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, counts.max()),
            in_specs=[at_query, at_key, at_key, at_end],
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
    )(live, counts, q, k, v, ends(extent_BT)[:, None])
    return out.swapaxes(1, 2), lse[:, :, 0]


def _forward(live, counts, q_ref, k_ref, v_ref, end_ref, out_ref, lse_ref, top, total, out, *, count, scale):
    i, step, steps = pl.program_id(2), pl.program_id(3), pl.num_programs(3)
    queries = pl.program_id(0) * count + i

    @pl.when(step == 0)
    def _():
        top[...] = jnp.full_like(top, NOTHING)
        total[...] = jnp.zeros_like(total)
        out[...] = jnp.zeros_like(out)

    @pl.when(step < counts[queries])
    def _():
        logits_QS = _dot(q_ref[...], k_ref[...], _NT) * scale
        seen_QS = _seen(i, live[queries * count + step], end_ref[...], 0)
        logits_QS = jnp.where(seen_QS, logits_QS, NOTHING)
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
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    extent_BT: jax.Array,
    lse_BNT: jax.Array,
    delta_BNT: jax.Array,
    d_out_BTNH: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of q, k and v. `delta` is the context times its gradient, summed over H."""
    q, k, v, d_out = (x.swapaxes(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH, d_out_BTNH))
    rows = (q, k, v, d_out, lse_BNT[:, :, None], delta_BNT[:, :, None], ends(extent_BT)[:, None])
    dq = _d_queries(extent_BT, rows, interpret)
    dk, dv = _d_keys(extent_BT, rows, interpret)
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _d_queries(extent_BT, rows, interpret):
    q, k = rows[:2]
    batch, heads, length, width = q.shape
    live, counts, count, at_query, of_query, at_key, at_end = _over_queries(q, k, extent_BT)
    block = length // count

    return pl.pallas_call(
        functools.partial(_d_query, count=count, scale=width**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, heads, count, counts.max()),
            in_specs=[at_query, at_key, at_key, at_query, of_query, of_query, at_end],
            out_specs=at_query,
            scratch_shapes=[pltpu.VMEM((block, width), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=_parallel(3, 1),
        interpret=interpret,
        name='tree_attention_d_queries',
    )(live, counts, *rows)


def _d_query(live, counts, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, end_ref, dq_ref, dq, *, count, scale):
    i, step, steps = pl.program_id(2), pl.program_id(3), pl.num_programs(3)
    queries = pl.program_id(0) * count + i

    @pl.when(step == 0)
    def _():
        dq[...] = jnp.zeros_like(dq)

    @pl.when(step < counts[queries])
    def _():
        lse_Q1, delta_Q1 = (jnp.expand_dims(ref[0], -1) for ref in (lse_ref, delta_ref))
        logits_QS = _dot(q_ref[...], k_ref[...], _NT) * scale
        seen_QS = _seen(i, live[queries * count + step], end_ref[...], 0)
        weights_QS = jnp.exp(jnp.where(seen_QS, logits_QS, NOTHING) - lse_Q1)
        d_weights_QS = _dot(d_out_ref[...], v_ref[...], _NT)
        d_logits_QS = weights_QS * (d_weights_QS - delta_Q1) * scale
        dq[...] += _dot(d_logits_QS.astype(k_ref.dtype), k_ref[...])

    @pl.when(step == steps - 1)
    def _():
        dq_ref[...] = dq[...].astype(dq_ref.dtype)


def _d_keys(extent_BT, rows, interpret):
    q, k = rows[:2]
    batch, heads, length, width = q.shape
    kv_heads = k.shape[1]
    block, group = _block(length), heads // kv_heads
    live, counts = _listed(extent_BT, block, by_key=True)
    count = length // block

    def at_key(b, n, j, *_):
        return b, n, j, 0

    def at_query(b, n, j, member, step, live, counts):
        return b, n * group + member, live[(b * count + j) * count + step], 0

    def of_query(b, n, j, member, step, live, counts):
        return b, n * group + member, 0, live[(b * count + j) * count + step]

    return pl.pallas_call(
        functools.partial(_d_key, count=count, group=group, scale=width**-0.5),
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
                pl.BlockSpec((None, 1, block), lambda b, n, j, *_: (b, 0, j)),
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
    live, counts, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, end_ref, dk_ref, dv_ref, dk, dv,
    *, count, group, scale,
):  # fmt: skip
    j, member, step, steps = *(pl.program_id(axis) for axis in (2, 3, 4)), pl.num_programs(4)
    keys = pl.program_id(0) * count + j

    @pl.when((member == 0) & (step == 0))
    def _():
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

    @pl.when(step < counts[keys])
    def _():
        logits_SQ = _dot(k_ref[...], q_ref[...], _NT) * scale
        end_S1 = jnp.expand_dims(end_ref[0], -1)
        seen_SQ = _seen(live[keys * count + step], j, end_S1, 1)
        weights_SQ = jnp.exp(jnp.where(seen_SQ, logits_SQ, NOTHING) - lse_ref[...])
        dv[...] += _dot(weights_SQ.astype(d_out_ref.dtype), d_out_ref[...])
        d_weights_SQ = _dot(v_ref[...], d_out_ref[...], _NT)
        d_logits_SQ = weights_SQ * (d_weights_SQ - delta_ref[...]) * scale
        dk[...] += _dot(d_logits_SQ.astype(q_ref.dtype), q_ref[...])

    @pl.when((member == group - 1) & (step == steps - 1))
    def _():
        dk_ref[...] = dk[...].astype(dk_ref.dtype)
        dv_ref[...] = dv[...].astype(dv_ref.dtype)


def _over_queries(q: jax.Array, k: jax.Array, extent_BT: jax.Array) -> tuple:
    """Return the live key blocks and the block specs for the grid (rows, heads, query blocks, live key blocks).

    Returns:
      The live key blocks of each query block, the number of live key blocks of each query block, the number of blocks
      that a row is divided into, and four block specs. The specs are for queries, for arrays with one number per query,
      for keys, and for the ends of the keys' subtrees.
    """
    length, width, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    block = _block(length)
    live, counts = _listed(extent_BT, block)
    count = length // block

    def key_block(b, i, step, live):
        return live[(b * count + i) * count + step]

    at_query = pl.BlockSpec((None, None, block, width), lambda b, n, i, step, *_: (b, n, i, 0))
    of_query = pl.BlockSpec((None, None, 1, block), lambda b, n, i, step, *_: (b, n, 0, i))
    at_key = pl.BlockSpec(
        (None, None, block, width), lambda b, n, i, step, live, _: (b, n // group, key_block(b, i, step, live), 0)
    )
    at_end = pl.BlockSpec((None, 1, block), lambda b, n, i, step, live, _: (b, 0, key_block(b, i, step, live)))
    return live, counts, count, at_query, of_query, at_key, at_end


def _seen(i, j, end, query_axis: int) -> jax.Array:
    """Return a mask, [Q, S] or [S, Q], that is true where a query in block i attends to a key in block j.

    `end` contains the end of each key's subtree.
    """
    block = end.size
    query = i * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), query_axis)
    key = j * block + jax.lax.broadcasted_iota(jnp.int32, (block, block), 1 - query_axis)
    return (key <= query) & (query < end)


def _dot(a: jax.Array, b: jax.Array, dims=(((1,), (0,)), ((), ()))) -> jax.Array:
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _block(length: int) -> int:
    return next(block for block in BLOCKS if length % block == 0)


def _listed(extent_BT: jax.Array, block: int, *, by_key: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return the live key blocks of each query block or, if `by_key`, the live query blocks of each key block.

    The block indices and their counts are flattened, because scalar memory would pad the last dimension.
    """
    live_BIJ = live_blocks(extent_BT, block)
    indices, counts = listed(live_BIJ.swapaxes(1, 2) if by_key else live_BIJ)
    return indices.ravel(), counts.ravel()


def _parallel(parallel: int, sequential: int) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=('parallel',) * parallel + ('arbitrary',) * sequential)
