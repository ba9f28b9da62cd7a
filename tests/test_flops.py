"""The closed form against what XLA counts in an unrolled program, and against counting by hand."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from rlhi_jax.conversion import gemma
from rlhi_jax.cost.flops import REPEATED, Work, causal, forward_flops, shared_prefix, train_flops
from rlhi_jax.data.rows import Capacities, TokenNode, TokenPair, TokenTree, lay_out, pack, stack
from rlhi_jax.models import attention_xla
from rlhi_jax.models.decoder import REMAT_POLICIES, Decoder
from rlhi_jax.models.lora import MATRICES, Lora
from rlhi_jax.models.parameters import init_params, split_params
from rlhi_jax.models.spec import LocalLayers, ModelSpec
from rlhi_jax.models.tree_blocks import BLOCK
from rlhi_jax.scoring.pairs import score_replies

# Wide, so that the closed form leaves out little; one block of attention, since XLA counts a loop once.
SPEC = ModelSpec('llama', 1024, 512, 1024, 2, 8, 4, 64, 512)
CAPACITIES = Capacities(BLOCK, BLOCK, 1)


def batch():
    tree = TokenTree([TokenNode(-1, (1,) * 64), TokenNode(0, (2,) * 32, 32), TokenNode(0, (3,) * 32, 32)], [[1], [2]],
                     [TokenPair(0, 1, 1.0, 0.0, 0)])  # fmt: skip
    return stack([pack([lay_out(tree)], CAPACITIES)])


def counted(remat: str, *, gradient: bool, lora: Lora | None = None, spec: ModelSpec = SPEC) -> tuple[float, float]:
    """XLA's counts for an unrolled program, with all scored slots in one chunk: as it reads it, and compiled."""
    decoder = Decoder(spec, remat=remat, unrolled=True, lora=lora)
    params = nn.unbox(init_params(decoder, jax.random.key(0)))
    trained, frozen = split_params(decoder, params)
    trained |= {'embed': params['embed']}  # so that the first layer passes its gradient on, as it does in a scan

    def total(trained, frozen, batch):
        return score_replies(decoder, frozen | trained, batch, chunk=CAPACITIES.scored).logp_BR.sum()

    lowered = jax.jit(jax.value_and_grad(total) if gradient else total).lower(trained, frozen, batch())
    return lowered.cost_analysis()['flops'], lowered.compile().cost_analysis()['flops']


# What XLA computes of this row: every scored slot, and the whole block of attention.
WORK = Work(BLOCK, CAPACITIES.scored, BLOCK * BLOCK, BLOCK * BLOCK)


def test_a_pass_is_what_xla_counts():
    assert counted('save_all', gradient=False) == pytest.approx([sum(forward_flops(SPEC, WORK).values())] * 2, rel=0.01)


@pytest.mark.parametrize('targets', [None, MATRICES, ('q', 'down')])
@pytest.mark.parametrize('remat', REMAT_POLICIES)
def test_a_gradient_is_what_xla_counts(remat, targets):
    lora = Lora(64, 16.0, targets) if targets else None
    parts = train_flops(SPEC, WORK, remat, attention_products=attention_xla.PRODUCTS, lora=lora)
    read, compiled = counted(remat, gradient=True, lora=lora)
    assert read == pytest.approx(sum(parts.values()), rel=0.01)
    # Without a scan between them, XLA may find that what is computed again is there already.
    assert 0.99 * (sum(parts.values()) - parts['repeated']) < compiled < 1.01 * sum(parts.values())


def test_a_norm_after_the_mlp_repeats_its_last_product():
    spec = gemma.of_family(dataclasses.replace(SPEC, family='gemma3', local=LocalLayers(16, 2, 1e4)))
    parts = train_flops(spec, WORK, 'save_attention', attention_products=attention_xla.PRODUCTS)
    assert counted('save_attention', gradient=True, spec=spec)[0] == pytest.approx(sum(parts.values()), rel=0.01)


def test_a_reward_model_has_no_vocabulary_to_score():
    assert forward_flops(dataclasses.replace(SPEC, head='reward'), WORK)['head'] == 0


def test_policies_are_the_decoders():
    assert REPEATED.keys() == REMAT_POLICIES.keys()


def test_allowed_attention_is_the_sum_of_extents():
    extent = np.asarray(batch().extent_BT)[0]
    distance = np.arange(BLOCK)[:, None] - np.arange(BLOCK)
    allowed = int(((distance >= 0) & (distance < extent)).sum())
    assert allowed == extent.sum() == shared_prefix(64, 32, 32).attended
    assert causal(7, 0).attended == np.tril(np.ones((7, 7))).sum()


@pytest.mark.parametrize('window', [1, 5, 40, 64, 80, 96, 200])
def test_allowed_local_attention_lies_in_the_window(window):
    position, extent = (np.asarray(x)[0] for x in (batch().position_BT, batch().extent_BT))
    distance = np.arange(BLOCK)[:, None] - np.arange(BLOCK)
    allowed = (distance >= 0) & (distance < extent) & (position[:, None] - position < window)
    work = shared_prefix(64, 32, 32, window=window)
    assert work.local == allowed.sum() and work.attended == extent.sum()
    assert causal(9, 0, window=window).local == sum(min(i, window) for i in range(1, 10))


def test_local_layers_cost_their_window():
    local = dataclasses.replace(SPEC, num_layers=6, local=LocalLayers(window=8, period=3, rope_theta=1e4))
    work, one_layer = shared_prefix(64, 32, 32, window=8), 4 * SPEC.num_heads * SPEC.head_dim
    assert forward_flops(local, work)['attention'] == one_layer * (4 * work.local + 2 * work.attended)
