"""Sampling with a KV cache: each prompt is read once, and its samples are decoded in a fixed number of slots.

Each slot decodes one sequence at a time. When the sequence ends, the next sample takes the slot. The number of slots is
fixed, and the caches have one of a few sizes (`cache_sizes`), so only a few steps are compiled. A sample depends only
on its request's prompt and name, its number within the request and the seed. It does not depend on its slot, the other
slots or the order of requests.

Dimension key: S slots, C tokens in a slot's cache, N tokens decoded in each slot before the host reads them,
P tokens in a padded prompt, K key-value heads, H head width, D width, V vocabulary.
"""

import dataclasses
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
from rlhi_jax.models.decoder import Decoder, output_head, unroll
from rlhi_jax.models.parameters import Params, check_fit, load_params
from rlhi_jax.parallel.sharding import on_mesh
from rlhi_jax.sampling.logits import logprobs_of, next_tokens
from rlhi_jax.sampling.settings import Sampling
from rlhi_jax.tokenizers import load_tokenizer

STEPS = 8  # tokens decoded in each slot before the host reads them
BUCKET = 32  # prompts are padded to a multiple of this, so that only a few lengths are compiled
SMALLEST = 256  # tokens in the smallest cache; sizes double from there, up to the largest


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
      tokens: token ids, without the end-of-turn token. If a stop string ended the continuation, the last token is the
        one that completes this string.
      finished: False if the continuation was cut off at `new_tokens` tokens.
      logprobs: the log-probability (nats) of each token, followed by the log-probability of the end-of-turn token if
        this was drawn. They are computed from the model's logits at temperature 1, before any processor. Empty without
        `sampling.logprobs`.
    """

    request: int
    sample: int
    tokens: tuple[int, ...]
    finished: bool
    logprobs: tuple[float, ...] = ()


@dataclasses.dataclass
class Running:
    """The unfinished sample in a slot; `position` is the position of the token that the slot reads next."""

    request: int
    sample: int
    position: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class Slots(flax.struct.PyTreeNode):
    """The state of all slots: for each slot, the next token to read, its position, the random key and the cache.

    `seen_SV` marks the tokens in each slot's prompt and reply; it is None without a repetition penalty.
    """

    token_S: jax.Array
    position_S: jax.Array
    key_S2: jax.Array
    seen_SV: jax.Array | None
    cache: dict[str, dict[str, KVCache]]  # keyed by layer; keys [S, K, H, C], values [S, K, C, H]


class Drawn(NamedTuple):
    """The tokens decoded in each slot, and their log-probabilities (None without `sampling.logprobs`)."""

    token_SN: jax.Array
    logprob_SN: jax.Array | None


def decode(decoder: Decoder, sampling: Sampling, params: Params, slots: Slots) -> tuple[Slots, Drawn]:
    """Decode `STEPS` tokens in every slot; return the updated slots and the new tokens."""

    def step(slots: Slots, _):
        # Free slots are decoded too, because the shape is fixed; in a full cache, the last token is overwritten.
        inputs = (slots.token_S[:, None], slots.position_S[:, None], jnp.ones_like(slots.token_S)[:, None])
        variables = {'params': params, 'cache': slots.cache}
        hidden_S1D, new = decoder.apply(variables, *inputs, mutable=['cache'])
        logits_SV = output_head(decoder.spec, params).logits(hidden_S1D[:, 0])
        seen_SV = slots.seen_SV
        token_S = next_tokens(logits_SV, slots.key_S2, slots.position_S, sampling, seen_SV)
        if seen_SV is not None:
            seen_SV = seen_SV.at[jnp.arange(len(token_S)), token_S].set(True)
        drawn = Drawn(token_S, logprobs_of(logits_SV, token_S) if sampling.logprobs else None)
        return Slots(token_S, slots.position_S + 1, slots.key_S2, seen_SV, new['cache']), drawn

    slots, drawn_NS = jax.lax.scan(step, slots, None, length=STEPS)
    return slots, jax.tree.map(jnp.transpose, drawn_NS)


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
    seen_V: jax.Array | None,
) -> Slots:
    """Return the slots after starting a new sample in slot `slot`.

    The prompt's keys and values (`prefix`) are written to the slot's cache. The slot will next read `token`, the
    prompt's last token. `seen_V` marks the prompt's tokens.
    """

    def put(cache: jax.Array, prefix: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, prefix, (slot, *jnp.zeros((3,), slot.dtype)))

    return Slots(
        slots.token_S.at[slot].set(token),
        slots.position_S.at[slot].set(position),
        slots.key_S2.at[slot].set(key_2),
        None if seen_V is None else slots.seen_SV.at[slot].set(seen_V),
        jax.tree.map(put, slots.cache, prefix),
    )


def cache_sizes(sampling: Sampling) -> list[int]:
    """Return the sizes that the slots' caches can have, in tokens, in increasing order.

    The largest has room for a padded prompt or for a prompt and its reply, whichever is longer. Attention reads whole
    caches, so slots use the smallest size that holds the current samples.
    """
    prompt = -(-sampling.prompt_tokens // BUCKET) * BUCKET
    largest = max(prompt, sampling.prompt_tokens + sampling.new_tokens)
    sizes = [SMALLEST]
    while sizes[-1] < largest:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], largest]


def empty_slots(decoder: Decoder, sampling: Sampling, size: int) -> Slots:
    """Return empty slots, each with a cache of `size` tokens."""
    spec, count = decoder.spec, sampling.slots
    k = jnp.zeros((count, spec.num_kv_heads, spec.head_dim, size), decoder.dtype)
    cache = {f'layers_{layer}': {'kv': KVCache(k, k.swapaxes(-1, -2))} for layer in range(spec.num_layers)}
    zeros = jnp.zeros(count, jnp.int32)
    seen_SV = jnp.zeros((count, spec.vocab_size), bool) if sampling.penalizes else None
    return Slots(zeros, zeros, jnp.zeros((count, 2), jnp.uint32), seen_SV, cache)


def resized(size: int, slots: Slots) -> Slots:
    """Return the slots with caches of `size` tokens; tokens beyond that are dropped."""

    def along(axis: int, x: jax.Array) -> jax.Array:
        kept = jax.lax.slice_in_dim(x, 0, min(size, x.shape[axis]), axis=axis)
        return jnp.pad(kept, [(0, size - kept.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    cache = {name: {'kv': KVCache(along(3, kv.k_BKHC), along(2, kv.v_BKCH))} for name, kv in _caches(slots)}
    return slots.replace(cache=cache)


def _caches(slots: Slots) -> Iterator[tuple[str, KVCache]]:
    return ((name, layer['kv']) for name, layer in slots.cache.items())


def slots_layout(mesh: Mesh, sampling: Sampling) -> Slots:
    """Return the shardings of the slots: `data` and `fsdp` shard slots, and `tensor` shards the heads in the cache."""
    rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    cache = NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), 'tensor'))
    return Slots(rows, rows, rows, rows if sampling.penalizes else None, cache)


def jit_decode(decoder: Decoder, sampling: Sampling, mesh: Mesh) -> Callable[[Params, Slots], tuple[Slots, Drawn]]:
    """Return the jitted `decode`, which reuses the memory of the slots passed to it."""
    layout = slots_layout(mesh, sampling)
    return jax.jit(
        functools.partial(decode, decoder, sampling), donate_argnums=1, out_shardings=(layout, layout.token_S)
    )


def check_sampling(model: ModelFolder, sampling: Sampling, mesh: Mesh) -> None:
    """Check that a model can be sampled from with these settings on these devices.

    Raises:
      UserError: the model is not a language model; its context is shorter than the settings require; or the model or
        the slots cannot be split evenly over the mesh.
    """
    if model.spec.head != 'lm':
        raise UserError(f'{model.path} is a reward model and cannot generate text: use a language model')
    if (tokens := sampling.prompt_tokens + sampling.new_tokens) > model.spec.max_positions:
        raise UserError(
            f'config.sampler.prompt_tokens + config.sampler.new_tokens is {tokens}, but {model.path} reads at most '
            f'{model.spec.max_positions} tokens: lower one of the two'
        )
    check_fit(mesh, model.spec, sampling.slots, 'config.sampler.slots')


class Sampler:
    """A sampler that continues prompts with one model, on devices of this process.

    Args:
      model: the model's folder.
      sampling: the settings.
      mesh: the devices.
      dtype: the compute dtype.
      params: the model's parameters, laid out on the mesh; None to load them from the folder.

    Raises:
      UserError: `check_sampling` rejects the model or the settings.
    """

    def __init__(
        self,
        model: ModelFolder,
        sampling: Sampling,
        mesh: Mesh,
        *,
        dtype: str = 'float32',
        params: Params | None = None,
    ):
        check_sampling(model, sampling, mesh)
        self.model, self.sampling, self._mesh = model, sampling, mesh
        self._end = set(np.atleast_1d(model.tokens['eos_token_id']).tolist())
        self._tokenizer = load_tokenizer(model.tokenizer_path) if sampling.stop else None
        self._sizes = cache_sizes(sampling)
        decoder = Decoder(model.spec, jnp.dtype(dtype), unrolled=True)
        layout = slots_layout(mesh, sampling)
        self._unroll = jax.jit(unroll)
        with on_mesh(mesh):
            self.use(load_params(Decoder(model.spec), model, mesh, seed=0) if params is None else params)
            empty = functools.partial(empty_slots, decoder, sampling, self._sizes[0])
            self._empty = jax.jit(empty, out_shardings=layout)
            self._resized = jax.jit(resized, static_argnums=0, out_shardings=layout)
            self._decode = jit_decode(decoder, sampling, mesh)
            self._prefill = jax.jit(functools.partial(prefill, decoder))
            self._branch = jax.jit(branch, donate_argnums=0, out_shardings=layout)

    def use(self, params: Params) -> None:
        """Sample from other parameters of the same model, such as those that training has reached."""
        self.release()
        with on_mesh(self._mesh):
            self._params = self._unroll(params)

    def release(self) -> None:
        """Drop the parameters, to free their memory until `use` is called."""
        self._params = None

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
        running: dict[int, Running] = {}  # keyed by slot
        with on_mesh(self._mesh):
            slots = self._empty()
        while True:
            with on_mesh(self._mesh):
                while free and (following := next(waiting, None)) is not None:
                    slot = free.pop()
                    running[slot], prefix, arguments = following
                    slots = self._with_room(slots, running.values(), prefix)
                    slots = self._branch(slots, prefix, np.int32(slot), *arguments)
                if not running:
                    return
                slots, drawn = self._decode(self._params, self._with_room(slots, running.values()))
            token_SN, logprob_SN = jax.device_get(drawn)
            for slot in list(running):
                logprobs = [] if logprob_SN is None else logprob_SN[slot].tolist()
                ended = self._extend(running[slot], token_SN[slot].tolist(), logprobs)
                if ended is not None:
                    free.append(slot)
                    done = running.pop(slot)
                    yield Sample(done.request, done.sample, tuple(done.tokens), ended, tuple(done.logprobs))

    def _with_room(self, slots: Slots, running: Iterable[Running], prefix: Any = None) -> Slots:
        """Return the slots with the smallest caches that can hold `prefix` and `STEPS` more tokens of each sample."""
        needed = max(sample.position + STEPS for sample in running)
        _, first = next(_caches(slots))
        if prefix is not None:
            needed = max(needed, prefix['layers_0']['kv'].v_BKCH.shape[2], first.v_BKCH.shape[2])
        size = next(size for size in self._sizes if size >= min(needed, self._sizes[-1]))
        return slots if size == first.v_BKCH.shape[2] else self._resized(size, slots)

    def _extend(self, running: Running, tokens: list[int], logprobs: list[float]) -> bool | None:
        """Add tokens to a sample; return True if the turn ended, False if it was cut off, None if it continues."""
        running.position += len(tokens)
        for number, token in enumerate(tokens):
            running.logprobs += logprobs[number : number + 1]
            if token in self._end:
                return True
            running.tokens.append(token)
            if self._has_stopped(running.tokens):
                return True
            if len(running.tokens) == self.sampling.new_tokens:
                return False
        return None

    def _has_stopped(self, tokens: list[int]) -> bool:
        if self._tokenizer is None:
            return False
        text = self._tokenizer.decode(tokens)  # of all tokens, because a stop string may begin in any of them
        return self.sampling.before_stop(text) != text

    def _waiting(self, requests: Iterable[Request]) -> Iterator[tuple[Running, Any, tuple]]:
        """Yield, in order, each sample, its prompt's keys and values, and the remaining arguments to pass to `branch`.

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
            last, seen_V = (np.int32(request.prompt[-1]), np.int32(length - 1)), None
            if self.sampling.penalizes:
                seen_V = np.zeros(self.model.spec.vocab_size, bool)
                seen_V[list(request.prompt)] = True
            for sample in range(request.samples):
                yield Running(number, sample, length - 1), prefix, (*last, self.key(request, sample), seen_V)
