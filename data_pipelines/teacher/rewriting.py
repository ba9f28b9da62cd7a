"""Words the teacher's prompt for a reply that follows a user's feedback."""

from ml_collections import ConfigDict

from data_pipelines.teacher.prompts import prompt_digest, render
from rlhi_jax.sampling.generator import Turns


def instruction(request: str, reply: str, feedback: str, settings: ConfigDict) -> Turns:
    """Return the last turns of the teacher's prompt: the request, the reply if it is shown, and the feedback.

    Args:
      request: the user's request.
      reply: the reply to improve. It also sets how many words the teacher may use (see `config.rewrites.max_words`).
      feedback: the feedback on the reply; '' asks the teacher only to answer the request.
      settings: `config.rewrites`.
    """
    bounded = feedback
    if settings.max_words:
        most = max(settings.max_words, len(reply.split()))
        bounds = f'{settings.min_words} to {most}' if settings.min_words else f'at most {most}'
        bounded = f'{feedback} Use {bounds} words.'.strip()
    if settings.shows_reply and feedback:
        return ('user', request), ('assistant', reply), ('user', render('rewrite', feedback=bounded))
    return (('user', render('rewrite_request', request=request, feedback=bounded)),)


def prompt_digests(settings: ConfigDict) -> list[str]:
    """Return the digests of the prompts that `instruction` uses with these settings (`config.rewrites`)."""
    return [prompt_digest('rewrite'), *([] if settings.shows_reply else [prompt_digest('rewrite_request')])]
