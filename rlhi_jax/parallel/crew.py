"""Shares the work of a program's main process with the other processes of the run.

Only the main process runs the program: it reads, writes and prints. The other processes wait for work. The main process
sends them the name of a function that was registered with `shared`, in one of two ways:

- `share` gives every process its part of a list of items. The results come back one by one, as JSON.
- `call_together` makes every process call a function, such as a training run that spans the devices of all processes.

Messages go through the key-value store of JAX's coordination service. There, unlike in a collective operation, a
process can wait for as long as the main process is busy with other work. If a process dies, the wait ends.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax._src.distributed import global_state  # the store has no public interface
from ml_collections import ConfigDict

from rlhi_jax.io.errors import UserError
from rlhi_jax.parallel import processes

_PART = 1 << 20  # characters in one entry of the store, well below the limit of its transport
_POLL = 5  # seconds that one call to the store may wait; Python handles signals between calls
_PATIENCE = 60  # seconds to wait, after an error in every process, for the main process to handle it
_END = dict(name='')

_SHARED: dict[str, Callable[..., Any]] = {}
_numbers = itertools.count()


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function for `share` or `call_together`; every process must import the module that defines it.

    The function takes the program's config, a dictionary of arguments and, for `share`, a list of items. The arguments
    and items are sent to the other processes as JSON, so tuples become lists there.
    """
    _SHARED[function.__name__] = function
    return function


def run_shared(main: Callable[[], None], config: ConfigDict) -> None:
    """Connect the run's processes, and run `main` in the main process while the others work for it."""
    processes.start()
    if processes.is_main():
        try:
            main()
        finally:
            _post(_END)
    else:
        _follow(config)


def share(
    function: Callable[..., Iterator[Any]], config: ConfigDict, arguments: dict[str, Any], items: Sequence[Any]
) -> Iterator[Any]:
    """Yield the results of a `shared` function for all items, in any order.

    Process p of n works on the items p, p + n, p + 2n, … and sends each result as soon as it is ready.
    """
    count = jax.process_count()
    number = _post(dict(name=function.__name__, arguments=arguments, items=items))
    received = dict.fromkeys(range(1, count), 0)  # number of results from each process that still works
    for result in function(config, arguments, items[::count]):
        yield result
        yield from _received(number, received, wait=False)
    while received:
        yield from _received(number, received, wait=True)
    if count > 1:
        _delete(f'{number}')


def call_together(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Make the other processes call a `shared` function; the main process must then do the same work itself."""
    _post(dict(name=function.__name__, arguments=arguments))


def _follow(config: ConfigDict) -> None:
    """Do the work that the main process asks for, until the program ends.

    Raises:
      UserError: a function that `call_together` ran in every process failed here, but not in the main process.
    """
    index, failed = jax.process_index(), None
    for number in _numbers:
        message = _get(f'{number}', seconds=_PATIENCE if failed else None)
        if message is None:
            raise failed
        if message == _END:
            return
        function, failed = _SHARED[message['name']], None
        if 'items' not in message:
            try:
                function(config, message['arguments'])
            except UserError as error:  # every process has the same error, and the main process handles it
                failed = error
            continue
        mine, sent = message['items'][index :: jax.process_count()], 0
        for result in function(config, message['arguments'], mine):
            _put(f'{number}/{index}/{sent}', [result])
            sent += 1
        _put(f'{number}/{index}/{sent}', [])


def _received(number: int, received: dict[int, int], *, wait: bool) -> Iterator[Any]:
    """Yield the results of message `number` that have arrived; if `wait` is set, wait for all remaining results.

    Processes that have finished are removed from `received`.
    """
    for process in list(received):
        while result := _get(key := f'{number}/{process}/{received[process]}', seconds=None if wait else 0):
            _delete(key)
            received[process] += 1
            yield result[0]
        if result is not None:
            del received[process]


def _post(message: dict[str, Any]) -> int:
    """Send a message to the other processes, and return its number."""
    number = next(_numbers)
    if jax.process_count() > 1:
        _put(f'{number}', message)
    return number


def _put(key: str, value: Any) -> None:
    text = json.dumps(value)
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
    for part, content in enumerate(parts):
        global_state.client.key_value_set(f'crew/{key}/part/{part}', content)
    global_state.client.key_value_set(f'crew/{key}/parts', str(len(parts)))


def _delete(key: str) -> None:
    global_state.client.key_value_delete(f'crew/{key}')  # and all entries below it


def _get(key: str, *, seconds: float | None) -> Any:
    """Return the value of a key, or None if the key does not appear within `seconds` (None: no limit)."""
    waited = 0
    while True:
        try:
            parts = global_state.client.blocking_key_value_get(f'crew/{key}/parts', 1000 * _POLL if seconds != 0 else 1)
            break
        except jax.errors.JaxRuntimeError as error:
            if 'DEADLINE_EXCEEDED' not in str(error):
                raise
        waited += _POLL
        if seconds is not None and waited >= seconds:
            return None
    texts = (
        global_state.client.blocking_key_value_get(f'crew/{key}/part/{part}', 1000 * _PATIENCE)
        for part in range(int(parts))
    )
    return json.loads(''.join(texts))
