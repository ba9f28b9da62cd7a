"""Online training: it makes the pairs and takes the steps of the offline path, and resumes in any phase."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from data_pipelines.preferences.rounds import RoundFolder
from rlhi_jax.config import base_config
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.errors import STOPPED, UserError
from rlhi_jax.models.checkpoints import open_model, restore_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import abstract_params
from rlhi_jax.parallel.sharding import make_mesh
from rlhi_jax.sampling.generator import Reply
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer
from rlhi_jax.training.online import check_judge, check_settings

REQUESTS = 8
ASKED = (
    'Name a tree.',
    'Why do cats sit?',
    'Tell me of dogs.',
    'What sings?',
    'A house?',
    'And then?',
    'Big or small?',
)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return tiny.write_policy_and_reward_model(tmp_path_factory.mktemp('models'))


@pytest.fixture(scope='module')
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('prompts') / 'prompts.jsonl'
    wishes = ('I like short answers.', 'I like long answers with examples.', 'I like lists.')
    records = [
        dict(
            id=f'c{n}/0',
            user_id=f'u{n % 3}',
            persona=wishes[n % 3],
            split='train',
            messages=[dict(role='user', content=f'{ASKED[n % len(ASKED)]} {n}')],
        )
        for n in range(REQUESTS)
    ]
    path.write_text('\n'.join(map(json.dumps, records)))
    return path


def flags(models, prompts, *more: str) -> list[str]:
    policy, reward = models
    return [
        f'--config={tiny.CONFIG}',
        f'--config.model.path={policy}',
        f'--config.candidates.reward_model={reward}',
        f'--config.data.prompts={prompts}',
        '--config.candidates.samples=3',
        '--config.optimizer.schedule=constant',
        '--config.sampler.prompt_tokens=128',
        '--config.sampler.new_tokens=24',
        f'--config.sampler.stop={tiny.STOP}',
        '--config.sampler.slots=8',
        '--config.rows.pairs=1',
        '--config.pairs.accept_artefacts',
        '--config.pairs.min_pairs=1',
        *more,
    ]


def params_of(workdir: Path) -> dict:
    model, mesh = open_model(workdir), make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    return restore_params(model, abstract_params(Decoder(model.spec), mesh))


def assert_same(ours: Path, theirs: Path, **tolerance) -> None:
    for one, other in zip(*(jax.tree.leaves(params_of(path)) for path in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or dict(rtol=0, atol=0)))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs_of(workdir: Path) -> list[dict]:
    return [pair for path in sorted(workdir.glob('rounds/*/pairs.jsonl')) for pair in lines(path)]


def by_id(pairs: list[dict]) -> dict[str, tuple[str, str]]:
    return {pair['id']: (pair['chosen'][0]['content'], pair['rejected'][0]['content']) for pair in pairs}


@pytest.mark.parametrize('scorer', ['reward_model', 'policy'])
def test_one_round_of_all_requests_is_the_offline_path(models, prompts, scorer, tmp_path):
    """The stages `candidates`, `pairs`, `shards` and `rows` and the program `train` make the same step."""
    folders = {name: tmp_path / name for name in ('candidates', 'pairs', 'shards', 'rows')}
    given = flags(models, prompts, f'--config.candidates.scorer={scorer}', '--config.pairs.sources=candidates')
    if scorer == 'policy':
        given.append('--config.candidates.reward_model=')
    offline = [*given, *(f'--config.data.{name}={folder}' for name, folder in folders.items())]
    for stage in folders:
        tiny.run_program(f'data_pipelines.{stage}', *offline)
    tiny.run_program('rlhi_jax.train', *offline, f'--workdir={tmp_path / "offline"}')
    tiny.run_program(
        'rlhi_jax.online', *given, f'--config.online.prompts={REQUESTS}', f'--workdir={tmp_path / "online"}'
    )
    assert by_id(pairs_of(tmp_path / 'online')) == by_id(lines(tmp_path / 'pairs' / 'train.jsonl'))
    logs = [lines(tmp_path / name / 'metrics.jsonl') for name in ('offline', 'online')]
    assert len(logs[1]) == 1 and logs[0][0]['pairs'] == logs[1][0]['pairs'] > 4
    assert logs[1][0]['loss'] == pytest.approx(math.log(2), abs=1e-5)  # the policy is its own reference
    assert_same(tmp_path / 'online', tmp_path / 'offline', rtol=1e-4, atol=2e-5)


# Up to three pairs in a round, one in a row, two rows in a step, and two passes.
ONLINE = ('--config.online.prompts=3', '--config.train.epochs=2', '--config.train.batch_rows=2')


@pytest.fixture(scope='module')
def finished(models, prompts, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('online') / 'run'
    done = tiny.run_program('rlhi_jax.online', *flags(models, prompts, *ONLINE), f'--workdir={workdir}')
    assert 'after 6 of 6 rounds; the run is complete' in done.stdout
    return workdir


@pytest.mark.parametrize('lora', [0, 4])
def test_a_round_is_answered_by_the_weights_that_the_round_before_has_reached(models, prompts, lora, tmp_path):
    """The answers of the second round are those that the stage `candidates` draws from the checkpoint before it."""
    given = flags(models, prompts, *ONLINE, f'--config.lora.rank={lora}')
    whole, part = tmp_path / 'whole', tmp_path / 'part'
    tiny.run_program('rlhi_jax.online', *given, '--config.online.sync_reference=0', f'--workdir={whole}')
    names = by_id(lines(whole / 'rounds' / '000001' / 'pairs.jsonl')).keys()
    steps = sum(set(line['pairs']) <= names for line in lines(whole / 'examples.jsonl'))
    tiny.run_program('rlhi_jax.online', *given, f'--config.train.max_steps={steps}', f'--workdir={part}')
    second = lines(whole / 'rounds' / '000002' / 'replies-0.jsonl')
    answered = {reply['id'] for reply in second}
    chosen = tmp_path / 'second.jsonl'
    chosen.write_text('\n'.join(json.dumps(record) for record in lines(prompts) if record['id'] in answered))
    offline = [*flags(models, chosen), f'--config.model.path={part}', '--config.candidates.reward_model=']
    tiny.run_program('data_pipelines.candidates', *offline, f'--config.data.candidates={tmp_path / "candidates"}')
    drawn = {record['id']: record['replies'] for record in lines(tmp_path / 'candidates' / 'records.jsonl')}
    assert len(drawn) == 3
    for name, replies in drawn.items():
        ours = sorted((reply for reply in second if reply['id'] == name), key=lambda reply: reply['sample'])
        assert [reply['text'] for reply in ours if reply['text']] == [reply['text'] for reply in replies]


def test_every_request_is_answered_once_in_a_pass(finished):
    asked = [
        sorted({json.loads(line)['id'] for line in path.open()})
        for path in sorted(finished.glob('rounds/*/replies-0.jsonl'))
    ]
    assert [len(names) for names in asked] == [3, 3, 3, 3, 3, 1]
    everyone = [name for names in asked for name in names]
    assert len(set(everyone)) == len(everyone) == 2 * REQUESTS
    assert {name.removesuffix(' pass 2') for name in everyone} == {f'c{n}/0' for n in range(REQUESTS)}


def test_pairs_are_the_best_and_the_worst_by_the_reward_model(models, finished):
    scorer = CandidateScorer(tiny_config(models), str(models[1]), Capacities(512, 256, 3), sees_persona=True)
    for path in sorted(finished.glob('rounds/*/')):
        replies = [json.loads(line) for line in (path / 'replies-0.jsonl').open()]
        for pair in lines(path / 'pairs.jsonl'):
            mine = [reply for reply in replies if f'{reply["id"]} best/worst' == pair['id'] and reply['text']]
            texts = [reply['text'] for reply in mine]
            (scores,) = scorer([Candidates('x', pair['prompt'], pair['persona'], texts)]).values()
            score = dict(zip(texts, scores, strict=True))
            done = [reply['text'] for reply in mine if reply['finished']]
            assert pair['chosen'][0]['content'] == max(done, key=score.__getitem__)
            assert score[pair['rejected'][0]['content']] < score[pair['chosen'][0]['content']]


def tiny_config(models):
    config = base_config()
    config.model.path, config.model.dtype, config.model.logprob_chunk = str(models[0]), 'float32', 64
    config.eval.batch_rows = 8
    return config


@pytest.mark.parametrize('phase', ['answers', 'line', 'scores', 'pairs', 'step', 'checkpoint'])
def test_a_run_killed_in_any_phase_ends_with_the_same_parameters(models, prompts, finished, phase, tmp_path):
    command = [*flags(models, prompts, *ONLINE), f'--workdir={tmp_path / "run"}']
    killed = subprocess.run(
        [sys.executable, 'tests/killed_online.py', phase, *command], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    tiny.run_program('rlhi_jax.online', *command)
    assert pairs_of(tmp_path / 'run') == pairs_of(finished)
    assert_same(tmp_path / 'run', finished)
    logs = [lines(path / name) for path in (tmp_path / 'run', finished) for name in ('metrics.jsonl', 'examples.jsonl')]
    assert logs[0] == logs[2] and logs[1] == logs[3]


def test_a_run_that_is_asked_to_stop_ends_with_the_same_parameters(models, prompts, finished, tmp_path):
    command = [
        sys.executable,
        '-m',
        'rlhi_jax.online',
        *flags(models, prompts, *ONLINE),
        f'--workdir={tmp_path / "run"}',
    ]
    process = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True)
    assert 'round 1 of 6: 3 requests, 9 answers' in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == STOPPED and 'the same command resumes from there' in output
    tiny.run_program('rlhi_jax.online', *command[3:])
    assert_same(tmp_path / 'run', finished)


def test_two_processes_make_the_same_pairs_and_parameters(models, prompts, finished, tmp_path):
    command = [*flags(models, prompts, *ONLINE), f'--workdir={tmp_path / "run"}']
    launched = [sys.executable, 'launch/local.py', '--processes=2', '--', sys.executable, '-m', 'rlhi_jax.online']
    subprocess.run([*launched, *command], cwd=tiny.ROOT, check=True)
    assert len(list(tmp_path.glob('run/rounds/000001/replies-*.jsonl'))) == 2
    assert by_id(pairs_of(tmp_path / 'run')) == by_id(pairs_of(finished))
    assert_same(tmp_path / 'run', finished, rtol=1e-4, atol=2e-5)


def test_a_synced_reference_is_the_policy_at_the_start_of_a_round(models, prompts, finished, tmp_path):
    command = flags(models, prompts, *ONLINE, '--config.online.sync_reference=2')
    tiny.run_program('rlhi_jax.online', *command, f'--workdir={tmp_path / "run"}')
    is_start = dict.fromkeys(starts(tmp_path / 'run', (1, 3, 5)), True)
    losses = {line['step']: line['loss'] for line in lines(tmp_path / 'run' / 'metrics.jsonl')}
    for step, loss in losses.items():
        assert (abs(loss - math.log(2)) < 1e-5) == (step in is_start), step
    unsynced = {line['step']: line['loss'] for line in lines(finished / 'metrics.jsonl')}
    assert [step for step, loss in unsynced.items() if abs(loss - math.log(2)) < 1e-5] == [0]


def starts(workdir: Path, rounds: tuple[int, ...]) -> list[int]:
    """The first step of each of some rounds."""
    examples = lines(workdir / 'examples.jsonl')
    names = [by_id(lines(workdir / 'rounds' / f'{number:06d}' / 'pairs.jsonl')).keys() for number in rounds]
    return [next(line['step'] for line in examples if set(line['pairs']) <= of_round) for of_round in names]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'objective': 'kto'}, "config.objective='kto' does not train a policy on pairs"),
        ({'objective': 'reward'}, "config.objective='reward' does not train a policy on pairs"),
        ({'online.prompts': 0}, 'config.online.prompts is 0'),
        ({'candidates.samples': 1}, 'config.candidates.samples is 1'),
        ({'optimizer.schedule': 'linear'}, "config.optimizer.schedule='linear' needs the number of steps"),
        ({'online.sync_reference': 1, 'lora.rank': 2}, 'config.online.sync_reference needs a reference model'),
        ({'online.sync_reference': 1, 'objective': 'simpo'}, 'config.online.sync_reference needs a reference model'),
        ({'candidates.reward_model': ''}, 'config.candidates.reward_model'),
        ({'candidates.reward_model': 'policy'}, 'is not a reward model'),
    ],
)
def test_settings_that_do_not_suit_are_refused(models, changes, message):
    config = base_config()
    config.model.path, config.candidates.reward_model, config.online.prompts = *map(str, models), 4
    config.optimizer.schedule = 'constant'
    check_settings(config)
    check_judge(config)
    for name, value in changes.items():
        *section, key = name.split('.')
        setattr(config[section[0]] if section else config, key, str(models[0]) if value == 'policy' else value)
    with pytest.raises(UserError, match=re.escape(message)):
        check_settings(config)
        check_judge(config)


def test_a_run_whose_pairs_are_all_too_close_says_so(models, prompts, tmp_path):
    given = flags(models, prompts, *ONLINE, '--config.pairs.min_score_gap=1000')
    failed = tiny.run_program('rlhi_jax.online', *given, f'--workdir={tmp_path / "run"}', check=False)
    assert failed.returncode == 2 and 'no request led to a pair' in failed.stderr and 'Traceback' not in failed.stderr
    counts = json.loads((tmp_path / 'run' / 'rounds' / '000001' / 'round.json').read_text())['counts']
    assert counts['pairs'] == 0 and sum(n for name, n in counts.items() if 'dropped_' in name) >= counts['prompts']
    assert (tmp_path / 'run' / 'rounds').stat().st_mode & 0o777 == 0o700


def test_a_pair_with_a_refusal_is_dropped_and_counted(models, prompts, tmp_path):
    records = [dict(record, messages=list(record['messages'])) for record in lines(prompts)[:2]]
    folder = RoundFolder(tmp_path / '000001', records, tiny_config(models))
    texts = {'c0/0': ('I am sorry, but I cannot help with that.', 'Oaks.'), 'c1/0': ('Cats rest.', 'Cats nap.')}
    folder.missing()
    (tmp_path / '000001' / 'replies-0.jsonl').write_text(
        ''.join(
            json.dumps(Reply(name, number, text, True)._asdict()) + '\n'
            for name, both in texts.items()
            for number, text in enumerate(both)
        )
    )
    says = folder.pair(lambda candidates: [[1.0, 0.0]] * len(candidates))
    assert by_id(lines(tmp_path / '000001' / 'pairs.jsonl')) == {'c1/0 best/worst': ('Cats rest.', 'Cats nap.')}
    assert says['counts'] == json.loads((tmp_path / '000001' / 'round.json').read_text())['counts']
    assert says['counts']['dropped_chosen_is_a_refusal'] == says['counts']['pairs'] == 1


def test_the_policy_judges_no_request_of_the_only_user(models, prompts, tmp_path):
    lonely = tmp_path / 'prompts.jsonl'
    lonely.write_text(prompts.read_text().splitlines()[0])
    given = flags(models, lonely, *ONLINE, '--config.candidates.scorer=policy')
    failed = tiny.run_program('rlhi_jax.online', *given, f'--workdir={tmp_path / "run"}', check=False)
    assert failed.returncode == 2 and "'dropped_no_stranger': 1" in failed.stderr and not (tmp_path / 'run').exists()


def test_another_judge_or_other_requests_need_another_workdir(models, prompts, finished, tmp_path):
    other = tmp_path / 'prompts.jsonl'
    other.write_text('\n'.join(prompts.read_text().splitlines()[1:]))
    for given in (
        flags(models, other, *ONLINE),
        flags(models, prompts, *ONLINE, '--config.candidates.scorer=policy'),
        flags(models, prompts, *ONLINE, '--config.pairs.length_penalty=0.5'),
    ):
        refused = tiny.run_program('rlhi_jax.online', *given, f'--workdir={finished}', check=False)
        assert refused.returncode == 2 and 'contains a run with a different online.' in refused.stderr
