"""Counts a model's floating-point operations (FLOPs) in closed form.

The total is body × tokens + head × scored tokens + attention, where the body is the weight matrices of all layers.
A multiplication and an addition count as two operations. As is customary, norms, rotary embeddings, activations and
softmax are left out; they are about 1 % of the total. Attention is counted only for the (query, key) pairs that the
mask allows. In a row, the number of these pairs is the sum of `extent` over all tokens, because `extent[j]` tokens
attend to token j (see `rlhi_jax.data.rows`). In layers with a sliding window, only the pairs inside the window count.
"""

import dataclasses

from rlhi_jax.models.lora import Lora
from rlhi_jax.models.spec import ModelSpec

# For each of the decoder's remat policies, the matrix products of a layer that are recomputed for the gradient.
REPEATED = {
    'save_all': (),
    'save_dots': (),
    'save_attention': ('o', 'gate', 'up'),
    'save_nothing': ('q', 'k', 'v', 'o', 'gate', 'up'),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """The amount of work in one forward pass of a model.

    Attributes:
      tokens: number of tokens that the model reads.
      scored: number of tokens whose log-probability is computed. Ignored for reward models, whose head costs almost
        nothing.
      attended: number of (query, key) pairs that the mask allows, per head of a layer without a sliding window.
      local: number of these pairs that are also inside the sliding window; ignored for models without local
        (sliding-window) layers.
    """

    tokens: int
    scored: int
    attended: int
    local: int = 0

    def __add__(self, other: 'Work') -> 'Work':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(a + b for a, b in pairs))


def causal(length: int, scored: int, *, window: int | None = None) -> Work:
    """Return the work for one causal sequence of `length` tokens, of which `scored` tokens are scored.

    >>> causal(4, 2, window=2)   # 1 + 2 + 3 + 4, and 1 + 2 + 2 + 2 in the window
    Work(tokens=4, scored=2, attended=10, local=7)
    """

    def pairs(length: int) -> int:
        return length * (length + 1) // 2

    return Work(length, scored, pairs(length), pairs(length) - pairs(max(length - (window or length), 0)))


def shared_prefix(prefix: int, *replies: int, window: int | None = None) -> Work:
    """Return the work for a tree of one prefix and some replies, given their lengths in tokens.

    Every reply token is scored.

    >>> shared_prefix(2, 1, 1)   # 3 + (3 + 3): each reply token attends to the prefix and itself
    Work(tokens=4, scored=2, attended=9, local=9)
    """
    before = causal(prefix, 0, window=window)
    paths = [causal(prefix + n, 0, window=window) for n in replies]
    attended, local = (
        sum(getattr(path, name) for path in paths) - (len(paths) - 1) * getattr(before, name)
        for name in ('attended', 'local')
    )
    return Work(prefix + sum(replies), sum(replies), attended, local)


def matrices(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return the numbers of inputs and outputs of each weight matrix of a layer."""
    heads, kv_heads = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        'q': (spec.width, heads),
        'k': (spec.width, kv_heads),
        'v': (spec.width, kv_heads),
        'o': (heads, spec.width),
        'gate': (spec.width, spec.mlp_width),
        'up': (spec.width, spec.mlp_width),
        'down': (spec.mlp_width, spec.width),
    }


def _products(spec: ModelSpec) -> dict[str, int]:
    """Return the number of parameters in each weight matrix of a layer."""
    return {name: inputs * outputs for name, (inputs, outputs) in matrices(spec).items()}


def forward_flops(spec: ModelSpec, work: Work) -> dict[str, int]:
    """Return the FLOPs of one forward pass, split into body, head and attention."""
    logits = 2 * work.scored * spec.vocab_size * spec.width
    attended = work.attended * (spec.num_layers - spec.num_local) + work.local * spec.num_local
    return {
        'body': 2 * work.tokens * spec.num_layers * sum(_products(spec).values()),
        'head': logits if spec.head == 'lm' else 0,
        'attention': 2 * 2 * attended * spec.num_heads * spec.head_dim,
    }


def train_flops(
    spec: ModelSpec, work: Work, remat: str, *, attention_products: int, lora: Lora | None = None
) -> dict[str, int]:
    """Return the FLOPs of one forward pass and its gradient, split into body, head, attention and repeated work.

    Body, head and attention each cost three times their forward pass. With adapters, body and head cost only twice
    their forward pass, because frozen matrices have no gradient. The part `adapters` costs three times the forward pass
    of the adapters. The part `repeated` is the work that is recomputed:
      in the body and the adapters, the matrix products that `remat` does not save;
      in the head, the logits;
      in attention, any products beyond four in the gradient and, with `save_nothing`, the whole forward pass.

    Args:
      spec: the model.
      work: the amount of work in the forward pass.
      remat: the decoder's remat policy.
      attention_products: number of matrix products in the gradient of attention (`PRODUCTS` of the backend); a forward
        pass has two.
      lora: the adapters; None if all parameters are trained.
    """
    forward = forward_flops(spec, work)
    products = _products(spec)
    names = REPEATED[remat] + ('down',) * (spec.post_norms and REPEATED[remat] != ())  # the post-norm reads its output
    body = 2 * work.tokens * spec.num_layers * sum(products[name] for name in names)
    again = attention_products - 4 + 2 * (remat == 'save_nothing')
    repeated = body + forward['head'] + forward['attention'] * again // 2
    if lora is None:
        return {name: 3 * value for name, value in forward.items()} | {'repeated': repeated}
    per_number = 2 * work.tokens * spec.num_layers * lora.rank
    sides = {name: sum(matrices(spec)[name]) for name in lora.targets}
    again = 0
    if REPEATED[remat]:  # every product with A is then recomputed; a product with B only if its matrix's product is
        again = sum(sides[name] if name in REPEATED[remat] else matrices(spec)[name][0] for name in lora.targets)
    return {
        'body': 2 * forward['body'],
        'head': 2 * forward['head'],
        'attention': 3 * forward['attention'],
        'adapters': 3 * per_number * sum(sides.values()),
        'repeated': repeated + per_number * again,
    }
