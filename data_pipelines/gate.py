"""Decide whether a new policy may replace the old one, on held-out users who are not those of the final test.

    python -m data_pipelines.gate --config=configs/NAME.py --config.gate.model=NEW --config.data.gate=DIR

The old policy is `config.model.path`, and all users and pairs are of the validation split. The new policy is promoted
if users gain from it and nothing else becomes worse (`data_pipelines.gates.verdict` has the rules):

- What users gain is the change in the gap that the stage `satisfaction` measures, if simulated users have judged both
  policies (`config.gate.satisfaction`). Otherwise, it is the share of held-out preference pairs of `config.data.pairs`
  in which the new policy leans more to the chosen reply than the old one does, minus a half.
- Both policies answer up to `config.gate.prompts` requests of held-out users. The replies show how many are finished,
  how many are refusals, how long they are, and how many nats per token the new policy has moved.
- Both policies follow instructions that a program can check, and say whether false claims are right.

The loop runs this stage near the end of a round, and then lets WORKDIR/model link to the policy in force: the new one,
or the old one if the new one was not promoted.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.core.record_files import RECORDS, load_records, write_records
from data_pipelines.core.records import GateRecord, PreferenceRecord, SampledReply
from data_pipelines.core.turns import to_turns
from data_pipelines.gates.leans import agreement, claim_items, divergence, gain_of_pairs, pair_items, reply_items
from data_pipelines.gates.questions import (
    SIDES,
    Question,
    is_users,
    length_ratio,
    measures,
    of_instructions,
    of_users,
)
from data_pipelines.gates.verdict import Gain, Measure, measure, verdict
from data_pipelines.preferences.prompts import prompts_identity, prompts_of
from data_pipelines.simulator.summary import summarise
from data_pipelines.teacher.generation import generate, model_identity, scores
from rlhi_jax.config import listed, require, settings_identity
from rlhi_jax.config.loop_paths import GATE_SPLIT
from rlhi_jax.data.rows import capacities
from rlhi_jax.io.errors import NothingToEvaluate, UserError
from rlhi_jax.io.files import file_digest
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.sampling.generator import Prompt
from rlhi_jax.scoring.candidates import Candidates
from rlhi_jax.tokenizers.template import ChatTemplate, Context


def _paths(config: ConfigDict) -> dict[str, str]:
    """Return the path of each policy, keyed by side."""
    return dict(before=config.model.path, after=config.gate.model)


def _judged(config: ConfigDict) -> list[Path]:
    """Return the records of the users' satisfaction with the old and with the new policy; [] if users did not judge.

    Raises:
      UserError: the key `config.gate.satisfaction` does not name two folders of the stage.
    """
    if not config.gate.satisfaction:
        return []
    folders = [Path(path) for path in listed(config, 'gate.satisfaction')]
    if len(folders) != len(SIDES):
        raise UserError(
            f'config.gate.satisfaction names {len(folders)} folders: name two, of the old policy and of the new one'
        )
    for folder in folders:
        if not (folder / RECORDS).exists():
            raise UserError(f"config.gate.satisfaction: {folder} is not a finished folder of the stage 'satisfaction'")
    return [folder / RECORDS for folder in folders]


def _pair_files(config: ConfigDict) -> list[Path]:
    """Return the files of held-out pairs that judge; [] if simulated users judge, or if there are no pairs."""
    if config.gate.satisfaction or not config.data.pairs:
        return []
    paths = map(Path, listed(config, 'data.pairs'))
    files = [path if path.is_file() else path / f'{GATE_SPLIT}.jsonl' for path in paths]
    for path in files:
        if not path.exists():
            raise UserError(f"config.data.pairs: {path} does not exist: run the 'pairs' stage first")
    return files


def _pairs(config: ConfigDict) -> list[PreferenceRecord]:
    """Return the held-out pairs of two single replies that judge, each pair once."""
    pairs = {}
    for record in (record for path in _pair_files(config) for record in load_records(path)):
        if all(len(record.get(side, ())) == 1 for side in ('chosen', 'rejected')):
            pairs[record['id']] = record
    return list(pairs.values())


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path', 'gate.model')
    judges = _judged(config) or _pair_files(config)
    return dict(
        models=[model_identity(config, path) for path in _paths(config).values()],
        judges=[file_digest(path) for path in judges],
        prompts=prompts_identity(config),
        rows=config.rows.to_dict(),
        sampler=settings_identity(config, 'sampler'),
        sees_persona=dict(policy=config.policy_sees_persona, sampler=config.sampler_sees_persona),
        settings={name: value for name, value in config.gate.items() if name not in ('model', 'satisfaction')},
        seed=config.seed,
    )


def _work(task: Task) -> dict[str, int]:
    config, counts = task.config, Counter()
    prompts, pairs = prompts_of(config, GATE_SPLIT, config.gate.prompts)(counts), _pairs(config)
    questions = [*of_users(prompts, sees_persona=config.sampler_sees_persona), *of_instructions(config.gate.samples)]
    replies = {side: _replies(task, side, questions) for side in SIDES}
    records = [
        GateRecord(id=question.id, user_id=question.user_id, request=question.messages[-1]['content'], **both)
        for question in questions
        if all((both := {side: replies[side][question.id] for side in SIDES}).values())
    ]
    for record in records:
        counts['kept_requests' if is_users(record['id']) else 'kept_instructions'] += 1
    counts['instructions_read'] = sum(not question.is_users for question in questions)
    counts['dropped_prompt_too_long'] = len(questions) - len(records)
    of_pairs = pair_items(pairs, sees_persona=config.policy_sees_persona)
    of_claims, of_replies = claim_items(), reply_items(questions, records)
    log_probs = {side: _log_probs(task, side, [*of_pairs, *of_claims, *of_replies]) for side in SIDES}
    gain = _gain_of_satisfaction(config) if config.gate.satisfaction else gain_of_pairs(pairs, of_pairs, log_probs)
    template = ChatTemplate.load(open_model(config.gate.model).tokenizer_path)
    kl = divergence(of_replies, log_probs, lambda text: template.encode(('user', 'assistant'), text, Context()).scored)
    shown = {'satisfaction under the own persona': _satisfied(config)} if config.gate.satisfaction else {}
    shown |= measures(records) | {'agreement with false claims': agreement(of_claims, log_probs)}
    write_records(task.folder / RECORDS, records)
    return task.write_manifest(counts, verdict=verdict(gain, shown, length_ratio(records), kl, config.gate))


def _replies(task: Task, side: str, questions: Sequence[Question]) -> dict[str, list[SampledReply]]:
    """Return one policy's replies to each question, keyed by the question's id."""
    prompts = [
        Prompt(f'{side} {question.id}', to_turns(question.messages), Context('', question.persona), question.samples)
        for question in questions
    ]
    replies = generate(task, _paths(task.config)[side], prompts)
    return {
        question.id: [SampledReply(text=reply.text, finished=reply.finished) for reply in replies[prompt.id]]
        for question, prompt in zip(questions, prompts, strict=True)
    }


def _log_probs(task: Task, side: str, items: Sequence[Candidates]) -> dict[str, list[float | None]]:
    """Return one policy's log-probabilities (nats) of each item's replies, keyed by the item's id."""
    named = [item._replace(id=f'{side} {item.id}') for item in items]
    rows = dataclasses.replace(capacities(task.config), pairs=2)  # an item has at most two replies
    found = scores(task, _paths(task.config)[side], named, capacities=rows, sees_persona=True)
    return {item.id: found[f'{side} {item.id}'] for item in items}


def _gain_of_satisfaction(config: ConfigDict) -> Gain | None:
    """Return the change in the gap of simulated users; None if they could not judge both policies."""
    try:
        summary = summarise({side: path.parent for side, path in zip(SIDES, _judged(config), strict=True)})
    except NothingToEvaluate:
        return None
    return Gain('the change in the gap between own and opposing persona', summary['users'], summary['gap_change'])


def _satisfied(config: ConfigDict) -> Measure | None:
    """Return the satisfaction of simulated users under their own persona."""
    records = [[record for record in load_records(path) if record['condition'] == 'own'] for path in _judged(config)]
    before, after = ({record['id']: record['satisfaction'] for record in of_side} for of_side in records)
    return measure(before, after, {record['id']: record['user_id'] for record in records[0]}, more_is_better=True)


STAGE = Stage(
    name='gate',
    version=1,
    work=_work,
    output='data.gate',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(Step('questions', read=('prompts_read', 'instructions_read')),),
    forgetting='removed',
)

if __name__ == '__main__':
    STAGE.main()
