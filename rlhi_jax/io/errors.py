"""Failures that the user can fix; programs print their message as one line and exit with status 2."""


class UserError(Exception):
    """A failure that the user can fix.

    The message is one sentence that names the file, field or flag at fault, then a colon and what to do about it.
    """


class NothingToEvaluate(UserError):
    """The held-out set cannot support this evaluation; the trained model is unaffected.

    The message goes into reports that people pass on, so it names settings and no paths.
    """


def one_line(error: BaseException) -> str:
    """The message of an error on one line.

    >>> one_line(KeyError('a\\n b'))
    'a b'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).replace('\\n', ' ').split())
