"""Scores both replies of each preference, and returns how much higher the chosen reply scores: its gap."""

import math
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.loader import RowReader
from rlhi_jax.data.plan import check_positions, make_plan
from rlhi_jax.data.rows import capacities
from rlhi_jax.data.shards import View
from rlhi_jax.data.tree import Preference
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.models.checkpoints import ModelFolder
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import check_fit
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.scoring.reference import row_keys
from rlhi_jax.scoring.rows import Output, score_readers
from rlhi_jax.tokenizers.template import ChatTemplate

BEFORE_TEXTS = 'What do you want?'


def pair_gaps(
    config: ConfigDict, model: ModelFolder, conditions: Mapping[str, Sequence[Preference]], *, sees_persona: bool
) -> dict[str, dict[str, float]]:
    """Return the gap of each preference under each condition, keyed by condition and by preference id.

    The gap is a difference in rewards if the model has a reward head, and in log-probabilities (nats) otherwise.
    Preferences that do not fit in a row of `config.rows` have no gap.

    Args:
      config: the config; mesh, rows, `eval.batch_rows`, `model.dtype` and `model.logprob_chunk` apply.
      model: the model.
      conditions: the preferences under each condition, keyed by condition.
      sees_persona: whether the model sees the personas.

    Raises:
      UserError: the model or `config.eval.batch_rows` cannot be split evenly over the mesh, a conversation is longer
        than the model can read, or a score is not finite.
    """
    gaps = {}
    for name, values in _pair_values(config, model, conditions, sees_persona=sees_persona, output='score').items():
        gaps[name] = {pair: float(chosen - rejected) for pair, (chosen, rejected) in values.items()}
        for pair, gap in gaps[name].items():
            if not math.isfinite(gap):
                raise UserError(f'the scores of pair {pair!r} are not finite, so the model cannot be evaluated')
    return gaps


def pair_states(
    config: ConfigDict, model: ModelFolder, preferences: Sequence[Preference]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the states of the chosen and the rejected reply ([2 D] float32 each), keyed by preference id.

    The model sees no persona. Arguments and errors are as in `pair_gaps`; see `reply_states` for what a state is.
    """
    values = _pair_values(config, model, dict(pairs=preferences), sees_persona=False, output='state')
    return values['pairs']


def text_states(config: ConfigDict, model: ModelFolder, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the state of each text, [2 D] float32, keyed by text: that of the text as the reply to `BEFORE_TEXTS`.

    Texts that do not fit in a row of `config.rows`, and the empty text, have no state. Errors are as in `pair_gaps`.
    """
    told = [
        Preference(
            text, (('user', BEFORE_TEXTS),), (('assistant', text),), (), system='', persona='', user_id='', weight=1.0
        )
        for text in sorted({*texts} - {''})
    ]
    return {text: chosen for text, (chosen, _) in pair_states(config, model, told).items()}


def _pair_values(
    config: ConfigDict,
    model: ModelFolder,
    conditions: Mapping[str, Sequence[Preference]],
    *,
    sees_persona: bool,
    output: Output,
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return the model's output for the chosen and the rejected reply, keyed by condition and by preference id."""
    mesh = make_mesh(config.mesh.to_dict())
    decoder = Decoder(model.spec, jnp.dtype(config.model.dtype))
    check_fit(mesh, decoder.spec, config.eval.batch_rows, 'config.eval.batch_rows')
    template, readers = ChatTemplate.load(model.tokenizer_path), {}
    for name, preferences in conditions.items():
        trees = grow_trees(preferences)
        view = View(trees, range(len(trees)), lambda tree: tree, digest(name, [tree.id for tree in trees]))
        plan = make_plan(view, template, capacities(config), may_be_empty=True)
        check_positions(plan, view, template, most=model.spec.max_positions)
        if plan.rows:
            readers[name] = RowReader(plan, view, template, sees_persona)
    with on_mesh(mesh):
        outputs = score_readers(config, decoder, model, readers, mesh, 'evaluate', output=output) if readers else {}
    return {name: _of_pairs(readers[name], outputs[name]) if name in readers else {} for name in conditions}


def _of_pairs(reader: RowReader, outputs: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outputs for both replies of each pair in a reader's rows, keyed by pair id.

    The output for a reply that a pair lacks is NaN.

    Args:
      outputs: the output for each reply of each row, [rows, R, ...].
    """
    of_pair, missing = {}, np.full_like(outputs[0, 0], np.nan)
    for number, of_row in enumerate(outputs):
        of_reply = dict(zip(row_keys(reader, number), of_row, strict=False))  # the rest of the row is padding
        for tree, piece, _ in reader.plan.rows[number]:
            for pair in map(reader.trees[tree].pairs.__getitem__, piece.pairs):
                keys = ((tree, piece.start, *side) if side else None for side in pair.sides)
                chosen, rejected = (of_reply[key] if key else missing for key in keys)
                of_pair[pair.id] = chosen, rejected
    return of_pair
