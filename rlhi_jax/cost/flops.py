"""Floating-point operations in closed form: body × tokens + head × scored tokens + allowed attention.

A multiplication and an addition count as two operations. Norms, rotations, activations and softmax, about 1 % of the
total, are left out, as is customary. A row's allowed attention is the sum of its extents: token j is attended to by
`extent[j]` tokens.
"""

import dataclasses

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
    """The amount of work in one run of a model, in tokens.

    Attributes:
      tokens: number of tokens computed.
      scored: number of tokens whose log-probability is read; a reward head costs next to nothing.
      attended: number of (query, key) pairs that the mask allows.
    """

    tokens: int
    scored: int
    attended: int

    def __add__(self, other: 'Work') -> 'Work':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(a + b for a, b in pairs))


def causal(length: int, scored: int) -> Work:
    """The work in one plain sequence of `length` tokens.

    >>> causal(4, 2)
    Work(tokens=4, scored=2, attended=10)
    """
    return Work(length, scored, length * (length + 1) // 2)


def shared_prefix(prefix: int, *replies: int) -> Work:
    """The work in a tree of one prefix and some replies, with every reply token scored.

    >>> shared_prefix(2, 1, 1)   # 3 + (3 + 3): each reply token attends to the prefix and itself
    Work(tokens=4, scored=2, attended=9)
    """
    attended = causal(prefix, 0).attended + sum(prefix * n + causal(n, 0).attended for n in replies)
    return Work(prefix + sum(replies), sum(replies), attended)


def _products(spec: ModelSpec) -> dict[str, int]:
    """Number of parameters in each matrix product of a layer."""
    heads, kv_heads = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    mlp = dict.fromkeys(('gate', 'up', 'down'), spec.mlp_width * spec.width)
    return {'q': heads * spec.width, 'o': heads * spec.width, **dict.fromkeys('kv', kv_heads * spec.width), **mlp}


def forward_flops(spec: ModelSpec, work: Work) -> dict[str, int]:
    """FLOPs of one forward pass, grouped by part."""
    logits = 2 * work.scored * spec.vocab_size * spec.width
    return {
        'body': 2 * work.tokens * spec.num_layers * sum(_products(spec).values()),
        'head': logits if spec.head == 'lm' else 0,
        'attention': 2 * 2 * work.attended * spec.num_layers * spec.num_heads * spec.head_dim,
    }


def train_flops(spec: ModelSpec, work: Work, remat: str, *, attention_products: int) -> dict[str, int]:
    """FLOPs of one forward pass and its gradient, grouped by part.

    Each part costs three times its forward pass. On top of that, `repeated` counts the work that is done again:
      in the body, the products that `remat` does not save;
      in the head, the logits;
      in attention, any products beyond four in the gradient and, with `save_nothing`, the whole forward pass.

    Args:
      spec: the model.
      work: the tokens that the model runs on.
      remat: the decoder's policy.
      attention_products: matrix products in attention's gradient (`PRODUCTS` in the backends); a forward pass has two.
    """
    forward = forward_flops(spec, work)
    products = _products(spec)
    body = 2 * work.tokens * spec.num_layers * sum(products[name] for name in REPEATED[remat])
    again = attention_products - 4 + 2 * (remat == 'save_nothing')
    repeated = body + forward['head'] + forward['attention'] * again // 2
    return {name: 3 * value for name, value in forward.items()} | {'repeated': repeated}
