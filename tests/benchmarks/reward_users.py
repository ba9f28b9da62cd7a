"""Does a reward model know who is asking? Counterfactual pairs and counterbalanced tests with simulated users.

    python tests/benchmarks/reward_users.py strangers --config=configs/evidence.py --workdir=DIR
    python tests/benchmarks/reward_users.py arms --config=configs/evidence.py --workdir=DIR
    python tests/benchmarks/reward_users.py pairs --config=configs/evidence.py --workdir=DIR
    python tests/benchmarks/reward_users.py evaluate --config=configs/evidence.py --workdir=DIR --name=N --model=MODEL

`launch/evidence.sh` runs these commands. The stages in DIR must be finished. Each command adds its figures to
`results/reward_users.json`.

- strangers: how often the checkers agree with the pairs of the stage `strangers`, of training users, as the smallest
  contrast grows. A pair is right if only its chosen reply satisfies the side of the taste that the complaint named, and
  wrong if only its rejected reply does. Choose `config.strangers.min_contrast` from this table.
- arms: other training pairs from the same replies, to compare with. `original.jsonl` prefers the answer to a complaint
  over the reply that the user complained about. `checkers.jsonl` has the counterfactual pairs as the checkers judge
  them: two training users who rank the two replies of a request in opposite orders each give a pair. Nothing else may
  use these, because no real user has a checker.
- pairs: counterbalanced pairs of test users. The teacher answers each request under both sides of two tastes. Two
  users whose personas the stage `personas` inferred, and who rank two valid replies in opposite orders, each give a
  pair. Without the persona, nothing can tell which is chosen. Pairs that a held-out taste decides are in a file of
  their own, and so are pairs in which a persona cannot help, because it has no claim from a complaint about a taste
  that decides (`untold.jsonl`). A fourth file has up to 40 pairs of each user, for rewards that do not read personas.
- evaluate: accuracy and calibration of a model on the first three files, under several personas. With
  `--rewards=DIR`, those of the user rewards in DIR; rewards that do not read personas are evaluated on the fourth file.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.core.inputs import input_folder, read_records
from data_pipelines.core.record_files import stream_records, write_records
from data_pipelines.core.records import PromptRecord, SimulatedUser, StrangerRecord
from data_pipelines.core.stage import Task
from data_pipelines.core.turns import turn_of
from data_pipelines.persona.store import CLAIMS, user_personas
from data_pipelines.simulator.files import load_prompts, load_users, request_of
from data_pipelines.simulator.requests import Request
from data_pipelines.simulator.tastes import NAMED_BY, TASTES, satisfaction, valid
from data_pipelines.simulator.users import hashed, held_out_tastes
from data_pipelines.teacher.generation import generate, model_identity
from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run, start
from rlhi_jax.config import teacher_path
from rlhi_jax.config.loop_paths import stage_config
from rlhi_jax.evaluate import evaluate_reward
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.io.files import digest, read_json, write_json
from rlhi_jax.sampling.generator import Prompt, Reply
from rlhi_jax.user_rewards import evaluate_rewards

PER_USER = 40  # pairs of a user in by_user.jsonl
RESULTS = Path(__file__).parent / 'results' / 'reward_users.json'
READ = ('counterbalanced', 'held_out', 'untold')  # files of pairs for models that read personas
CONTRASTS = (0, 5, 10, 15, 20, 30, 40)  # nats


class Pair(NamedTuple):
    """A chosen and a rejected answer, by the wish of a complaint about a taste."""

    user: str
    contrast: float
    taste: str
    right: bool
    wrong: bool


def stranger_pairs(config: ConfigDict) -> Iterator[Pair]:
    """Yield both pairs of each request that training users made and that was answered under two complaints."""
    for record in read_records(config, 'strangers'):
        if record['split'] != 'train':
            continue
        for number, wish in enumerate(record['wishes']):
            if wish['feedback'] in NAMED_BY:
                taste, side = NAMED_BY[wish['feedback']]
                check = TASTES[taste][side].check
                chosen, rejected = check(record['replies'][number]), check(record['replies'][1 - number])
                right, wrong = chosen and not rejected, rejected and not chosen
                yield Pair(record['user_id'], sum(record['leans']), taste, right, wrong)


def strangers(config: ConfigDict) -> dict[str, Any]:
    """Return the shares of right and wrong pairs at several contrasts, and by taste."""
    pairs = list(stranger_pairs(config))

    def figures(chosen: Sequence[Pair]) -> dict[str, Any]:
        users = {str(number): pair.user for number, pair in enumerate(chosen)}
        shares = {
            verdict: interval({str(n): float(getattr(pair, verdict)) for n, pair in enumerate(chosen)}, users)
            for verdict in ('right', 'wrong')
        }
        return dict(pairs=len(chosen), **shares)

    by_contrast = {str(least): [pair for pair in pairs if pair.contrast >= least] for least in CONTRASTS}
    by_taste = {taste: [pair for pair in pairs if pair.taste == taste] for taste in TASTES}
    return dict(
        by_contrast={least: figures(chosen) for least, chosen in by_contrast.items() if chosen},
        by_taste={taste: figures(chosen) for taste, chosen in by_taste.items() if chosen},
    )


def arms(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Write the training pairs of two other arms to a folder, and return their numbers."""
    users, personas, told = load_users(config), user_personas(config), tastes_told(config)
    complained_of = {turn['id']: turn['reply'] for turn in read_records(config, 'follow_ups')}
    judges = [user for name, user in sorted(users.items()) if user['split'] == 'train' and personas.get(name)]
    files: dict[str, list[dict[str, Any]]] = dict(original=[], checkers=[])
    for record in read_records(config, 'strangers'):
        if record['split'] != 'train':
            continue
        wish, author = record['wishes'][0], users[record['user_id']]
        better = Verdict(author, record['replies'][0], complained_of[turn_of(record['id'])])
        files['original'].append(preference(record, better, {record['user_id']: wish['persona']}))
        replies = [Reply(record['id'], number, text, True) for number, text in enumerate(record['replies'])]
        verdicts = disagreement(record, replies, judges, told) or ()
        files['checkers'] += [preference(record, verdict, personas) for verdict in verdicts]
    for name, records in files.items():
        write_records(folder / f'{name}.jsonl', records)
    return {name: len(records) for name, records in files.items()}


def answers(config: ConfigDict, folder: Path, prompts: Sequence[PromptRecord]) -> dict[str, list[Reply]]:
    """Return the teacher's answers to each prompt, one under each side of two tastes, keyed by prompt id."""
    task = Task(config, folder, dict(teacher=model_identity(config, teacher_path(config)), seed=config.seed), 'replies')
    asked = {
        prompt['id']: [
            Prompt(f'{name} {prompt["id"]}', (('user', f'{request_of(prompt).text} {side.instruction}'),))
            for taste in tastes_asked(prompt)
            for name, side in TASTES[taste].items()
        ]
        for prompt in prompts
    }
    drawn = generate(task, teacher_path(config), list(itertools.chain.from_iterable(asked.values())))
    task.close()
    return {name: [reply for each in of_prompt for reply in drawn[each.id]] for name, of_prompt in asked.items()}


def tastes_asked(prompt: PromptRecord) -> list[str]:
    """Return two tastes, drawn by hash."""
    return sorted(TASTES, key=lambda taste: digest('asked', taste, prompt['id']))[:2]


class Verdict(NamedTuple):
    """A user prefers one reply to another."""

    user: SimulatedUser
    better: str
    worse: str

    @property
    def deciding(self) -> list[str]:
        """The user's tastes that the better reply satisfies and the worse reply does not."""
        checks = {taste: TASTES[taste][side].check for taste, side in self.user['tastes'].items()}
        return [taste for taste, check in checks.items() if check(self.better) and not check(self.worse)]


def tastes_told(config: ConfigDict) -> dict[str, set[str]]:
    """Return the tastes that each user named in complaints from which a claim was made, keyed by user id."""
    told: dict[str, set[str]] = defaultdict(set)
    feedback = {turn['id']: turn['follow_up'] for turn in read_records(config, 'follow_ups')}
    for claim in stream_records(input_folder(config, 'personas') / CLAIMS):
        if named := NAMED_BY.get(feedback[claim['id']]):
            told[claim['user_id']].add(named[0])
    return told


def is_told(verdict: Verdict, told: dict[str, set[str]]) -> bool:
    """Whether a taste that decides a verdict is among those that its user told."""
    return bool(told.get(hashed(verdict.user['id']), set()) & set(verdict.deciding))


def disagreement(
    prompt: PromptRecord | StrangerRecord,
    replies: Sequence[Reply],
    judges: Sequence[SimulatedUser],
    told: dict[str, set[str]],
) -> tuple[Verdict, Verdict] | None:
    """Return the verdicts of two users who rank two replies in opposite orders, or None.

    Verdicts that a told taste decides come first. Hashes decide the rest.
    """

    def drawn(*values: str) -> str:
        return digest('drawn', prompt['id'], *values)

    request = request_of(prompt)
    pairs = itertools.combinations([reply for reply in replies if usable(reply, request)], 2)
    pairs = sorted(pairs, key=lambda pair: drawn(pair[0].text, pair[1].text))
    judges = sorted(judges, key=lambda user: drawn(user['id']))
    found: list[tuple[Verdict, Verdict]] = []
    for first, second in pairs:
        verdicts: dict[bool, list[Verdict]] = {True: [], False: []}
        for user in judges:
            likes = [satisfaction(reply.text, request, reply.finished, user['tastes']) for reply in (first, second)]
            if likes[0] != likes[1]:
                better, worse = (first, second) if likes[0] > likes[1] else (second, first)
                verdicts[better is first].append(Verdict(user, better.text, worse.text))
        if all(verdicts.values()):
            one, other = (max(of_order, key=lambda v: is_told(v, told)) for of_order in verdicts.values())
            found.append((one, other))
    return max(found, key=lambda both: sum(is_told(verdict, told) for verdict in both), default=None)


def verdicts_of(
    user: SimulatedUser, prompts: Sequence[PromptRecord], drawn: dict[str, list[Reply]]
) -> list[tuple[PromptRecord, Verdict]]:
    """Return up to PER_USER verdicts of a user, at most one for each prompt; hashes decide which."""
    verdicts = []
    for prompt in sorted(prompts, key=lambda prompt: digest('verdict', user['id'], prompt['id'])):
        request = request_of(prompt)
        replies = sorted(drawn[prompt['id']], key=lambda reply: digest('verdict', user['id'], reply.text))
        likes = {r.text: satisfaction(r.text, request, True, user['tastes']) for r in replies if usable(r, request)}
        better = next((a for a in likes for b in likes if likes[a] > likes[b]), None)
        if better is not None:
            worse = next(text for text in likes if likes[text] < likes[better])
            verdicts.append((prompt, Verdict(user, better, worse)))
    return verdicts[:PER_USER]


def usable(reply: Reply, request: Request) -> bool:
    return valid(reply.text, request, reply.finished)


def preference(prompt: PromptRecord | StrangerRecord, verdict: Verdict, personas: dict[str, str]) -> dict[str, Any]:
    """Return a record of the preference format."""
    user_id = hashed(verdict.user['id'])
    record = dict(id=f'{prompt["id"]} {user_id}', user_id=user_id, persona=personas.get(user_id, ''))
    record |= dict(prompt=prompt['messages'], kind=' and '.join(verdict.deciding))
    for side, text in dict(chosen=verdict.better, rejected=verdict.worse).items():
        record[side] = [dict(role='assistant', content=text)]
    return record


def counterbalanced(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Write pairs of verdicts of test users to two files in a folder, and return counts."""
    users, personas = load_users(config), user_personas(config)
    testers = {name: user for name, user in users.items() if user['split'] == 'test'}
    judges = [testers[name] for name in sorted(testers) if personas.get(name)]
    prompts = load_prompts(config, 'test')
    prompts = sorted(prompts, key=lambda prompt: digest('prompt', prompt['id']))[: flags.FLAGS.most]
    drawn, held_out, told = answers(config, folder, prompts), set(held_out_tastes(config)), tastes_told(config)
    counts = Counter(test_users=len(testers), with_persona=len(judges), prompts=len(prompts))
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in READ}
    for prompt in prompts:
        verdicts = disagreement(prompt, drawn[prompt['id']], judges, told)
        if verdicts is None:
            counts['prompts_without_disagreement'] += 1
            continue
        tastes = {taste for verdict in verdicts for taste in verdict.deciding}
        all_told = all(is_told(verdict, told) for verdict in verdicts)
        name = 'held_out' if tastes & held_out else 'counterbalanced' if all_told else 'untold'
        counts[f'pairs_{name}'] += 2
        files[name] += [preference(prompt, verdict, personas) for verdict in verdicts]
    verdicts_by_user = {name: verdicts_of(testers[name], prompts, drawn) for name in sorted(testers)}
    files['by_user'] = [
        preference(prompt, verdict, personas) for verdicts in verdicts_by_user.values() for prompt, verdict in verdicts
    ]
    counts['pairs_by_user'] = len(files['by_user'])
    for name, records in files.items():
        write_records(folder / f'{name}.jsonl', records)
    return dict(counts)


def evaluated(config: ConfigDict, folder: Path, model: Path, rewards: Path | None) -> dict[str, Any]:
    """Return the evaluation of a model, or of rewards over its states, on each file of pairs that suits it."""
    if rewards and read_json(rewards / 'manifest.json', 'fit the rewards again')['kind'] == 'low_rank':
        return evaluate_rewards(config, model, str(folder / 'by_user.jsonl'), 'test', rewards)
    files = {name: folder / f'{name}.jsonl' for name in READ}
    return {
        name: evaluate_rewards(config, model, str(path), 'test', rewards)
        if rewards
        else evaluate_reward(config, model, str(path), 'test')
        for name, path in files.items()
        if path.stat().st_size
    }


def main(command: str) -> None:
    given = flags.FLAGS
    workdir = Path(given.workdir)
    config = stage_config(load_config(given.config), workdir, 'personas')
    folder = workdir / ('arms' if command == 'arms' else 'counterbalanced')
    folder.mkdir(parents=True, exist_ok=True)
    if command == 'strangers':
        result = dict(strangers=strangers(config))
    elif command == 'arms':
        result = dict(arms=arms(config, folder))
    elif command == 'pairs':
        result = dict(pairs=counterbalanced(config, folder))
    else:
        require_flags('name', 'model')
        result = {given.name: evaluated(config, folder, Path(given.model), given.rewards and Path(given.rewards))}
    stored = read_json(RESULTS, 'remove the file', fields=()) if RESULTS.exists() else {}
    write_json(RESULTS, stored | result)
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('workdir', None, 'The folder of the stages.', required=True)
    flags.DEFINE_integer('most', 160, 'pairs: the largest number of prompts.')
    flags.DEFINE_string('name', None, "evaluate: the model's name in the results.")
    flags.DEFINE_string('model', None, 'evaluate: model folder or workdir.')
    flags.DEFINE_string('rewards', None, 'evaluate: folder of user rewards.')
    COMMAND = start(commands=('strangers', 'arms', 'pairs', 'evaluate'))
    run(lambda: main(COMMAND))
