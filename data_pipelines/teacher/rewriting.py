"""Words the teacher's prompt for a reply that follows a user's feedback."""

from ml_collections import ConfigDict

from data_pipelines.teacher.prompts import prompt_digest, render
from data_pipelines.text.styles import styles
from rlhi_jax.sampling.generator import Turns


def instruction(request: str, reply: str, feedback: str, settings: ConfigDict) -> Turns:
    """Return the last turns of the teacher's prompt: the request, the reply if it is shown, and the feedback.

    Args:
      request: the user's request.
      reply: the reply to improve. It also sets how many words the teacher may use (see `_bounds`).
      feedback: the feedback on the reply; '' asks the teacher only to answer the request.
      settings: `config.rewrites`.
    """
    bounded = feedback
    if settings.max_words:
        bounded = f'{feedback} Use {_bounds(len(reply.split()), feedback, settings)} words.'.strip()
    if settings.shows_reply and feedback:
        return ('user', request), ('assistant', reply), ('user', render('rewrite', feedback=bounded))
    return (('user', render('rewrite_request', request=request, feedback=bounded)),)


def _bounds(words: int, feedback: str, settings: ConfigDict) -> str:
    """Return how many words the teacher is asked to write.

    Feedback about length sets the bound: half as many words as the reply at most, or twice as many at least. Otherwise,
    `config.rewrites.min_words` and `config.rewrites.max_words` apply; a longer reply raises the maximum to its length.

    Args:
      words: number of words of the reply that the feedback is about.
    """
    side = styles(feedback).get('length')
    if side == 'short':
        return f'at most {max(1, min(settings.max_words, words // 2))}'
    if side == 'long':
        return f'at least {max(settings.max_words, 2 * words)}'
    most = max(settings.max_words, words)
    return f'{settings.min_words} to {most}' if settings.min_words else f'at most {most}'


def prompt_digests(settings: ConfigDict) -> list[str]:
    """Return the digests of the prompts that `instruction` uses with these settings (`config.rewrites`)."""
    return [prompt_digest('rewrite'), *([] if settings.shows_reply else [prompt_digest('rewrite_request')])]
