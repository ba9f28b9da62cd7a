"""Errors that the user can fix, and the exit status of a program that was stopped.

Programs print the message of an error on one line and exit with status 2.
"""

import re

STOPPED = 75  # exit status if a run was asked to stop and can be resumed (EX_TEMPFAIL in sysexits.h)


class Stopped(Exception):
    """Raised after a run that can be resumed was asked to stop."""


class UserError(Exception):
    """An error that the user can fix.

    The message is one sentence. It names the file, field or flag at fault and, after a colon, says what to do about it.
    """


class NothingToEvaluate(UserError):
    """Raised when a held-out set cannot be used for an evaluation; the trained model is unaffected.

    The message goes into reports that people share, so it names settings but no paths.
    """


def one_line(error: BaseException) -> str:
    """Return an error's message on one line.

    >>> one_line(KeyError('a\\n b'))
    'a b'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(text).replace('\\n', ' ').split())


# The operating system's messages about machine faults, as libraries quote them, and what the user can do about each.
_FAULTS = {
    'No space left on device|disk is full|Disk quota exceeded': 'free some space',
    'Read-only file system|readonly database|Permission denied|Operation not permitted': 'use another folder',
    'Too many open files': 'raise the limit with `ulimit -n`',
    'File too large': 'raise the limit with `ulimit -f`',
    'Cannot allocate memory': 'free some memory',
}


def fault_of_the_machine(error: BaseException) -> str:
    """Return one line about the machine fault (such as a full disk) that caused an error, or '' if none did.

    Libraries wrap such errors in exceptions of their own, so this function searches the messages of the error
    and of its causes.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        for pattern, remedy in _FAULTS.items():
            if match := re.search(pattern, str(error), re.IGNORECASE):
                path = f' ({error.filename})' if isinstance(error, OSError) and error.filename else ''
                return f'{match[0]}{path}: {remedy} and run the same command to resume'
        error = error.__cause__ or error.__context__
    return ''
