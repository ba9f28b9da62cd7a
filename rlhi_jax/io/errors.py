"""Failures that a user can mend, and the one way in which programs report them."""


class UserError(Exception):
    """Something the user can mend.

    The message is one sentence that names the file, field or flag at fault and what to do about it.
    """


class NothingToEvaluate(UserError):
    """What is held out cannot answer the question; what was trained is none the worse for it."""


def one_line(error: BaseException) -> str:
    """The message of an error folded onto one line.

    >>> one_line(KeyError('a\\n b'))
    'a b'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).replace('\\n', ' ').split())
