"""Errors that the user can fix.

Programs print the message on one line and exit with status 2.
"""


class UserError(Exception):
    """An error that the user can fix.

    The message is one sentence. It names the file, field or flag at fault and, after a colon, says what to do about it.
    """


class NothingToEvaluate(UserError):
    """The error raised when a held-out set cannot be used for an evaluation; the trained model is unaffected.

    The message goes into reports that people share, so it names settings but no paths.
    """


def one_line(error: BaseException) -> str:
    """Return an error's message on one line.

    >>> one_line(KeyError('a\\n b'))
    'a b'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).replace('\\n', ' ').split())
