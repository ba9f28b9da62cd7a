"""What a compiled program sends between chips, read from its HLO text.

A loop's body stands in the text once; what it sends counts as often as the loop turns.
"""

import functools
import re
from collections import Counter

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4}
_BYTES |= {'s64': 8, 'u64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r'= [su]32\[\]\S* constant\((\d+)\)')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(-start)?\(')


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes of the results of collectives on one chip, by kind, over one run of the program.

    >>> collective_bytes('''
    ... %body (p: f32[8]) -> f32[8] {
    ...   %g = f32[8]{0} all-gather(%p), dimensions={0}
    ... }
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %w = f32[8]{0} while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
    ... }''')
    {'all-gather': 96}
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
                sent[operation[2]] += _result_bytes(operation[1], operation[3] == '-start')
            called = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                called += re.findall(r'[\w.\-]+', branches[1])
            times = _trips(line, computations)
            for other in called:
                sent.update({kind: times * size for kind, size in total(other).items()})
        return sent

    return dict(sorted(total(entry).items()))


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often what a line calls is run: a loop as often as it says, or as the one bound of its condition; else once.

    Loops whose bound is data, such as that over live blocks of attention, send nothing.
    """
    if (loop := _WHILE.search(line)) is None:
        return 1
    if known := _TRIPS.search(line):
        return int(known[1])
    bounds = _CONSTANT.findall('\n'.join(computations.get(loop[1], ())))
    return int(bounds[0]) if len(bounds) == 1 else 1


def _result_bytes(shapes: str, asynchronous: bool) -> int:
    """Bytes of a result; of an asynchronous start, which names operand and result, those of the larger."""
    sizes = []
    for dtype, dims in _SHAPE.findall(shapes):
        size = _BYTES.get(dtype, 0)
        for dim in filter(None, dims.split(',')):
            size *= int(dim)
        sizes.append(size)
    return max(sizes, default=0) if asynchronous else sum(sizes)
