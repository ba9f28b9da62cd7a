"""What a compiled program sends between chips, read from its HLO text.

A loop's body stands in the text once; what it sends counts as often as the loop turns.
"""

import re
from collections import Counter, defaultdict

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'f32': 4}
_BYTES |= {'s64': 8, 'u64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(')


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes of the results of collectives on one chip, by kind, over one run of the program.

    >>> collective_bytes('''
    ... %body (p: f32[8]) -> f32[8] {
    ...   %g = f32[8]{0} all-gather(%p), dimensions={0}
    ... }
    ... ENTRY %main (x: f32[8]) -> f32[8] {
    ...   %w = f32[8]{0} while(%x), body=%body, backend_config={"known_trip_count":{"n":"3"}}
    ... }''')
    {'all-gather': 96}
    """
    own: dict[str, Counter] = defaultdict(Counter)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    entry = name = ''
    for line in hlo.splitlines():
        if started := _COMPUTATION.match(line):
            name = started[1]
            entry = name if line.startswith('ENTRY') else entry
            continue
        if operation := _OPERATION.search(line):
            own[name][operation[2]] += _result_bytes(operation[1])
        trips = int(found[1]) if (found := _TRIPS.search(line)) else 1
        called = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            called += re.findall(r'[\w.\-]+', branches[1])
        calls[name] += [(other, trips) for other in called]

    totals: dict[str, Counter] = {}

    def total(name: str) -> Counter:
        if name not in totals:
            totals[name] = Counter(own[name])
            for other, times in calls[name]:
                totals[name].update({kind: times * size for kind, size in total(other).items()})
        return totals[name]

    return dict(sorted(total(entry).items()))


def _result_bytes(shapes: str) -> int:
    """Bytes of a result; of an asynchronous start, whose result holds its operand too, the larger of the two."""
    sizes = []
    for dtype, dims in _SHAPE.findall(shapes):
        size = _BYTES.get(dtype, 0)
        for dim in filter(None, dims.split(',')):
            size *= int(dim)
        sizes.append(size)
    return max(sizes, default=0)
