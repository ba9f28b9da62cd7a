"""Calculates, from the HLO text of a compiled program, how many bytes each chip sends to other chips in one run.

The body of a loop appears in the text once, but its bytes count once per iteration. A collective is assumed to run
in a ring of its N chips. For a result of R bytes, all-gather and all-to-all send R (N - 1) / N bytes, reduce-scatter
sends R (N - 1), all-reduce sends 2 R (N - 1) / N, and collective-permute sends R.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable

SENT: dict[str, Callable[[int, int], float]] = {
    'all-gather': lambda size, chips: size * (chips - 1) / chips,
    'all-reduce': lambda size, chips: 2 * size * (chips - 1) / chips,
    'reduce-scatter': lambda size, chips: size * (chips - 1),
    'all-to-all': lambda size, chips: size * (chips - 1) / chips,
    'collective-permute': lambda size, chips: size,
}
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4}
_BYTES |= {'s64': 8, 'u64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_SHAPE = re.compile(r'\b([a-z]+\d\w*|pred)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'= [su]32\[\]\S* constant\((\d+)\)')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(SENT)})(-start)?\(')


def collective_bytes(hlo: str) -> dict[str, float]:
    """Return the bytes that one chip sends in one run of a program, grouped by kind of collective.

    >>> collective_bytes('''
    ... %body (p: f32[8]) -> f32[8] {
    ...   %g = f32[8]{0} all-gather(%p), replica_groups={{0,1,2,3}}, dimensions={0}
    ... }
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %w = f32[8]{0} while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
    ... }''')
    {'all-gather': 72.0}

    Raises:
      ValueError: a loop, a type or a group of chips in the text has an unknown form.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ''
    for line in hlo.splitlines():
        if started := _COMPUTATION.match(line):
            name = started[1]
            entry = name if line.startswith('ENTRY') else entry
            computations[name] = []
        elif name:
            computations[name].append(line)

    @functools.cache
    def total(name: str) -> Counter:
        sent: Counter = Counter()
        for line in computations.get(name, ()):
            if operation := _OPERATION.search(line):
                shapes, kind, started = operation.groups()
                size = _result_bytes(shapes, kind if started else '')
                sent[kind] += SENT[kind](size, 1 if kind == 'collective-permute' else _chips(line))
            called = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                called += re.findall(r'[\w.\-]+', branches[1])
            below = sum((total(other) for other in called), Counter())
            if below:
                times = _trips(line, computations)
                sent.update({kind: times * size for kind, size in below.items()})
        return sent

    return dict(sorted(total(entry).items()))


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """Return how many times a line of HLO runs the computation that it calls.

    For a loop, this is the stated trip count or, if there is none, the only integer constant in the loop's condition.
    For any other line, it is 1.
    """
    if (loop := _WHILE.search(line)) is None:
        return 1
    if known := _TRIPS.search(line):
        return int(known[1])
    bounds = _CONSTANT.findall('\n'.join(computations.get(loop[1], ())))
    if len(bounds) != 1:
        raise ValueError(f'a loop with collectives has no known trip count: {line.strip()[:200]}')
    return int(bounds[0])


def _chips(line: str) -> int:
    """Return the number of chips in each replica group of a collective.

    The groups have the form {{0,1},{2,3}}, [groups,chips]<=[…] or mesh['a'=2,'b'=4] {'b'}.
    """
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return listed[1].count(',') + 1
    if tiled := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', line):
        return int(tiled[2])
    if named := re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    raise ValueError(f'the replica groups of a collective have an unknown form: {line.strip()[:200]}')


def _result_bytes(shapes: str, started: str) -> int:
    """Return the size of a collective's result in bytes.

    An asynchronous all-gather or collective-permute lists its operands before its result. These operands are not
    counted.

    Args:
      shapes: the part of the HLO line that states the result's types and shapes, such as 'f32[8]{0}'.
      started: the kind of collective if it is asynchronous, or ''.
    """
    sizes = []
    for dtype, dims in _SHAPE.findall(shapes):
        if dtype not in _BYTES:
            raise ValueError(f'a collective has the unknown type {dtype}')
        sizes.append(_BYTES[dtype] * math.prod(int(dim) for dim in dims.split(',') if dim))
    if started == 'collective-permute':  # (operand, result, and two counters on TPUs)
        return sizes[1]
    if started == 'all-gather':
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
