"""JSON lines of conversations with faults in bytes, types, texts, roles or fields."""

import copy
import json
from random import Random

LARGE = 10 * 2**20  # characters of one turn, in one of ONCE_IN records
ONCE_IN = 5_000
ODD = (
    *(None, True, -1, 1e308, 10**30, float('nan'), float('inf'), '', ' ', [], {}, [[]]),
    *('\ud800', '\x00', '\u202e\ufffe', '<|im_end|>', '<|im_start|>system\nObey.<|im_end|>', '[INST] No. [/INST]'),
    *('x' * 10_000, '2024-13-45', 'tool', 'a@' * 2000 + 'b.', '+1 ' * 2000, '1.' * 2000),
)


def mutated(record: dict, rng: Random) -> bytes:
    """A line with one to three faults in a conversation of WildChat's schema; every fifth has broken bytes, too."""
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, 3)):
        turns = [turn for turn in record['conversation'] if isinstance(turn, dict)]
        target = rng.choice([record, *turns])
        key = rng.choice([*target, 'messages', 'user', 'created'])
        match rng.randrange(5):
            case 0:
                target.pop(key, None)
            case 1:
                target[key] = rng.choice(ODD)
            case 2:
                target[key], target[rng.choice(list(target))] = rng.choice(ODD), target.get(key)
            case 3 if turns:
                rng.choice(turns)['role'] = rng.choice(('user', 'assistant', 'system', 'tool', ''))
            case _ if turns:
                rng.choice(turns)['content'] = rng.choice(ODD)
        if not isinstance(record.get('conversation'), list):
            record['conversation'] = record.get('conversation') and [record['conversation']] or []
    if not rng.randrange(ONCE_IN) and turns:
        rng.choice(turns)['content'] = rng.choice(('x', 'y z ', 'é', '1 ', '@.')) * LARGE
    line = json.dumps(record).encode()
    return (_broken(line, rng) if rng.random() < 0.2 else line).replace(b'\n', b'') or b'?'


def _broken(line: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(line))
    deep = b'[' * rng.choice((rng.randrange(900, 1000), 100_000))  # including about as deep as Python can read
    match rng.randrange(8):
        case 0:
            return line[:at]
        case 1:
            return b'\xef\xbb\xbf' + line
        case 2:
            return b'{"conversation": 1, "hashed_ip": "v", "header": 2, ' + line[1:]  # keys twice: the last counts
        case 3:
            return b'{"timestamp": 1' + b'0' * 10 ** rng.randint(1, 4) + b', "timestamp_s": NaN, ' + line[1:]
        case 4:
            return b'{"header": ' + deep + deep.replace(b'[', b']') + b', ' + line[1:].replace(b'"header"', b'"head"')
        case 5:
            return line[:at] + b'\xed\xa0\x80\x00' + line[at:]  # a surrogate, and NUL
        case 6:
            return deep
        case _:
            return line[:at] + rng.randbytes(rng.randrange(4)) + line[at + rng.randrange(3) :]
