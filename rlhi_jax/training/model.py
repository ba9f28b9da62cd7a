"""Makes the decoder to train, and says whether it reads personas and when the reference model is run."""

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.lora import lora_of
from rlhi_jax.models.parameters import check_fit
from rlhi_jax.objectives import OBJECTIVES
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.tokenizers.template import ChatTemplate


def make_decoder(config: ConfigDict, model: ModelFolder) -> Decoder:
    """Return the decoder that the objective trains: the model itself, or the model with a new reward head.

    Raises:
      UserError: the model's head does not suit the objective, or `config.model.new_head` does not suit the model.
    """
    head = OBJECTIVES[config.objective].head
    if head != model.spec.head and not (head == 'reward' and config.model.new_head):
        remedy = 'config.model.new_head=True' if head == 'reward' else 'config.model.path to another model'
        raise UserError(
            f'config.objective={config.objective!r} needs a model with the {head!r} head, but {model.path} has the '
            f'{model.spec.head!r} head: set {remedy}'
        )
    if head == model.spec.head and config.model.new_head:
        raise UserError(
            f'config.model.new_head is True, but {model.path} already has the {head!r} head: '
            'set config.model.new_head to False'
        )
    if head == 'reward':
        check_pad_token(model)
    spec = dataclasses.replace(model.spec, head=head)
    return Decoder(spec, dtype=jnp.dtype(config.model.dtype), remat=config.model.remat)


def with_adapters(decoder: Decoder, config: ConfigDict) -> Decoder:
    """Return the decoder that a run trains: the given decoder with any adapters that `config.lora` describes."""
    return decoder.clone(lora=lora_of(config.lora))


def on_devices(config: ConfigDict, model: ModelFolder) -> tuple[Mesh, Decoder]:
    """Return the mesh of a run and the decoder that it trains, with any adapters.

    Raises:
      UserError: as for `make_mesh` and `make_decoder`; or the model or a batch cannot be split evenly over the mesh.
    """
    mesh = make_mesh(config.mesh.to_dict())
    decoder = with_adapters(make_decoder(config, model), config)
    source = 'config.train.batch_rows / config.train.accumulate'
    check_fit(mesh, decoder.spec, config.train.batch_rows // config.train.accumulate, source)
    return mesh, decoder


def scores_reference_in_step(config: ConfigDict) -> bool:
    """Return whether the train step itself computes reference log-probabilities, by running without the adapters."""
    uses_reference = OBJECTIVES[config.objective].uses_reference
    return uses_reference and config.lora.rank > 0 and config.lora.reference == 'in_step'


def reads_reference(config: ConfigDict) -> bool:
    """Return whether batches contain log-probabilities under the reference model, computed before training."""
    return OBJECTIVES[config.objective].uses_reference and not scores_reference_in_step(config)


def check_pad_token(model: ModelFolder) -> None:
    """Check that a reward model would give replies the same scores after export.

    `transformers` reads a padded reply's reward at its last non-pad token.

    Raises:
      UserError: the model has no pad token, or rendered replies end with it.
    """
    pad = model.tokens['pad_token_id']
    if pad is None or pad == ChatTemplate.load(model.tokenizer_path).last_of_reply:
        fault = 'has no pad token' if pad is None else 'uses the token at the end of replies as its pad token'
        raise UserError(
            f'{model.path} {fault}, so an exported reward model would give different rewards: import the model again '
            'with --pad_token=TOKEN'
        )


def sees_persona(config: ConfigDict) -> bool:
    """Return whether the model being trained (a reward model or a policy) reads the persona."""
    return config.rm_sees_persona if OBJECTIVES[config.objective].head == 'reward' else config.policy_sees_persona
