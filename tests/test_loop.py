"""The whole loop on a tiny model, every part the real one; killed in each stage, it ends in the same bytes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from rlhi_jax.config import base_config
from rlhi_jax.io.errors import UserError
from rlhi_jax.rounds.settings import claim

STAGES = (
    *('sources.simulated', 'ingest', 'follow_ups', 'personas', 'rewrites', 'strangers', 'pairs', 'shards', 'rows'),
    *('train reward', 'candidates', 'train dpo', 'satisfaction', 'gate', 'export'),
)
KILLED_IN = {  # the part of the loop in which each of them is killed, if it has another name
    **{stage: f'reward: {stage}' for stage in ('pairs', 'shards', 'rows', 'export')},
    **{'train reward': 'reward: training', 'train dpo': 'dpo: training', 'satisfaction': 'satisfaction before'},
}
VARYING = {'times.jsonl', 'tensorboard', 'checkpoints'}  # times, or written at leisure; the exported folders count


def flags(model: Path, workdir: Path) -> list[str]:
    settings = {
        'model.path': model,
        'model.dtype': 'float32',
        'model.logprob_chunk': 64,
        'loop.simulated': True,
        'simulated.users.train': 6,
        'simulated.users.validation': 2,
        'simulated.users.test': 4,
        'simulated.conversations': 2,
        'simulated.prompts': 1,
        'sampler.slots': 8,
        'sampler.prompt_tokens': 900,
        'sampler.new_tokens': 300,
        'teacher.row_tokens': 2048,
        'personas.writer': 'quotes',  # what a random model says follows from nothing
        'follow_ups.min_confidence': 0.0,
        'rewrites.regenerate': True,
        'rewrites.max_feedback_drop': 20.0,
        'rewrites.min_gain': -5.0,  # of a random model's rewrites
        'pairs.against': 'both',
        'strangers.samples': 4,
        'candidates.samples': 3,
        'candidates.max_prompts': 8,
        'pairs.accept_artefacts': True,
        'gate.prompts': 4,
        'gate.samples': 1,
        'pairs.min_pairs': 1,
        'rows.tokens': 2048,
        'rows.scored': 1024,
        'train.batch_rows': 2,
        'loop.dpo.learning_rate': 1e-3,
        'checkpoint.every_steps': 1,
        'eval.batch_rows': 2,
    }
    return [f'--config={tiny.ROOT / "tests" / "tiny_config.py"}', f'--workdir={workdir}'] + [
        f'--config.{name}={value}' for name, value in settings.items()
    ]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    # A random model's labels are random: this one happens to take every complaint for one.
    return tiny.write_model(tmp_path_factory.mktemp('model'), seed=6, spec=tiny.LOOP_SPEC)


@pytest.fixture(scope='module')
def finished(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('loop') / 'run'
    command = [sys.executable, 'tests/killed_loop.py', 'none', *flags(model, workdir)]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    return workdir, done.stdout


def contents(workdir: Path) -> dict[str, bytes | str]:
    """Every file of a loop's folder, except those that contain times."""
    files: dict[str, bytes | str] = {}
    for path in sorted(workdir.rglob('*')):
        name = str(path.relative_to(workdir))
        if path.is_file() and not any(part in VARYING for part in path.parts):
            files[name] = path.read_bytes().replace(str(workdir).encode(), b'WORKDIR')
    return files


def test_the_loop_ends_in_models_and_a_report(model, finished):
    workdir, output = finished
    report = json.loads((workdir / 'report.json').read_text())
    personas = {json.loads(line)['persona'] for line in (workdir / 'personas' / 'records.jsonl').open()} - {''}
    assert personas
    for objective in ('reward', 'dpo'):
        exported = workdir / objective / 'huggingface'
        held = b''.join(path.read_bytes() for path in exported.rglob('*') if path.is_file())
        assert not [text for text in personas if text.encode() in held or json.dumps(text)[1:-1].encode() in held]
        kind = json.loads((exported / 'config.json').read_text())['architectures'][0]
        assert kind.endswith('ForSequenceClassification' if objective == 'reward' else 'ForCausalLM')
        assert (exported / 'model.safetensors').exists() and (exported / 'chat_template.jinja').exists()
    assert {'before', 'after'} == set(report['satisfaction']['models'])
    assert report['funnel']['rewrites']['feedback_turns'] > 0
    met = report['funnel']['strangers']
    assert met['kept_train'] > 0 and report['funnel']['dpo: pairs']['kept_strangers_train'] == 2 * met['kept_train']
    shown = report['funnel']['personas']
    assert f'{shown["turns_with_persona"] / shown["turns"]:.0%} of the turns' in output
    section = report['reward']
    assert bool(section['not_evaluated']) == (section['evaluation'] is None)
    assert str(workdir) not in section['not_evaluated'] and ('before' in section) == (section['evaluation'] is not None)
    assert report['funnel']['gate']['kept_instructions'] == 24 and report['gate']['gain']['of'].startswith('the share')
    assert 'The new policy is not promoted: only 2 held-out users judged' in output
    assert (workdir / 'model').resolve() == model
    assert 'plumbing only' in output and len(report['pairs_to_read']) == 5
    assert report['funnel']['card']['folders'] == 13 and report['funnel']['card']['not_adding_up'] == 0
    assert json.loads((workdir / 'card' / 'card.json').read_text())['examples']['dpo/pairs'] == report['pairs_to_read']


def test_a_finished_loop_has_nothing_to_do(model, finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('records.jsonl')}
    again = tiny.run_program('rlhi_jax.loop', *flags(model, workdir))
    assert 'up to date' in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob('records.jsonl')}


def sampled(files: dict[str, bytes | str]) -> list[list[dict]]:
    """The replies in the folder of candidates, without their scores."""
    return [json.loads(line)['replies'] for line in files['candidates/records.jsonl'].splitlines()]


def test_two_processes_run_the_loop_as_one(model, finished, tmp_path):
    """All before the reward training is the same, byte for byte; trained weights may differ in their last bits."""
    expected, workdir = contents(finished[0]), tmp_path / 'run'
    command = [sys.executable, 'launch/local.py', '--processes=2', '--', sys.executable, 'tests/killed_loop.py', 'none']
    done = subprocess.run([*command, *flags(model, workdir)], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = contents(workdir)
    before = [name for name in expected if name.partition('/')[0] in ('raw', 'personas', 'rewrites', 'follow_ups')]
    assert 'rewrites/records.jsonl' in before
    assert [name for name in before if made.get(name) != expected[name]] == []
    assert sampled(made) == sampled(expected)
    assert made.keys() == expected.keys()


def test_another_config_is_refused(model, finished):
    workdir, _ = finished
    again = tiny.run_program('rlhi_jax.loop', *flags(model, workdir), '--config.candidates.samples=4', check=False)
    assert (
        again.returncode == 2
        and 'config.candidates.samples (3, now 4)' in again.stderr
        and 'Traceback' not in again.stderr
    )


def test_a_loop_goes_on_with_an_endpoint_that_moved(model, tmp_path):
    """But not with another model there, nor with other settings."""
    c = base_config()
    c.model.path, c.teacher.path, c.teacher.model = str(model), 'http://one:8000/v1', 'm'
    claim(c, tmp_path / 'run', dict(weights='w'))
    c.teacher.path, c.teacher.timeout, c.pairs.min_pairs = 'https://two/v1', 9.0, 1
    claim(c, tmp_path / 'run', dict(weights='w'))
    for key, value in (('model', 'n'), ('path', 'a folder'), ('temperature', 1.0)):
        other = c.copy_and_resolve_references()
        other.teacher[key] = value
        with pytest.raises(UserError, match=f'config.teacher.{key}'):
            claim(other, tmp_path / 'run', dict(weights='w'))


def test_a_loop_that_began_before_a_key_existed_goes_on_with_its_default(tmp_path):
    c = base_config()
    claim(c, tmp_path / 'run', dict(weights='w'))
    path = tmp_path / 'run' / 'loop.json'
    stored = json.loads(path.read_text())
    del stored['config']['sampler']['top_k'], stored['config']['sampler']['stop']
    path.write_text(json.dumps(stored))
    claim(c, tmp_path / 'run', dict(weights='w'))
    c.sampler.stop = ('END',)
    with pytest.raises(UserError, match='config.sampler.stop'):
        claim(c, tmp_path / 'run', dict(weights='w'))
    claim(c, tmp_path / 'another', dict(weights='w'))
    claim(c, tmp_path / 'another', dict(weights='w'))


def test_killed_in_each_stage_it_ends_in_the_same_bytes(model, finished, tmp_path):
    expected, _ = finished
    workdir = tmp_path / 'run'
    reached = 0
    for stage in STAGES:
        command = [sys.executable, 'tests/killed_loop.py', stage]
        killed = subprocess.run([*command, *flags(model, workdir)], cwd=tiny.ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, (stage, killed.stderr[-2000:])
        place = json.loads((workdir / 'report.json').read_text())['unfinished']
        assert place['part'] == KILLED_IN.get(stage, stage) and place['number'] > reached and place['why'] == ''
        reached = place['number']
        text = (workdir / 'card' / 'card.md').read_text().replace('\\', '')
        assert f'It has reached part {reached} of {place["of"]}, {place["part"]}. Next: run the same command' in text
    tiny.run_program('rlhi_jax.loop', *flags(model, workdir))
    ours, theirs = contents(workdir), contents(expected)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]


def run_patched(*argv: str, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, 'tests/killed_loop.py', 'none', *argv]
    return subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL)


def test_an_edited_persona_is_redone_as_if_from_scratch(model, finished, tmp_path):
    edited, scratch = tmp_path / 'edited', tmp_path / 'scratch'
    shutil.copytree(finished[0], edited, symlinks=True)
    claim = json.loads((edited / 'personas' / 'claims.jsonl').read_text().splitlines()[0])
    config = [flag for flag in flags(model, edited) if not flag.startswith('--workdir')]
    edit = ['edit', f'--claim={claim["id"]}', '--text=I like short answers.', f'--workdir={edited}']
    tiny.run_program('data_pipelines.persona_store', *edit, *config)
    untouched = ('raw', 'conversations', 'follow_ups', 'personas')
    before = {name: (edited / name / 'manifest.json').stat().st_mtime_ns for name in untouched}

    stale = run_patched(*flags(model, edited), check=False)
    assert stale.returncode == 2 and 'for the loop, --redo' in stale.stderr
    report = json.loads((edited / 'report.json').read_text())
    assert report['unfinished']['part'] == 'rewrites' and 'different input' in report['unfinished']['why']
    assert report['summary'].count('→') == 1

    unsure = run_patched(*flags(model, edited), '--redo', check=False)
    assert unsure.returncode == 2 and 'pass --yes' in unsure.stderr
    listed, _, runs = unsure.stdout.partition('Training runs that are removed')
    assert f'rewrites ({edited}/rewrites)' in listed and f'dpo: pairs ({edited}/dpo/pairs)' in listed
    assert 'follow_ups' not in listed and f'reward: training ({edited}/reward/run)' in runs

    done = run_patched(*flags(model, edited), '--redo', '--yes')
    assert before == {name: (edited / name / 'manifest.json').stat().st_mtime_ns for name in untouched}
    assert 'unfinished' not in json.loads((edited / 'report.json').read_text())
    assert 'complaints →' in done.stdout

    scratch.mkdir()
    (corrections,) = edited.glob('*corrections*')
    shutil.copy(corrections, scratch)
    run_patched(*flags(model, scratch))
    ours, theirs = contents(edited), contents(scratch)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] != theirs[name]]

    again = run_patched(*flags(model, edited), '--redo=personas', '--yes')
    assert f'personas ({edited}/personas)' in again.stdout
    assert contents(edited) == ours


def test_redo_names_what_it_does_not_know(model, finished):
    again = run_patched(*flags(model, finished[0]), '--redo=persona', '--yes', check=False)
    assert again.returncode == 2 and 'choose one of' in again.stderr and 'personas' in again.stderr
    nothing = run_patched(*flags(model, finished[0]), '--redo', '--yes')
    assert 'Nothing is out of date.' in nothing.stdout


@pytest.mark.parametrize('stage', ['ingest', 'follow_ups', 'personas', 'rewrites', 'candidates', 'pairs', 'rows'])
def test_a_stage_run_by_hand_uses_the_folders_of_the_loop(model, finished, stage):
    again = tiny.run_program(f'data_pipelines.{stage}', *flags(model, finished[0]), '--config.objective=reward')
    folder = dict(ingest='conversations', pairs='reward/pairs', rows='reward/rows').get(stage, stage)
    assert again.stdout.startswith(f'{finished[0]}/{folder}: up to date')
