"""Scores candidate replies with the same row format, template and forward pass as in training."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhi_jax.data.encode import TreeEncoder, start_piece
from rlhi_jax.data.loader import RowReader, in_order
from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.shards import View
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.io.files import digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import Params, check_fit, load_params
from rlhi_jax.parallel.sharding import local_mesh, on_mesh
from rlhi_jax.scoring.reference import row_keys
from rlhi_jax.scoring.rows import RowScorer
from rlhi_jax.tokenizers.template import ChatTemplate


class Candidates(NamedTuple):
    """A prompt (messages with `role` and `content`), its persona and its candidate replies."""

    id: str
    messages: Sequence[dict[str, str]]
    persona: str
    replies: Sequence[str]


def candidate_tree(candidates: Candidates, start: int = 0) -> Interaction:
    """Return a tree whose trunk is the prompt from turn index `start` on, and whose leaves are the replies.

    Each reply is paired with itself. The other replies therefore do not affect whether a reply fits in a row, or how
    much context fits with it.
    """
    turns = candidates.messages[start:]
    trunk = [Message(turn_index - 1, turn['role'], turn['content']) for turn_index, turn in enumerate(turns)]
    leaves = [Message(len(trunk) - 1, 'assistant', reply) for reply in candidates.replies]
    nodes = range(len(trunk), len(trunk) + len(leaves))
    pairs = [Pair(f'{candidates.id}/{node}', len(trunk) - 1, node, node) for node in nodes]
    return Interaction(candidates.id, (*trunk, *leaves), tuple(pairs), persona=candidates.persona)


class CandidateScorer:
    """A callable that scores candidate replies with one model.

    Scores are rewards or log-probabilities (nats), depending on the model's head.

    Args:
      config: the settings.
      model_path: the model's folder.
      capacities: the capacities of the rows that are scored.
      sees_persona: whether the model sees the personas.
      mesh: the devices; None for those of this process. On devices of several processes, all must score together.
      params: the model's parameters, laid out on the mesh; None to load them from the folder.

    Raises:
      UserError: the model is missing, or its dimensions or `config.eval.batch_rows` cannot be split evenly over the
        mesh.
    """

    def __init__(
        self,
        config: ConfigDict,
        model_path: str,
        capacities: Capacities,
        *,
        sees_persona: bool,
        mesh: Mesh | None = None,
        params: Params | None = None,
    ):
        model = open_model(model_path)
        self._capacities, self._batch_rows, self._sees_persona = capacities, config.eval.batch_rows, sees_persona
        self._mesh = local_mesh(config.mesh.to_dict()) if mesh is None else mesh
        check_fit(self._mesh, model.spec, self._batch_rows, 'config.eval.batch_rows')
        self._template = ChatTemplate.load(model.tokenizer_path)
        decoder = Decoder(model.spec, jnp.dtype(config.model.dtype))
        with on_mesh(self._mesh):
            self._params = load_params(decoder, model, self._mesh, seed=config.seed) if params is None else params
        self._scorer = RowScorer(config, decoder, self._mesh)

    def __call__(self, items: Sequence[Candidates]) -> dict[str, list[float | None]]:
        """Return the scores of each prompt's candidates, keyed by prompt id.

        The score of a candidate that does not fit in a row is None. All other candidates for a prompt are scored with
        the same context: as many of the prompt's last turns as fit in a row with the longest of these candidates.
        """
        trees = [self._with_shared_context(item) for item in items]
        view = View(trees, range(len(trees)), lambda tree: tree, digest([item.id for item in items]))
        scores: dict[str, list[float | None]] = {item.id: [None] * len(item.replies) for item in items}
        plan = make_plan(view, self._template, self._capacities, may_be_empty=True)
        reader = RowReader(plan, view, self._template, self._sees_persona)
        order = in_order(range(len(reader)), self._batch_rows)
        if not order:
            return scores
        with on_mesh(self._mesh):
            for rows, values in zip(order, self._scorer(self._params, reader, order), strict=True):
                for row, row_values in zip(rows, values.tolist(), strict=True):
                    for (tree, _, prompt, last), value in zip(row_keys(reader, row), row_values, strict=False):
                        scores[items[tree].id][last - prompt - 1] = value
        return scores

    def _with_shared_context(self, item: Candidates) -> Interaction:
        tree = candidate_tree(item)
        encoder = TreeEncoder(tree, self._template)
        pieces = (start_piece(encoder, pair, self._capacities) for pair in range(len(tree.pairs)))
        return candidate_tree(item, max((piece.start for piece in pieces if piece), default=0))
