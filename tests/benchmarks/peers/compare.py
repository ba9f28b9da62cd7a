"""Our DPO and reward training against TRL's: the same pairs, one process each, in turn, on this machine.

python tests/benchmarks/peers/compare.py --votes=votes.jsonl --conversations=conversations.jsonl

Three sets, the first by hash and not chosen: 64 MT-Bench votes that fit 1,024 tokens (DPO, and reward training), and 16
pairs of WildChat conversations of at most 4,096 tokens, in which the logged reply is rejected in favour of the model's
next one, a stand-in for a rewrite. Measures speed and peak memory, and checks that the work is the same: scores of
replies, gradients, losses. TRL runs four pairs at once without recomputing activations, which is its fastest way;
whole conversations it takes one pair at a time, or two. Writes `results/peers.json`, and every measurement to
`results/peers/`: what was measured of the same code is not measured again.

With --lora, only DPO on the votes is compared, with adapters of rank 16 on every matrix of a layer on both sides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from next_reply import pairs_by_conversation

from data_pipelines.preferences.layouts import parse_preferences
from data_pipelines.sources.mt_bench import preferences, read_votes
from rlhi_jax.config import base_config
from rlhi_jax.convert import export_model
from rlhi_jax.data.encode import Piece, TreeEncoder
from rlhi_jax.data.grow import grow_trees
from rlhi_jax.data.shards import write_shards
from rlhi_jax.data.tree import BadRecord, Interaction
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, new_folder, read_json, write_json
from rlhi_jax.models.checkpoints import describe_model, open_model, params_digest, save_params
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.training.model import make_decoder

HERE, RUNS, ENVIRONMENT = Path(__file__).parent, Path('runs/peers'), Path('.cache/peers/trl')
RESULTS = HERE.parent / 'results'
PEER = (
    *('trl==1.16.0', 'datasets==5.2.0', 'torch==2.13.0', 'transformers==5.23.0', 'accelerate==1.15.0', 'peft==0.21.2'),
    'pyarrow==24.0.0',  # the types of pyarrow 26 cannot be pickled
)
MODEL = 'runs/smollm2'
FREE_GIB = 20  # what TRL takes in float32


def vote_trees(path: Path, template: ChatTemplate, *, pairs: int, longest: int) -> list[Interaction]:
    """The first votes on a first turn, by hash of their id, both of whose sequences fit."""
    train, validation = preferences(read_votes(path, Counter()), folds=5, fold=0)
    first_turns = [vote for vote in train + validation if len(vote['chosen']) == 1]
    trees: list[Interaction] = []
    for vote in sorted(first_turns, key=lambda vote: digest(vote['id'])):
        try:
            (tree,) = grow_trees(parse_preferences(vote, vote['id'], Counter()))
        except BadRecord:
            continue
        if max(len(whole) for record in in_tokens(tree, template) for whole in wholes(record)) <= longest:
            trees.append(tree)
        if len(trees) == pairs:
            return trees
    raise ValueError(f'only {len(trees)} votes fit {longest} tokens')


def conversation_trees(path: Path, template: ChatTemplate, *, pairs: int, longest: int) -> list[Interaction]:
    """Whole conversations of two pairs or more, by hash of their id."""
    trees: list[Interaction] = []
    for _, lines in sorted(pairs_by_conversation(path).items(), key=lambda item: digest(item[0])):
        if len(lines) < 2:
            continue
        left = pairs - sum(len(tree.pairs) for tree in trees)
        try:
            parsed = [each for line in lines[:left] for each in parse_preferences(line, line['id'], Counter())]
        except BadRecord:
            continue
        (tree,) = grow_trees(parsed)
        if sum(len(node.ids) for node in encoded(tree, template).nodes) <= longest:
            trees.append(tree)
        if sum(len(tree.pairs) for tree in trees) == pairs:
            return trees
    raise ValueError(f'too few conversations fit {longest} tokens')


def encoded(tree: Interaction, template: ChatTemplate):
    return TreeEncoder(tree, template).encode(Piece(0, tuple(range(len(tree.pairs)))))


def in_tokens(tree: Interaction, template: ChatTemplate) -> list[dict[str, list[int]]]:
    """Each pair as one sequence a reply, as TRL takes it; what we do not score after a reply is left out for DPO."""
    tokens = encoded(tree, template)

    def side(reply: int) -> tuple[list[int], list[int], list[int]]:
        (node,) = tokens.replies[reply]
        last, above, prompt = tokens.nodes[node], tokens.nodes[node].parent, []
        while above >= 0:
            prompt = [*tokens.nodes[above].ids, *prompt]
            above = tokens.nodes[above].parent
        return prompt, list(last.ids[: last.scored]), [*prompt, *last.ids]

    records = []
    for chosen, rejected, *_ in tokens.pairs:
        (prompt, chosen_ids, whole_chosen), (_, rejected_ids, whole_rejected) = side(chosen), side(rejected)
        records.append(dict(prompt_ids=prompt, chosen_ids=chosen_ids, rejected_ids=rejected_ids,
                            whole_chosen_ids=whole_chosen, whole_rejected_ids=whole_rejected))  # fmt: skip
    return records


def wholes(record: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    return record['whole_chosen_ids'], record['whole_rejected_ids']


def prepare(name: str, trees: list[Interaction], template: ChatTemplate) -> None:
    folder = RUNS / name
    with new_folder(folder / 'shards', overwrite=True) as shards:
        write_shards(trees, shards, trees_per_shard=1000, manifest={})
    write_json(folder / 'pairs.json', [record for tree in trees for record in in_tokens(tree, template)])


def models() -> None:
    """The policy, and a reward model with a fresh head, in our format and as Hugging Face folders."""
    config = base_config()
    config.objective, config.model.new_head, config.model.path = 'reward', True, MODEL
    policy, reward = open_model(MODEL), RUNS / 'reward'
    if not reward.exists():
        decoder, mesh = make_decoder(config, policy), make_mesh(config.mesh.to_dict())
        params = load_params(decoder, policy, mesh, seed=0)
        with new_folder(reward) as folder:
            save_params(folder / 'params', params)
            described = dict(weights=params_digest(params), tokens=policy.tokens, source='a fresh head')
            describe_model(folder, decoder.spec, **described, tokenizer=policy.tokenizer_path)
    for source, to in ((Path(MODEL), RUNS / 'policy_hf'), (reward, RUNS / 'reward_hf')):
        if not to.exists():
            export_model(source, to, step=None, dtype='float32')


def environment() -> Path:
    """TRL's own Python."""
    python = ENVIRONMENT / 'bin' / 'python'
    if not python.exists():
        subprocess.run([sys.executable, '-m', 'venv', ENVIRONMENT], check=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *PEER], check=True)
    return python


def measure(name: str, python: Path, script: str, *flags: str) -> Path:
    """Run a measurement in its own process, unless this machine has made it with the same code, flags and pairs."""
    processors = Path('/proc/cpuinfo').read_text().splitlines()
    machine = [line for line in processors if line.startswith(('cpu family', 'model'))]
    code = sorted(Path('rlhi_jax').rglob('*.py')) if script == 'ours.py' else []
    pairs = sorted(RUNS.glob('*/pairs.json'))
    made_of = digest(machine, flags, [file_digest(path) for path in (HERE / script, *code, *pairs)])
    checks = any(flag.startswith('--check=') for flag in flags)  # what these compare is too large to keep
    written = RUNS / 'measured' / f'{name}.json'
    to = written if checks else RESULTS / 'peers' / f'{name}.json'
    if not to.exists() or read_json(to, '').get('made_of') != made_of:
        lines = Path('/proc/meminfo').read_text().splitlines()
        free = int(next(line for line in lines if line.startswith('MemAvailable')).split()[1]) / 2**20
        if free < FREE_GIB:
            raise UserError(
                f'only {free:.1f} GiB of memory are free, and the peer needs {FREE_GIB}: stop other programs'
            )
        written.parent.mkdir(parents=True, exist_ok=True)
        print(f'{name} …', flush=True)
        env = os.environ | dict(HF_HUB_OFFLINE='1', TOKENIZERS_PARALLELISM='false', JAX_PLATFORMS='cpu')
        subprocess.run([python, HERE / script, *flags, f'--to={written}'], check=True, env=env)
        write_json(to, read_json(written, '') | {'made_of': made_of})
    return to


def rates(result: dict, *, reference: bool) -> list[float]:
    """Pairs a second of every step; what is compiled was compiled before."""
    more = result.get('reference_seconds') if reference else None
    seconds = [a + b for a, b in zip(result['seconds'], more, strict=True)] if more else result['seconds']
    return [pairs / second for pairs, second in zip(result['pairs'], seconds, strict=True)]


def _total_rate(result: dict) -> float:
    return sum(result['pairs']) / sum(result['seconds'])


def ratio(mine: Path, peers: Path, *, reference: bool = True) -> dict:
    """How many times as fast and as large we are: of all pairs by all seconds, and of medians over steps."""
    ours, theirs = read_json(mine, ''), read_json(peers, '')
    our_rates, their_rates = rates(ours, reference=reference), rates(theirs, reference=False)
    spread = {
        name: dict(median=statistics.median(values), min=min(values), max=max(values))
        for name, values in (('ours', our_rates), ('peer', their_rates))
    }
    more = sum(ours['reference_seconds']) * reference
    total = sum(ours['pairs']) / (sum(ours['seconds']) + more)
    return dict(
        pairs_per_second=spread,
        speed=total / _total_rate(theirs),
        speed_of_medians=spread['ours']['median'] / spread['peer']['median'],
        peak_gib=dict(ours=ours['peak_gib'], peer=theirs['peak_gib']),
        memory=ours['peak_gib'] / theirs['peak_gib'],
    )


def same_work(ours: Path, theirs: Path, replies: list[int]) -> dict:
    """The largest differences: of a reply's score per token, of a gradient tensor, of a step's loss.

    The token that ends a turn also pads, and torch gives the embedding of a padding token no gradient: it is left out.
    """
    mine, peers = read_json(ours, ''), read_json(theirs, '')
    grads = [dict(np.load(f'{path}.npz')) for path in (ours, theirs)]
    if set(grads[0]) != set(grads[1]):
        raise ValueError(f'gradients of other tensors: {set(grads[0]) ^ set(grads[1])}')
    padding = read_json(RUNS / 'policy_hf' / 'config.json', '')['pad_token_id']
    for part in grads:
        part['model.embed_tokens.weight'][padding] = 0
    distance = [np.linalg.norm(grads[0][n] - grads[1][n]) / np.linalg.norm(grads[1][n]) for n in grads[0]]
    scores = [abs(a - b) / n for a, b, n in zip(mine['scores'], peers['scores'], replies, strict=True)]
    losses = [abs(a - b) for a, b in zip(mine['losses'], peers['losses'], strict=True)]
    return dict(
        score_per_token=max(scores),
        gradient_relative_l2=float(max(distance)),
        loss=max(losses),
        losses=dict(ours=mine['losses'], peer=peers['losses']),
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--votes', required=True, type=Path)
    parser.add_argument('--conversations', type=Path, help='Needed unless --lora is given.')
    parser.add_argument('--lora', action='store_true', help='Compare only training with adapters.')
    parser.add_argument('--count', type=int, default=64, help='How many votes.')
    args = parser.parse_args()
    template = ChatTemplate.load(open_model(MODEL).tokenizer_path)
    models()
    prepare('votes', vote_trees(args.votes, template, pairs=args.count, longest=1024), template)
    trl, here = environment(), Path(sys.executable)

    def ours(name: str, *flags: str) -> Path:
        return measure(f'{name}_ours', here, 'ours.py', *flags)

    def peer(name: str, *flags: str) -> Path:
        return measure(f'{name}_trl', trl, 'trl_peer.py', *flags)

    if args.lora:
        tasks = {'lora': lambda: compare_lora(ours, peer)}
    else:
        conversations = conversation_trees(args.conversations, template, pairs=16, longest=4096)
        prepare('conversations', conversations, template)
        tasks = {
            'dpo': lambda: compare_dpo(ours, peer),
            'reward': lambda: compare_reward(ours, peer),
            'conversations': lambda: compare_conversations(ours, peer, of_first_tree=len(conversations[0].pairs)),
        }
    results = read_json(RESULTS / 'peers.json', '') if (RESULTS / 'peers.json').exists() else {}
    for name, compared in tasks.items():
        results[name] = compared()
        write_json(RESULTS / 'peers.json', results)
        print(json.dumps({name: results[name]}, indent=1), flush=True)


Measure = Callable[..., Path]  # runs a measurement by its name and flags
ROWS = ('--tokens=2304', '--scored=1792', '--pairs=8', '--rows=1')


def of(task: str, pairs: str, *, model: str) -> tuple[list[str], list[str]]:
    """Flags of our program and of the peer's for a task on a set of pairs."""
    folder, mine, theirs = RUNS / pairs, MODEL if model == 'policy' else RUNS / model, RUNS / f'{model}_hf'
    return (
        [f'--task={task}', f'--model={mine}', f'--shards={folder / "shards"}'],
        [f'--task={task}', f'--model={theirs}', f'--pairs={folder / "pairs.json"}', '--dtype=float32'],
    )


def first_lengths(pairs: str, count: int) -> list[int]:
    """Scored tokens of the replies of the first pairs, chosen ones first."""
    first = read_json(RUNS / pairs / 'pairs.json', '')[:count]
    return [len(record[f'{side}_ids']) for side in ('chosen', 'rejected') for record in first]


def compare_dpo(ours: Measure, peer: Measure) -> dict:
    mine, theirs = of('dpo', 'votes', model='policy')
    mine, four = [*mine, *ROWS], '--batch=4'
    checks = ours('dpo_check', *mine, '--check=4'), peer('dpo_check', *theirs, four, '--check=5')
    fast, half = ours('dpo', *mine), ours('dpo_bfloat16', *mine, '--dtype=bfloat16')
    their_half = peer('dpo_bfloat16', *theirs, four, '--dtype=bfloat16')
    precomputed = peer('dpo_precomputed', *theirs, four, '--precompute')
    return dict(
        same_work=same_work(*checks, first_lengths('votes', 4)),
        float32_against_float32=ratio(fast, peer('dpo', *theirs, four)),
        float32_against_bfloat16=ratio(fast, their_half),
        bfloat16_against_bfloat16=ratio(half, their_half),
        float32_both_precomputed=ratio(fast, precomputed, reference=False),
        utilisation=utilisation(fast),
    )


def compare_lora(ours: Measure, peer: Measure) -> dict:
    """DPO with adapters. At step 0, both compute the base, so the replies' scores must agree."""
    mine, theirs = of('dpo', 'votes', model='policy')
    mine, theirs = [*mine, *ROWS, '--lora=16'], [*theirs, '--batch=4', '--lora=16']
    checks = [ours('lora_check', *mine, '--check=4', '--steps=1'), peer('lora_check', *theirs, '--check=1')]
    scores = zip(*(read_json(path, '')['scores'] for path in checks), first_lengths('votes', 4), strict=True)
    fast = ours('lora', *mine)
    return dict(
        score_per_token=max(abs(a - b) / length for a, b, length in scores),
        float32_against_float32=ratio(fast, peer('lora', *theirs)),
        float32_against_bfloat16=ratio(fast, peer('lora_bfloat16', *theirs, '--dtype=bfloat16')),
        utilisation=utilisation(fast),
    )


def compare_reward(ours: Measure, peer: Measure) -> dict:
    mine, theirs = of('reward', 'votes', model='reward')
    mine, four = [*mine, *ROWS], '--batch=4'
    checks = ours('reward_check', *mine, '--check=4'), peer('reward_check', *theirs, four, '--check=5')
    fast = ours('reward', *mine)
    return dict(
        same_work=same_work(*checks, [1] * 8),  # a reply has one score, however long it is
        float32_against_float32=ratio(fast, peer('reward', *theirs, four)),
        utilisation=utilisation(fast),
    )


def compare_conversations(ours: Measure, peer: Measure, *, of_first_tree: int) -> dict:
    mine, theirs = of('dpo', 'conversations', model='policy')
    mine = [*mine, '--tokens=4096', '--scored=4096', '--pairs=16', '--rows=1']
    singly = ('--batch=1', f'--accumulate={of_first_tree}')
    checks = (
        ours('conversations_check', *mine, '--check=1', '--steps=1'),
        peer('conversations_check', *theirs, *singly, '--check=1'),
    )
    fast = ours('conversations', *mine)
    return dict(
        same_work=same_work(*checks, first_lengths('conversations', of_first_tree)),
        float32_against_float32=ratio(fast, peer('conversations', *theirs, '--batch=2')),
        float32_against_one_at_a_time=ratio(fast, peer('conversations_singly', *theirs, '--batch=1')),
        utilisation=utilisation(fast),
    )


def utilisation(measured: Path) -> dict:
    """Model FLOPs of train steps a second, as a share of what this machine multiplies at; what is computed again."""
    result = read_json(measured, '')
    model = sum(sum(v for k, v in step.items() if k != 'repeated') for step in result['flops'])
    repeated = sum(step['repeated'] for step in result['flops'])
    rate = model / sum(result['seconds']) / 1e9
    return dict(
        gflops_per_second=rate,
        peak_gflops_per_second=result['matmul_gflops'],
        model_flop_utilisation=rate / result['matmul_gflops'],
        repeated=repeated / (model + repeated),
    )


if __name__ == '__main__':
    main()
