"""Sampling with a KV cache: each prompt is read once, and its samples are decoded in a fixed number of slots.

Each slot decodes one sequence at a time. When the sequence ends, the next sample takes the slot. The number of slots is
fixed, so the shapes in the compiled step never change. A sample depends only on its request's prompt and name, its
number within the request and the seed. It does not depend on its slot, the other slots or the order of requests.

Dimension key: S slots, C tokens in a slot's cache, N tokens decoded in each slot before the host reads them,
P tokens in a padded prompt, K key-value heads, H head width, D width, V vocabulary, G groups of X vocabulary entries.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.models.attention import KVCache
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.decoder import Decoder, output_matrix, unroll
from rlhi_jax.models.parameters import Params, check_fit, load_params
from rlhi_jax.parallel.sharding import on_mesh
from rlhi_jax.sampling.settings import Sampling

STEPS = 8  # tokens decoded in each slot before the host reads them
GROUP = 128  # vocabulary entries per group; to draw a token, probabilities are first summed within groups
BUCKET = 32  # prompts are padded to a multiple of this, so that only a few lengths are compiled


class Request(NamedTuple):
    """A prompt (token ids) to continue `samples` times; equal prompts with different names get different samples."""

    prompt: tuple[int, ...]
    samples: int = 1
    name: str = ''


class Sample(NamedTuple):
    """One continuation of a prompt.

    Attributes:
      request: index of the request.
      sample: number of the sample within its request.
      tokens: token ids, without the end-of-turn token.
      finished: False if the continuation was cut off at `new_tokens` tokens.
    """

    request: int
    sample: int
    tokens: tuple[int, ...]
    finished: bool


class Slots(flax.struct.PyTreeNode):
    """The state of all slots: for each slot, the next token to read, its position, the random key and the cache."""

    token_S: jax.Array
    position_S: jax.Array
    key_S2: jax.Array
    cache: dict[str, dict[str, KVCache]]  # keyed by layer; keys [S, K, H, C], values [S, K, C, H]


def keep_top_p(logits_SV: jax.Array, top_p: float) -> jax.Array:
    """Return the logits, with all logits outside the nucleus replaced by -inf.

    The nucleus is the smallest set of most likely tokens whose total probability reaches `top_p` (arXiv 1904.09751).
    The lowest probability in the nucleus is found by bisection instead of sorting, with a relative error below 0.001.
    """
    probability_SV = jax.nn.softmax(logits_SV, axis=-1)

    def halve(_, bounds):
        low_S, high_S = bounds
        middle_S = jnp.sqrt(low_S * high_S)
        enough_S = jnp.where(probability_SV >= middle_S[:, None], probability_SV, 0).sum(-1) >= top_p
        return jnp.where(enough_S, middle_S, low_S), jnp.where(enough_S, high_S, middle_S)

    low_S = jnp.full(logits_SV.shape[0], 1e-12)
    low_S, _ = jax.lax.fori_loop(0, 16, halve, (low_S, probability_SV.max(-1)))
    return jnp.where(probability_SV >= low_S[:, None], logits_SV, -jnp.inf)


def draw(logits_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
    """Draw one token per slot, [S] int32: the first whose cumulative probability exceeds the number in `uniform_S`.

    This needs one random number per token drawn; the Gumbel trick needs one for every entry of the vocabulary.
    Probabilities are first summed in groups. The cumulative sum over groups selects the group, and the cumulative sum
    within the group selects the token.
    """
    slots, vocabulary = logits_SV.shape
    weight_SV = jnp.exp(logits_SV - logits_SV.max(-1, keepdims=True))
    weight_SGX = jnp.pad(weight_SV, ((0, 0), (0, -vocabulary % GROUP))).reshape(slots, -1, GROUP)
    sum_SG = jnp.cumsum(weight_SGX.sum(-1), axis=-1)
    left_S = uniform_S * sum_SG[:, -1]
    group_S = jnp.argmax(sum_SG > left_S[:, None], axis=-1)
    every = jnp.arange(slots)
    weight_SX = weight_SGX[every, group_S]
    left_S -= jnp.where(group_S > 0, sum_SG[every, group_S - 1], 0)
    passed_SX = (jnp.cumsum(weight_SX, axis=-1) > left_S[:, None]) & (weight_SX > 0)
    # Because of rounding, it can happen that no token passes the number; we then take the group's likeliest token.
    index_S = jnp.where(passed_SX.any(-1), jnp.argmax(passed_SX, axis=-1), jnp.argmax(weight_SX, axis=-1))
    return (group_S * GROUP + index_S).astype(jnp.int32)


def next_tokens(logits_SV: jax.Array, key_S2: jax.Array, position_S: jax.Array, sampling: Sampling) -> jax.Array:
    """Return the next token of each slot, [S] int32, drawn with the slot's own key and position."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)
    logits_SV = logits_SV / sampling.temperature
    if sampling.top_p < 1:
        logits_SV = keep_top_p(logits_SV, sampling.top_p)

    def uniform(key_2, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key_2), position))

    return draw(logits_SV, jax.vmap(uniform)(key_S2, position_S))


def decode(decoder: Decoder, sampling: Sampling, params: Params, slots: Slots) -> tuple[Slots, jax.Array]:
    """Decode `STEPS` tokens in every slot; return the updated slots and the new tokens, [S, N]."""

    def step(slots: Slots, _):
        # Free slots are decoded too, because the shape is fixed; in a full cache, the last token is overwritten.
        inputs = (slots.token_S[:, None], slots.position_S[:, None], jnp.ones_like(slots.token_S)[:, None])
        variables = {'params': params, 'cache': slots.cache}
        hidden_S1D, new = decoder.apply(variables, *inputs, mutable=['cache'])
        output_VD = output_matrix(params).astype(hidden_S1D.dtype)
        logits_SV = jnp.einsum('SD,VD->SV', hidden_S1D[:, 0], output_VD, preferred_element_type=jnp.float32)
        token_S = next_tokens(logits_SV, slots.key_S2, slots.position_S, sampling)
        return Slots(token_S, slots.position_S + 1, slots.key_S2, new['cache']), token_S

    slots, token_NS = jax.lax.scan(step, slots, None, length=STEPS)
    return slots, token_NS.T


def prefill(decoder: Decoder, params: Params, token_P: jax.Array) -> dict[str, dict[str, KVCache]]:
    """Return the keys [1, K, H, P] and the values [1, K, P, H] of a prompt, keyed by layer."""
    position_1P = jnp.arange(len(token_P))[None]
    inputs = (token_P[None], position_1P, len(token_P) - position_1P)
    _, new = decoder.apply({'params': params}, *inputs, mutable=['new'])

    def laid_out(layer: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, KVCache]:
        k_1PKH, v_1PKH = layer['kv']
        return {'kv': KVCache(k_1PKH.transpose(0, 2, 3, 1), v_1PKH.transpose(0, 2, 1, 3))}

    return {name: laid_out(layer) for name, layer in new['new'].items()}


def branch(
    slots: Slots,
    prefix: dict[str, dict[str, KVCache]],
    slot: jax.Array,
    token: jax.Array,
    position: jax.Array,
    key_2: jax.Array,
) -> Slots:
    """Return the slots after starting a new sample in slot `slot`.

    The prompt's keys and values (`prefix`) are written to the slot's cache. The slot will next read `token`, the
    prompt's last token.
    """

    def put(cache: jax.Array, prefix: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, prefix, (slot, *jnp.zeros((3,), slot.dtype)))

    return Slots(
        slots.token_S.at[slot].set(token),
        slots.position_S.at[slot].set(position),
        slots.key_S2.at[slot].set(key_2),
        jax.tree.map(put, slots.cache, prefix),
    )


def empty_slots(decoder: Decoder, sampling: Sampling) -> Slots:
    """Return empty slots.

    Each slot's cache has room for a padded prompt or for a prompt and its reply, whichever is longer.
    """
    spec, count = decoder.spec, sampling.slots
    prompt = -(-sampling.prompt_tokens // BUCKET) * BUCKET
    capacity = max(prompt, sampling.prompt_tokens + sampling.new_tokens)
    k = jnp.zeros((count, spec.num_kv_heads, spec.head_dim, capacity), decoder.dtype)
    cache = {f'layers_{layer}': {'kv': KVCache(k, k.swapaxes(-1, -2))} for layer in range(spec.num_layers)}
    zeros = jnp.zeros(count, jnp.int32)
    return Slots(zeros, zeros, jnp.zeros((count, 2), jnp.uint32), cache)


def slots_layout(mesh: Mesh) -> Slots:
    """Return the shardings of the slots: the mesh axes data and fsdp split slots; tensor splits heads in the cache."""
    rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    return Slots(rows, rows, rows, NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), 'tensor')))


def jit_decode(decoder: Decoder, sampling: Sampling, mesh: Mesh) -> Callable[[Params, Slots], tuple[Slots, jax.Array]]:
    """Return the jitted `decode`, which reuses the memory of the slots passed to it."""
    layout = slots_layout(mesh)
    return jax.jit(
        functools.partial(decode, decoder, sampling), donate_argnums=1, out_shardings=(layout, layout.token_S)
    )


class Sampler:
    """A sampler that continues prompts with one model, on the devices of a single process.

    Raises:
      UserError: the model is not a language model; its context is shorter than the settings require; the model or the
        slots cannot be split evenly over the mesh; or there is more than one process.
    """

    def __init__(self, model: ModelFolder, sampling: Sampling, mesh: Mesh, *, dtype: str = 'float32'):
        if model.spec.head != 'lm':
            raise UserError(f'{model.path} is a reward model and cannot generate text: use a language model')
        if (tokens := sampling.prompt_tokens + sampling.new_tokens) > model.spec.max_positions:
            raise UserError(
                f'config.sampler.prompt_tokens + config.sampler.new_tokens is {tokens}, but {model.path} reads at most '
                f'{model.spec.max_positions} tokens: lower one of the two'
            )
        if jax.process_count() > 1:
            raise UserError('RLHI_COORDINATOR is set, but sampling runs in a single process: unset it')
        check_fit(mesh, model.spec, sampling.slots, 'config.sampler.slots')
        self.model, self.sampling, self._mesh = model, sampling, mesh
        self._end = set(np.atleast_1d(model.tokens['eos_token_id']).tolist())
        decoder = Decoder(model.spec, jnp.dtype(dtype), unrolled=True)
        layout = slots_layout(mesh)
        with on_mesh(mesh):
            self._params = jax.jit(unroll)(load_params(Decoder(model.spec), model, mesh, seed=0))
            self._empty = jax.jit(functools.partial(empty_slots, decoder, sampling), out_shardings=layout)
            self._decode = jit_decode(decoder, sampling, mesh)
            self._prefill = jax.jit(functools.partial(prefill, decoder))
            self._branch = jax.jit(branch, donate_argnums=0, out_shardings=layout)

    def key(self, request: Request, sample: int) -> np.ndarray:
        """Return the random key of one sample, [2] uint32: a hash of the seed, prompt, name and sample number."""
        words = digest(self.sampling.seed, request.prompt, request.name, sample)
        return np.array([int(words[:8], 16), int(words[8:16], 16)], np.uint32)

    def sample(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield every sample of every request once, in the order in which samples finish.

        Raises:
          UserError: a prompt is empty or longer than `config.sampler.prompt_tokens`.
        """
        waiting = self._waiting(requests)
        free = list(range(self.sampling.slots))[::-1]
        running: dict[int, tuple[int, int]] = {}  # slot -> request, sample
        drawn: dict[int, list[int]] = {}
        with on_mesh(self._mesh):
            slots = self._empty()
        while True:
            with on_mesh(self._mesh):
                while free and (following := next(waiting, None)) is not None:
                    (number, sample), prefix, request = following
                    slot = free.pop()
                    running[slot], drawn[slot] = (number, sample), []
                    last = (np.int32(request.prompt[-1]), np.int32(len(request.prompt) - 1))
                    slots = self._branch(slots, prefix, np.int32(slot), *last, self.key(request, sample))
                if not running:
                    return
                slots, token_SN = self._decode(self._params, slots)
            tokens = np.asarray(token_SN)
            for slot in list(running):
                ended = self._extend(drawn[slot], tokens[slot].tolist())
                if ended is not None:
                    free.append(slot)
                    yield Sample(*running.pop(slot), tuple(drawn.pop(slot)), ended)

    def _extend(self, drawn: list[int], tokens: list[int]) -> bool | None:
        """Add tokens to `drawn`; return True if the turn ended, False if it was cut off, None if it continues."""
        for token in tokens:
            if token in self._end:
                return True
            drawn.append(token)
            if len(drawn) == self.sampling.new_tokens:
                return False
        return None

    def _waiting(self, requests: Iterable[Request]) -> Iterator[tuple[tuple[int, int], Any, Request]]:
        """Yield each sample's (request, sample) numbers, its prompt's keys and values, and its request, in order.

        The keys and values are computed once per prompt.
        """
        for number, request in enumerate(requests):
            length = len(request.prompt)
            if not 0 < length <= self.sampling.prompt_tokens:
                raise UserError(
                    f'a prompt has {length} tokens, but config.sampler.prompt_tokens is {self.sampling.prompt_tokens}: '
                    f'raise it to at least {length}'
                )
            padded = np.zeros(-(-length // BUCKET) * BUCKET, np.int32)
            padded[:length] = request.prompt
            with on_mesh(self._mesh):
                prefix = self._prefill(self._params, padded)
            for sample in range(request.samples):
                yield (number, sample), prefix, request
