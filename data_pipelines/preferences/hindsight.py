"""Makes the preferences that hindsight distillation learns from (arXiv 2603.12273)."""

import dataclasses
from collections import Counter

from data_pipelines.preferences.layouts import Rated, one_sided_preference
from data_pipelines.teacher.prompts import render
from rlhi_jax.data.tree import BadRecord, Preference


def hindsight_preference(rated: Rated, default_id: str, counts: Counter) -> Preference:
    """Return a preference whose two sides are the same reply, with and without the user's follow-up in the prompt.

    On the chosen side, the prompt template `hindsight` adds the follow-up to the request. The rating is not used, but
    must be valid.

    Raises:
      BadRecord: the reply has no follow-up, the rating does not say whether the user liked the reply, or the prompt or
        reply cannot be used.
    """
    if not isinstance(rated.follow_up, str) or not rated.follow_up.strip():
        raise BadRecord('reply_without_a_follow_up')
    known = one_sided_preference(rated, default_id, counts)
    reply = known.chosen or known.rejected
    request = render('hindsight', request=known.prompt[-1][1], follow_up=rated.follow_up.strip())
    chosen_prompt = (*known.prompt[:-1], ('user', request))
    return dataclasses.replace(known, chosen=reply, rejected=reply, chosen_prompt=chosen_prompt)
