"""How much faster are the candidates of a prompt scored in one tree than in a row each?

    python tests/benchmarks/candidates.py --config=configs/evidence.py --config.model.path=runs/evidence/reward/run

The reward model scores eight candidates of 32 words after a request of about 600 tokens. Both ways use the same scorer,
with rows just long enough; the second gives each candidate a row of its own. The two are timed in turn. The first
round, which compiles, is left out. Writes the ratio to `results/candidates.json`.
"""

import statistics
import time
from pathlib import Path

import numpy as np
from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, run, start
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.files import write_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.tokenizers import load_tokenizer

RESULTS = Path(__file__).parent / 'results' / 'candidates.json'
WORDS_BEFORE, COUNT, ROUNDS, PROMPTS = 570, 8, 5, 2
MARKUP = 48  # an upper bound for the tokens of the template and the persona
WORDS = [
    'the',
    'river',
    'bank',
    'holds',
    'water',
    'and',
    'stones',
    'while',
    'birds',
    'sing',
    'above',
    'green',
    'fields',
]


def blocks(tokens: int) -> int:
    """Round up to whole blocks of attention."""
    return -(-tokens // 128) * 128


def main() -> None:
    config = load_config(flags.FLAGS.config)
    config.eval.batch_rows = 1
    rng, tokenizer = np.random.default_rng(0), load_tokenizer(open_model(config.model.path).tokenizer_path)

    def text(words: int) -> str:
        return ' '.join(rng.choice(WORDS, words))

    def length(texts: list[str]) -> int:
        return max(len(tokenizer.encode(each)) for each in texts)

    together = [
        Candidates(
            f'{n}', [dict(role='user', content=text(WORDS_BEFORE))], 'I like birds.', [text(32) for _ in range(COUNT)]
        )
        for n in range(PROMPTS)
    ]
    apart = [
        prompt._replace(id=f'{prompt.id}/{n}', replies=[reply])
        for prompt in together
        for n, reply in enumerate(prompt.replies)
    ]
    prefix = length([prompt.messages[0]['content'] for prompt in together])
    reply = length([reply for prompt in together for reply in prompt.replies])
    ways = {
        'tree': (together, Capacities(blocks(prefix + COUNT * (reply + MARKUP)), scored=512, pairs=COUNT)),
        'rows': (apart, Capacities(blocks(prefix + reply + MARKUP), scored=128, pairs=1)),
    }
    scorers = {
        name: CandidateScorer(config, config.model.path, capacities, sees_persona=True)
        for name, (_, capacities) in ways.items()
    }
    seconds: dict[str, list[float]] = dict(tree=[], rows=[])
    for _ in range(ROUNDS + 1):
        for name, (items, _) in ways.items():
            begin = time.monotonic()
            scores = scorers[name](items)
            seconds[name].append(time.monotonic() - begin)
            flat = [score for of in scores.values() for score in of]
            assert None not in flat and len(flat) == PROMPTS * COUNT
    ratios = [rows / tree for tree, rows in zip(seconds['tree'][1:], seconds['rows'][1:], strict=True)]
    result = dict(
        prefix_tokens=prefix,
        reply_tokens=reply,
        candidates=COUNT,
        ratio=statistics.median(ratios),
        ratios=ratios,
        seconds={name: statistics.median(each[1:]) for name, each in seconds.items()},
    )
    write_json(RESULTS, result)
    print(result)


if __name__ == '__main__':
    define_config_flag()
    start()
    run(main)
