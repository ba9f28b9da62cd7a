"""How well does a teacher follow feedback? Claims and rewrites from the complaints of simulated users, without judges.

    python tests/benchmarks/teacher_quality.py --config=configs/demo.py --name=NAME --workdir=DIR [--split=train] FLAGS

FLAGS contain `--config.teacher.path`, `--config.teacher.model` and `--config.teacher.cache`, an SQLite file that is
filled as the teacher answers, so the script resumes. Users of the split, with all five tastes of the simulator, talk to
the policy `config.model.path`. Every complaint that names a taste counts, whatever becomes of it.

- Rewrites: the stage `rewrites` makes them from 1, 4 and 8 samples, once with the feedback and once without (plain
  retries). A rewrite meets the complaint if the simulator's checker says so, and is valid if it is finished, on topic
  and not repetitive. A complaint without a rewrite counts as not met. The sample with the largest gain is the rewrite,
  however small that gain.
- Prompts: `--prompts` compares, with one sample, whether the teacher sees the reply and how many words it is asked for.
  Use it with `--split=train` to choose, never with `test`.
- Wishes: the stage `personas` makes one claim of each wording of a complaint. Whether it states the wish is for a
  reader: the script writes the claims to WORKDIR/claims.jsonl, and counts those that
  `tests/labels/teacher_wishes.jsonl` says are right.

Intervals are 95 %, from a bootstrap over users. Adds the results under NAME to `results/teacher_quality.json`.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import ConfigDict

from data_pipelines import ingest, personas, rewrites
from data_pipelines.core.inputs import read_records
from data_pipelines.core.record_files import RECORDS, stream_records, write_records
from data_pipelines.core.records import FollowUp, TurnPersona
from data_pipelines.core.turns import turn_id
from data_pipelines.labelling.labels import FEEDBACK
from data_pipelines.simulator.requests import Request, requests
from data_pipelines.simulator.tastes import NAMED_BY, TASTES, valid
from data_pipelines.sources import simulated
from rlhi_jax.cli.program import define_config_flag, load_config, run
from rlhi_jax.evaluation.statistics import interval
from rlhi_jax.io.files import digest, read_json, write_json

LABELS = Path(__file__).parents[1] / 'labels' / 'teacher_wishes.jsonl'
RESULTS = Path(__file__).parent / 'results' / 'teacher_quality.json'
SAMPLES = (1, 4, 8)
ASKED = dict(shows_reply=False, min_words=20, max_words=60)  # the best prompt of `--prompts` on training users
PROMPTS = {
    'request and remark, 20 to 60 words': ASKED,
    'request and remark, at most 60 words': ASKED | dict(min_words=0),
    'request and remark': dict(shows_reply=False, min_words=0, max_words=0),
    'reply shown, 20 to 60 words': ASKED | dict(shows_reply=True),
    'reply shown': dict(shows_reply=True, min_words=0, max_words=0),
}


class Complaint(NamedTuple):
    """A user's complaint about a reply, and the side of the taste that it names."""

    turn: FollowUp
    request: Request
    taste: str
    side: str

    def met_by(self, text: str) -> bool:
        """Whether a rewrite is valid and meets the complaint; a rewrite that the stage kept is finished."""
        return valid(text, self.request, True) and TASTES[self.taste][self.side].check(text)


def settings(config: ConfigDict, workdir: Path, split: str) -> ConfigDict:
    """The users of one split, with all tastes, and folders below the workdir."""
    config = config.copy_and_resolve_references()
    config.simulated.tastes, config.simulated.conversations, config.simulated.prompts = ','.join(TASTES), 3, 0
    config.simulated.users.train = config.simulated.users.validation = config.simulated.users.test = 0
    config.simulated.users[split] = 40
    config.personas.audit, config.personas.samples = 'safe', 1
    config.rewrites.update(ASKED, regenerate=False, min_gain=-1e6)
    config.sampler.new_tokens = 160
    for name in ('raw', 'conversations', 'follow_ups', 'personas'):
        config.data[name] = str(workdir / split / name)
    return config


def talk(config: ConfigDict, split: str, most: int) -> list[Complaint]:
    """Let the users talk to the policy, and return up to `most` complaints, drawn by hash, as of the training split."""
    simulated.STAGE.run(config)
    raw = Path(config.data.raw)
    mined = raw.with_name('mined') / 'train.jsonl'
    mined.parent.mkdir(exist_ok=True)
    shutil.copy(raw / f'{split}.jsonl', mined)
    config.data.raw = str(mined)
    ingest.STAGE.run(config)
    config.data.raw = str(raw)
    asked = {request.text: request for request in requests(split)}
    complaints = []
    for conversation in read_records(config, 'conversations'):
        texts = [message['content'] for message in conversation['messages']]
        if len(texts) > 2 and texts[2] in NAMED_BY:
            turn = FollowUp(
                id=turn_id(conversation['id'], 2),
                conversation=conversation['id'],
                turn_index=2,
                user_id=conversation['user_id'],
                split='train',
                request=texts[0],
                reply=texts[1],
                follow_up=texts[2],
                label=FEEDBACK,
                confidence=1.0,
                quote=texts[2],
                mined=True,
            )
            complaints.append(Complaint(turn, asked[texts[0]], *NAMED_BY[texts[2]]))
    drawn = {c.turn['id'] for c in sorted(complaints, key=lambda c: digest(c.turn['id']))[:most]}
    complaints = [c for c in complaints if c.turn['id'] in drawn]
    write_folder(config.data.follow_ups, 'follow_ups', (complaint.turn for complaint in complaints))
    nothing = (TurnPersona(id=turn_id(c.turn['conversation'], 0), persona='') for c in complaints)
    write_folder(config.data.personas, 'personas', nothing)
    return complaints


def write_folder(folder: str, stage: str, records: Iterable[Any]) -> None:
    """Write records as if a stage had finished them."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_records(path / RECORDS, records)
    write_json(path / 'manifest.json', dict(stage=stage, made_from={}, counts={}))


def rewritten(config: ConfigDict, complaints: list[Complaint], folder: Path, **options: Any) -> dict[str, Any]:
    """Make rewrites with some options of `config.rewrites`; return which complaints they meet and which were kept."""
    config = config.copy_and_resolve_references()
    config.rewrites.update(options)
    config.data.rewrites = str(folder)
    rewrites.STAGE.run(config, overwrite=True)
    texts = {record['id']: record['rewrite'] for record in read_records(config, 'rewrites')}
    met = {c.turn['id']: float(c.turn['id'] in texts and c.met_by(texts[c.turn['id']])) for c in complaints}
    kept = {c.turn['id']: float(c.turn['id'] in texts) for c in complaints}
    users = {c.turn['id']: c.turn['user_id'] for c in complaints}
    sides: dict[str, list[float]] = {}
    for complaint in complaints:
        sides.setdefault(complaint.side, []).append(met[complaint.turn['id']])
    by_side = {side: f'{sum(values):.0f} of {len(values)}' for side, values in sorted(sides.items())}
    return dict(met=interval(met, users), kept=interval(kept, users), by_side=by_side, values=met, users=users)


def selection(config: ConfigDict, complaints: list[Complaint], workdir: Path) -> dict[str, Any]:
    """With 1, 4 and 8 samples: rewrites, plain retries, and the difference between the two."""
    result = {}
    for samples in SAMPLES:
        arms = {
            name: rewritten(config, complaints, workdir / f'{name}-{samples}', samples=samples, from_scratch=retry)
            for name, retry in (('rewrites', False), ('retries', True))
        }
        values, users = (arms['rewrites'][key] for key in ('values', 'users'))
        difference = interval({turn: value - arms['retries']['values'][turn] for turn, value in values.items()}, users)
        shown = {name: {key: arm[key] for key in ('met', 'kept', 'by_side')} for name, arm in arms.items()}
        result[str(samples)] = shown | dict(difference=difference)
    return result


def prompts(config: ConfigDict, complaints: list[Complaint], workdir: Path) -> dict[str, Any]:
    """One sample with each prompt."""
    result = {}
    for name, options in PROMPTS.items():
        arm = rewritten(config, complaints, workdir / name.replace(' ', '-'), samples=1, **options)
        result[name] = {key: arm[key] for key in ('met', 'kept', 'by_side')}
    return result


def claims(config: ConfigDict, complaints: list[Complaint], workdir: Path) -> dict[str, Any]:
    """Ask what each wording of a complaint says about its author; count the claims that are right by the labels."""
    config = config.copy_and_resolve_references()
    config.data.personas = str(workdir / 'claims')
    personas.STAGE.run(config, overwrite=True)
    by_turn = {claim['id']: claim['text'] for claim in stream_records(workdir / 'claims' / 'claims.jsonl')}
    found = {(c.turn['follow_up'], by_turn.get(c.turn['id'], '')) for c in complaints}
    write_records(workdir / 'claims.jsonl', (dict(complaint=a, claim=b) for a, b in sorted(found)))
    labels = {(label['complaint'], label['claim']): label['right'] for label in labelled()}
    right = {c.turn['id']: labels.get((c.turn['follow_up'], by_turn.get(c.turn['id'], ''))) for c in complaints}
    unread = sum(value is None for value in right.values())
    users = {c.turn['id']: c.turn['user_id'] for c in complaints}
    share = None if unread else interval({turn: float(value) for turn, value in right.items()}, users)
    return dict(wordings=len({complaint for complaint, _ in found}), unread=unread, right=share)


def labelled() -> Iterator[dict[str, Any]]:
    """The labels of claims. A complaint without a claim is never right."""
    if LABELS.exists():
        yield from map(json.loads, LABELS.read_text(encoding='utf-8').splitlines())


def main() -> None:
    name, split = flags.FLAGS.name, flags.FLAGS.split
    root = Path(flags.FLAGS.workdir)
    config = settings(load_config(flags.FLAGS.config), root, split)
    complaints, workdir = talk(config, split, flags.FLAGS.most), root / name
    result = dict(split=split, complaints=len(complaints), users=len({c.turn['user_id'] for c in complaints}))
    if flags.FLAGS.prompts:
        result |= dict(prompts=prompts(config, complaints, workdir))
    else:
        result |= dict(wishes=claims(config, complaints, workdir), samples=selection(config, complaints, workdir))
    stored = read_json(RESULTS, 'remove the file', fields=()) if RESULTS.exists() else {}
    key = f'{name}, prompts' if flags.FLAGS.prompts else name
    write_json(RESULTS, stored | {key: result})
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    define_config_flag()
    flags.DEFINE_string('name', None, 'The name of the teacher in the results.', required=True)
    flags.DEFINE_string('workdir', None, 'A folder for the conversations and for what is made of them.', required=True)
    flags.DEFINE_enum('split', 'test', ['train', 'validation', 'test'], 'The users of this split.')
    flags.DEFINE_integer('most', 96, 'The largest number of complaints.')
    flags.DEFINE_bool('prompts', False, 'Whether to compare prompts instead of counting samples.')
    run(lambda: app.run(lambda _: main()))
