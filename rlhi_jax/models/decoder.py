"""The decoder of the Llama and Gemma families, as a Flax Linen module.

Its input is rows. Each row holds the tokens of one or more branching conversations (trees).

Dimension key: B rows, T tokens, L layers, D width, F mlp width, N query heads, K key-value heads, H head width,
V vocabulary.

Parameters are float32 master weights, cast to the compute dtype where they are used. Each parameter is declared once,
with its logical axes (`rlhi_jax/parallel/sharding.py` maps these to the mesh):

    embed [V, D]                      layers/{attention_norm, mlp_norm} [L, D]
    layers/{q [L, D, N, H], k, v [L, D, K, H], o [L, N, H, D]}     (+ q_bias, k_bias, v_bias; q_norm, k_norm [L, H])
    layers/{gate, up [L, D, F], down [L, F, D]}                    final_norm [D]
    layers/{post_attention_norm, post_mlp_norm} [L, D] (models with `post_norms`)
    unembed [V, D] (untied language models)                        score [D, 1] (reward models)

With `lora`, these parameters are frozen, and each adapted matrix W also has two matrices in the collection `adapters`:

    layers/{W_a [L, axes of W that are summed over, R], W_b [L, R, other axes of W]}     R rank
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.attention import cached_attention, tree_attention
from rlhi_jax.models.linear import frozen_linear, linear
from rlhi_jax.models.lora import Lora
from rlhi_jax.models.rope import inverse_frequencies, local_frequencies, rotate, rotation
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.models.tree_blocks import Logits, Mask
from rlhi_jax.parallel.sharding import constrain

_names = jax.checkpoint_policies.save_only_these_names
# What a layer saves for the backward pass, which recomputes the rest. The first policy saves the most values, and the
# last saves none. In a layer with adapters, `save_dots` saves the sum of a matrix's product and its adapter's output,
# but not the two terms.
REMAT_POLICIES = {
    'save_all': None,
    'save_dots': _names('product', 'low_rank', 'context', 'lse'),
    'save_attention': _names('query', 'key', 'value', 'context', 'lse'),
    'save_nothing': jax.checkpoint_policies.nothing_saveable,
}

_NORMAL = nn.initializers.normal(0.02)
_ACTIVATIONS = {'silu': jax.nn.silu, 'gelu': functools.partial(jax.nn.gelu, approximate=True)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Return `x` normalized by its root mean square over the last axis (RMSNorm, arXiv 1910.07467), times `scale`.

    The normalization is computed in float32. The result has the dtype of `x`.

    Let dy be the gradient of the result, n = x / rms(x) and g = dy * scale. Then the gradient of x is
    (g - n * mean(g * n)) / rms(x), and the gradient of the scale is the sum of dy * n. We compute the mean and the sum
    with `einsum`, which is ten times as fast on a CPU as the sums that JAX derives.
    """
    return scale.astype(x.dtype) * _normed(x, eps)[0].astype(x.dtype)


def _normed(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Return x divided by its root mean square, and the inverse of that root mean square, both float32."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32 * inverse, inverse


def _rms_norm_backward(eps: float, inputs: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale = inputs
    (n, inverse), dy = _normed(x, eps), dy.astype(jnp.float32)
    g = dy * scale
    mean = jnp.einsum('...D,...D->...', g, n)[..., None] / x.shape[-1]
    return ((g - n * mean) * inverse).astype(x.dtype), jnp.einsum('...D,...D->D', dy, n).astype(scale.dtype)


_rms_norm.defvjp(lambda x, scale, eps: (_rms_norm(x, scale, eps), (x, scale)), _rms_norm_backward)


class Block(nn.Module):
    """One pre-norm transformer layer, with optional adapters.

    `_by_kind` explains the arguments `kind` and `by_kind` of `__call__`.
    """

    spec: ModelSpec
    dtype: Any
    lora: Lora | None = None

    def parameter(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        if name.endswith('_norm'):
            init = nn.initializers.ones
        elif name.endswith('_bias'):
            init = nn.initializers.zeros
        else:
            init = _NORMAL
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

    def weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        return self.parameter(name, shape, axes).astype(self.dtype)

    def product(self, dims: str, x: jax.Array, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        """Return the product of `x` and the matrix `name`, plus the adapter's output if the matrix has an adapter."""
        if self.lora is None:
            y = linear(dims, x, self.weight(name, shape, axes))
        else:
            y = frozen_linear(dims, x, self.parameter(name, shape, axes))
            # Adapters are off if the caller passes none, for example to compute reference log-probabilities.
            on = self.is_initializing() or self.has_variable('adapters', f'{name}_a')
            if on and name in self.lora.targets:
                y = y + self.adapter(dims, x, name, shape, axes)
        return checkpoint_name(y, 'product')

    def adapter(self, dims: str, x: jax.Array, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
        """Return the output of a matrix's adapter, scale · (x A) B (arXiv 2106.09685, eq. 3).

        A is initialized as in the package `peft` (uniformly, with the bound that `torch.nn.Linear` uses), and B is
        initialized with zeros.
        """
        of_x, of_y = dims.partition(',')[0], dims.partition('->')[2]
        summed = len(of_x) - 2  # number of leading matrix axes that the product sums over
        bound = math.prod(shape[:summed]) ** -0.5

        def matrix(part: str, init, part_shape: tuple[int, ...], part_axes: tuple[str, ...]) -> jax.Array:
            def make():
                key = self.make_rng('params')
                return nn.with_logical_partitioning(init, part_axes)(key, part_shape, jnp.float32)

            return self.variable('adapters', f'{name}_{part}', make).value.astype(self.dtype)

        def uniform(key, part_shape, dtype):
            return jax.random.uniform(key, part_shape, dtype, -bound, bound)

        rank = self.lora.rank
        a = matrix('a', uniform, (*shape[:summed], rank), (*axes[:summed], 'rank'))
        b = matrix('b', nn.initializers.zeros, (rank, *shape[summed:]), ('rank', *axes[summed:]))
        low_BTR = linear(f'{of_x},{of_x[2:]}R->BTR', x, a)
        low_BTR = checkpoint_name(low_BTR * self.lora.scale, 'low_rank')
        return linear(f'BTR,R{of_y[2:]}->{of_y}', low_BTR, b)

    @nn.compact
    def __call__(self, x_BTD, kind, by_kind, position_BT, extent_BT):
        s = self.spec
        rope, lowest_BT = by_kind if kind is None else jax.tree.map(lambda x: x[kind], by_kind)
        width, heads, kv_heads, head_dim, mlp = s.width, s.num_heads, s.num_kv_heads, s.head_dim, s.mlp_width

        def project(name: str, count: int, axis: str) -> jax.Array:
            shape, axes = (width, count, head_dim), ('embed', axis, 'head_dim')
            y = self.product('BTD,DNH->BTNH', h_BTD, name, shape, axes)
            if s.qkv_bias:
                y = y + self.weight(f'{name}_bias', (count, head_dim), (axis, 'head_dim'))
            if s.qk_norm and name != 'v':
                y = _rms_norm(y, self.weight(f'{name}_norm', (head_dim,), ('head_dim',)), s.norm_eps)
            return y

        def normed(y_BTD: jax.Array, name: str) -> jax.Array:
            return _rms_norm(y_BTD, self.weight(name, (width,), ('norm',)), s.norm_eps)

        h_BTD = normed(x_BTD, 'attention_norm')
        q_BTNH = checkpoint_name(rotate(project('q', heads, 'heads'), *rope), 'query')
        k_BTKH = checkpoint_name(rotate(project('k', kv_heads, 'kv_heads'), *rope), 'key')
        v_BTKH = checkpoint_name(project('v', kv_heads, 'kv_heads'), 'value')
        self.sow('new', 'kv', (k_BTKH, v_BTKH), reduce_fn=lambda _, latest: latest)
        logits = Logits((s.query_width or head_dim) ** -0.5, s.attention_cap)
        if self.has_variable('cache', 'kv'):
            cache = self.variable('cache', 'kv')
            filled_B, lowest_B = position_BT[:, 0], None if lowest_BT is None else lowest_BT[:, 0]
            inputs = q_BTNH, k_BTKH, v_BTKH, cache.value
            context_BTNH, cache.value = cached_attention(*inputs, filled_B, lowest_B, logits)
        else:
            mask = Mask(extent_BT) if lowest_BT is None else Mask(extent_BT, position_BT, lowest_BT)
            context_BTNH = tree_attention(q_BTNH, k_BTKH, v_BTKH, mask, logits)
        shape, axes = (heads, head_dim, width), ('heads', 'head_dim', 'embed')
        y_BTD = self.product('BTNH,NHD->BTD', context_BTNH, 'o', shape, axes)
        x_BTD = x_BTD + (normed(y_BTD, 'post_attention_norm') if s.post_norms else y_BTD)

        h_BTD = normed(x_BTD, 'mlp_norm')
        gate_BTF = self.product('BTD,DF->BTF', h_BTD, 'gate', (width, mlp), ('embed', 'mlp'))
        up_BTF = self.product('BTD,DF->BTF', h_BTD, 'up', (width, mlp), ('embed', 'mlp'))
        hidden_BTF = _ACTIVATIONS[s.activation](gate_BTF) * up_BTF
        y_BTD = self.product('BTF,FD->BTD', hidden_BTF, 'down', (mlp, width), ('mlp', 'embed'))
        x_BTD = x_BTD + (normed(y_BTD, 'post_mlp_norm') if s.post_norms else y_BTD)
        return constrain(x_BTD, ('batch', 'length', 'activation')), None


class Decoder(nn.Module):
    """A decoder that maps rows to final hidden states.

    The caller applies the head, but only to the tokens that it scores.

    Training scans over the layers, whose parameters are stacked. A scan copies each layer out of the stack before using
    it. This copy would be costly in a sampler, which computes only a few tokens per layer. Samplers therefore use
    `unrolled` layers (see `unroll`).
    """

    spec: ModelSpec
    dtype: Any = jnp.float32
    remat: str = 'save_all'
    unrolled: bool = False
    lora: Lora | None = None

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, position_BT: jax.Array, extent_BT: jax.Array) -> jax.Array:
        """Return the final hidden states after the last norm, [B, T, D] in the compute dtype.

        Args:
          tokens_BT: token ids.
          position_BT: number of tokens before each token on its path from the root of its tree.
          extent_BT: number of tokens from each token to the end of its node's subtree, including the token itself.
        """
        s = self.spec

        def table(name: str, shape: tuple[int, ...], axes: tuple[str, ...], init=_NORMAL):
            return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

        embed_VD = table('embed', (s.vocab_size, s.width), ('vocab', 'embed'))
        if s.has_unembed:
            table('unembed', (s.vocab_size, s.width), ('vocab', 'embed'))
        if s.head == 'reward':
            table('score', (s.width, 1), ('norm', 'score'), nn.initializers.normal((s.width + 1) ** -0.5))

        # Devices that share one copy of the parameters form a group. Each device looks up its own part of the width,
        # for the rows of the whole group, so neither the table nor its gradient moves between devices.
        tokens_BT = constrain(tokens_BT, ('shared_rows', 'length'))
        embed_VD = embed_VD if self.lora else embed_VD.astype(self.dtype)  # casting a frozen table would copy it
        x_BTD = jnp.take(embed_VD, tokens_BT, axis=0).astype(self.dtype)
        if s.scaled_embeddings:
            x_BTD = x_BTD * jnp.asarray(s.width**0.5, self.dtype)  # the factor is rounded, as in the original training
        x_BTD = constrain(x_BTD, ('shared_rows', 'length', 'embed'))
        x_BTD = constrain(x_BTD, ('batch', 'length', 'activation'))
        block = _with_remat(self.remat, self.unrolled)
        inputs = _by_kind(position_BT, s), position_BT, extent_BT
        kind_L = np.array(s.is_local, np.int32) if s.local else None
        if self.unrolled:
            for layer in range(s.num_layers):
                kind = None if kind_L is None else kind_L[layer]
                x_BTD, _ = block(s, self.dtype, self.lora, name=f'layers_{layer}')(x_BTD, kind, *inputs)
        else:
            layers = nn.scan(
                block,
                variable_axes={'params': 0, 'adapters': 0},
                split_rngs={'params': True},
                in_axes=(0, *(nn.broadcast,) * 3),
                length=s.num_layers,
                metadata_params={nn.PARTITION_NAME: 'layers'},
            )(s, self.dtype, self.lora, name='layers')
            x_BTD, _ = layers(x_BTD, kind_L, *inputs)
        scale = table('final_norm', (s.width,), ('norm',), nn.initializers.ones)
        return _rms_norm(x_BTD, scale, s.norm_eps)


def _by_kind(position_BT: jax.Array, spec: ModelSpec) -> tuple[tuple[jax.Array, jax.Array], jax.Array | None]:
    """Return each token's rotation (see `rotation`), and the lowest position that the token attends to.

    In models without local (sliding-window) layers, the lowest position is None. In other models, each array has a
    first axis of length 2, with index 0 for global layers and 1 for local layers. A layer gets this index as its
    argument `kind`, so that one scan can run over layers of both kinds.
    """
    of_all = rotation(position_BT, inverse_frequencies(spec))
    if spec.local is None:
        return of_all, None
    of_local = rotation(position_BT, local_frequencies(spec)), position_BT - (spec.local.window - 1)
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), (of_all, jnp.zeros_like(position_BT)), of_local)


def _with_remat(name: str, unrolled: bool) -> type[Block]:
    if name not in REMAT_POLICIES:
        raise UserError(f'config.model.remat is {name!r}: choose one of {", ".join(REMAT_POLICIES)}')
    policy = REMAT_POLICIES[name]
    # Without a scan, XLA would merge the recomputation with the first computation, which would undo remat.
    return Block if policy is None else nn.remat(Block, policy=policy, prevent_cse=unrolled)


def unroll(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the `unrolled` decoder, with `layers_0`, `layers_1`, … instead of the stack `layers`."""
    stack = params['layers']
    count = len(stack['attention_norm'])
    layers = {f'layers_{layer}': jax.tree.map(lambda x, layer=layer: x[layer], stack) for layer in range(count)}
    return {name: value for name, value in params.items() if name != 'layers'} | layers


def variables(params: dict[str, Any]) -> dict[str, Any]:
    """Split a parameter tree into Flax's collections: `params` and, for a model with adapters, `adapters`."""
    rest = {name: value for name, value in params.items() if name != 'adapters'}
    return {'params': rest} | ({'adapters': params['adapters']} if 'adapters' in params else {})


class OutputHead(NamedTuple):
    """The head that turns hidden states into next-token logits.

    Attributes:
      matrix_VD: the parameter `unembed`, or `embed` in models with tied embeddings.
      cap: logits are capped to `cap * tanh(logit / cap)`; None means no cap.
    """

    matrix_VD: jax.Array
    cap: float | None

    def logits(self, hidden_XD: jax.Array) -> jax.Array:
        """Return the float32 logits [..., V] of hidden states [..., D]; `matrix_VD` is cast to the states' dtype."""
        axes = 'ABC'[: hidden_XD.ndim - 1]
        matrix_VD = self.matrix_VD.astype(hidden_XD.dtype)
        logits_XV = linear(f'{axes}D,VD->{axes}V', hidden_XD, matrix_VD, jnp.float32)
        return logits_XV if self.cap is None else self.cap * jnp.tanh(logits_XV / self.cap)


def output_head(spec: ModelSpec, params: dict[str, Any]) -> OutputHead:
    """Return a language model's output head."""
    return OutputHead(params.get('unembed', params['embed']), spec.logit_cap)
