"""Collects the MT-Bench runs of `launch/mt_bench.sh` into one results file, which the README quotes.

python tests/benchmarks/mt_bench.py
"""

import json
from pathlib import Path

from rlhi_jax.data.plan import make_plan
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.shards import Shards
from rlhi_jax.evaluation.conditions import views
from rlhi_jax.io.files import read_json, write_json
from rlhi_jax.tokenizers.template import ChatTemplate

RUNS = Path('runs/mt_bench')
RESULTS = Path(__file__).parent / 'results' / 'mt_bench.json'


def collect(run: Path) -> dict:
    """A run's newest evaluation, its training settings and its first and last training metrics."""
    evaluation = max((run / 'evaluation').glob('*.json'), key=lambda path: read_json(path, '')['step'])
    steps = [json.loads(line) for line in (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    evaluation = read_json(evaluation, '')
    config = read_json(run / 'run.json', '')['config']
    evaluation['longer_reply_accuracy'] = longer_reply_accuracy(run, config, evaluation)
    return {
        'settings': {name: config[name] for name in ('rows', 'train', 'optimizer', 'dpo', 'reward')},
        'training': {'pairs': int(sum(s['pairs'] for s in steps)), 'first': steps[0], 'last': steps[-1]},
        'evaluation': evaluation,
    }


def longer_reply_accuracy(run: Path, config: dict, evaluation: dict) -> float:
    """The accuracy on the same pairs of preferring the longer reply, which a model must exceed."""
    settings = dict(max_trees=evaluation['max_trees'], seed=evaluation['shuffle_seed'])
    by_condition = views(Shards(RUNS / 'validation'), **settings)
    template = ChatTemplate.load(run / 'tokenizer')
    capacities = Capacities(**config['rows'])
    kept = [set(make_plan(view, template, capacities).pair_names) for view in by_condition.values()]
    trees = by_condition['own']
    pairs = [(tree, pair) for tree in map(trees.__getitem__, range(len(trees))) for pair in tree.pairs]
    longer = [
        len(tree.messages[pair.chosen].content) > len(tree.messages[pair.rejected].content)
        for tree, pair in pairs
        if pair.id in set.intersection(*kept)
    ]
    return sum(longer) / len(longer)


if __name__ == '__main__':
    rows = read_json(RUNS / 'rows' / 'manifest.json', '')['counts']
    write_json(RESULTS, {'rows': rows, **{name: collect(RUNS / name) for name in ('reward', 'dpo')}})
    print(f'wrote {RESULTS}')
