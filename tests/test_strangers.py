"""Counterfactual pairs: who the stranger is, which samples are kept, and that only personas tell the sides apart."""

import json
import shutil
from collections import Counter

import pytest
import tiny
from raw_conversations import config

from data_pipelines import pairs, strangers
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.core.turns import to_messages
from data_pipelines.persona.claims import contradicts
from data_pipelines.preferences.strangers import TRIES, pools, says_something_new, stranger_to
from data_pipelines.teacher.prompts import render
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.errors import UserError
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer

WISHES = {  # claim → the feedback that it was made from
    'I like short answers.': 'Shorter, please.',
    'I like long answers.': 'That is too short for me.',
    'I like lists.': 'Give me a list.',
    'I like answers that mention history.': 'You forgot the history of it.',
}

# How many words the teacher is asked for: half as many as the reply, which has two, or at least 60, or as configured.
BOUNDS = dict.fromkeys(WISHES, '20 to 60')
BOUNDS |= {'I like short answers.': 'at most 1', 'I like long answers.': 'at least 60'}


def wish(author: str, claim: str, persona: str = '') -> dict[str, str]:
    return dict(author=author, user_id=author, feedback=WISHES[claim], claim=claim, persona=persona or claim)


def test_a_stranger_wishes_the_opposite_or_what_the_user_has_not_said():
    claims = list(WISHES)
    pool = [wish(f'u{number}', claims[number % 4]) for number in range(12)]
    for own in pool:
        met = {stranger_to(own, pool, f'c{number}/2')['author'] for number in range(200)}
        fitting = [other for other in pool if other['claim'] != own['claim']]
        opposite = [other for other in fitting if contradicts(own['claim'], other['claim'])]
        assert met == {other['author'] for other in opposite or fitting}  # every one is met in some conversation
    assert contradicts(claims[0], claims[1]) and says_something_new(claims[0], claims[1])


def test_nobody_is_their_own_stranger_and_both_wishes_must_be_new_to_the_other():
    own = wish('a', 'I like lists.', 'I like short answers. I like lists.')
    assert stranger_to(own, [own, wish('a', 'I like answers that mention history.')], 'c/2') is None
    assert stranger_to(own, [wish('b', 'I like short answers.')], 'c/2') is None  # known to the user's persona
    assert stranger_to(own, [wish('b', 'I like long answers.', 'I like long answers. I like lists.')], 'c/2') is None
    assert stranger_to(own, [wish('b', 'I like long answers.')], 'c/2')['author'] == 'b'  # the opposite side
    far = [wish('b', 'I like lists.')] * (2 * TRIES) + [wish('c', 'I like answers that mention history.')] * TRIES
    assert {(stranger_to(own, far, f'c{n}/2') or {}).get('author') for n in range(50)} == {None, 'c'}


def test_the_pools_hold_the_wishes_of_each_split_whatever_their_order():
    wishes = [('train' if n % 3 else 'validation', wish(f'u{n}', 'I like lists.')) for n in range(30)]
    forth, back = pools(wishes), pools(wishes[::-1])
    assert forth == back and {split: len(pool) for split, pool in forth.items()} == dict(train=20, validation=10)


@pytest.fixture(scope='module')
def mined(tmp_path_factory):
    """A tiny model and finished folders of earlier stages: a claim of each of 16 users, two of them held out."""
    folder = tmp_path_factory.mktemp('mined')
    tiny.write_model(folder / 'model', spec=tiny.LOOP_SPEC)
    conversations, turns, claims = [], [], []
    for number in range(16):
        name, user = f'c{number:02}', f'u{number:02}'
        claim = list(WISHES)[number % 4]
        texts = [f'Question {number}?', f'Answer {number}.', WISHES[claim], 'No.']
        split = 'test' if number == 0 else 'validation' if number in (1, 2) else 'train'
        messages = to_messages(zip(('user', 'assistant') * 2, texts, strict=True))
        began = '2026-01-01T00:00:00+00:00'
        conversations.append(dict(id=name, user_id=user, split=split, messages=messages, began=began))
        known = dict(id=f'{name}/2', conversation=name, turn_index=2, user_id=user)
        turns.append(known | dict(split=split, mined=True, request=texts[0], reply=texts[1], follow_up=texts[2]))
        claims.append(known | dict(said_at=began, quote=texts[2], edited=False, text=claim))
    for stage, files in dict(
        conversations=dict(records=conversations),
        follow_ups=dict(records=turns),
        personas=dict(records=[], claims=claims, users=[]),
    ).items():
        (folder / stage).mkdir()
        for name, records in files.items():
            write_records(folder / stage / f'{name}.jsonl', records)
        (folder / stage / 'manifest.json').write_text('{}')
    return folder


def stage_config(mined, output, **settings):
    names = ('conversations', 'follow_ups', 'personas')
    c = config(output.parent, strangers=str(output), **{name: str(mined / name) for name in names})
    c.model.path, c.model.dtype, c.model.logprob_chunk = str(mined / 'model'), 'float32', 64
    c.sampler.update(dict(slots=8, prompt_tokens=900, new_tokens=200))
    c.teacher.row_tokens, c.eval.batch_rows = 2048, 8
    c.rewrites.update(dict(shows_reply=False, min_words=20, max_words=60))
    c.strangers.update(dict(samples=4) | settings)
    return c


@pytest.fixture(scope='module')
def made(mined):
    c = stage_config(mined, mined / 'strangers')
    strangers.STAGE.run(c)
    return load_records(mined / 'strangers' / 'records.jsonl'), json.loads(
        (mined / 'strangers' / 'manifest.json').read_text()
    )['counts']


def test_counts_add_up(made):
    records, counts = made
    kept = counts['kept_train'] + counts.get('kept_validation', 0)
    dropped = Counter({name: n for name, n in counts.items() if name.startswith('dropped_')})
    of_samples = sum(n for name, n in dropped.items() if name.startswith('dropped_rewrite_'))
    assert kept == len(records) > 3
    assert counts['claims_read'] == 16 == kept + dropped.total() - of_samples and dropped['dropped_test_split'] == 1
    assert counts['rewrites_drawn'] == 2 * kept + of_samples == 15 * 2 * 4


def test_the_users_of_a_split_meet_only_strangers_of_that_split(made):
    splits = {f'u{n:02}': 'validation' if n in (1, 2) else 'train' for n in range(1, 16)}
    for record in made[0]:
        own, stranger = record['wishes']
        assert own['user_id'] == record['user_id'] != stranger['user_id'] == record['stranger_id']
        assert splits[stranger['user_id']] == splits[own['user_id']] == record['split']
        assert own['claim'] != stranger['claim'] and own['persona'] == own['claim']  # the only claim of that user


def test_a_lean_is_the_difference_between_the_teachers_two_prompts(mined, made):
    c = stage_config(mined, mined / 'strangers')
    scorer = CandidateScorer(c, str(mined / 'model'), Capacities(tokens=2048, scored=512, pairs=1), sees_persona=False)
    for record in made[0][:3]:
        request = record['messages'][-1]['content']
        prompts = [
            render(
                'rewrite_request', request=request, feedback=f'{each["feedback"]} Use {BOUNDS[each["claim"]]} words.'
            )
            for each in record['wishes']
        ]
        for side, (reply, lean) in enumerate(zip(record['replies'], record['leans'], strict=True)):
            own, other = (
                scorer([Candidates('q', to_messages([('user', prompt)]), '', [reply])])['q'][0]
                for prompt in (prompts[side], prompts[1 - side])
            )
            assert lean == pytest.approx(own - other, abs=1e-3)


def test_only_the_persona_tells_which_reply_of_a_pair_is_better(mined, made, tmp_path):
    records, _ = made
    c = stage_config(mined, mined / 'strangers')
    c.data.pairs, c.pairs.sources, c.pairs.against = str(tmp_path / 'pairs'), 'rewrites', 'stranger'
    c.pairs.min_pairs = 1
    counts = pairs.STAGE.run(c)
    made_pairs = [pair for split in ('train', 'validation') for pair in load_records(tmp_path / f'pairs/{split}.jsonl')]
    assert counts['strangers_read'] == 2 * len(records) == len(made_pairs)
    by_turn = {}
    for pair in made_pairs:
        turn, kind = pair['id'].rsplit(' ', 1)
        by_turn.setdefault(turn, {})[kind] = pair
    for record in records:
        own, mirrored = (by_turn[record['id'].rsplit(' ', 1)[0]][kind] for kind in ('own', 'stranger'))
        assert (own['chosen'], own['rejected']) == (mirrored['rejected'], mirrored['chosen'])
        assert own['prompt'] == mirrored['prompt'] == record['messages']
        assert [own['persona'], mirrored['persona']] == [each['persona'] for each in record['wishes']]
        assert own['persona'] != mirrored['persona']
        assert own['user_id'] == mirrored['stranger_id'] == record['user_id']
        assert mirrored['user_id'] == own['stranger_id'] == record['stranger_id']
    probe = json.loads((tmp_path / 'pairs' / 'manifest.json').read_text())['probe']
    assert probe['artefact_auc'] is None or probe['artefact_auc'] == pytest.approx(0.5, abs=0.05)


def test_claims_about_unknown_turns_are_refused_before_the_teacher_is_asked(mined, tmp_path):
    c = stage_config(mined, tmp_path / 'strangers')
    c.data.follow_ups = str(tmp_path / 'follow_ups')
    shutil.copytree(mined / 'follow_ups', tmp_path / 'follow_ups')
    records = load_records(mined / 'follow_ups' / 'records.jsonl')
    write_records(tmp_path / 'follow_ups' / 'records.jsonl', records[:-1])
    with pytest.raises(UserError, match=r"claim about turn 'c15/2', which is not in config\.data\.follow_ups"):
        strangers.STAGE.run(c)


def test_an_answer_to_two_users_is_forgotten_with_either(mined, tmp_path, monkeypatch):
    asked = []

    def generate(task, model_path, prompts):
        asked.extend(prompts)
        return {prompt.id: [] for prompt in prompts}

    monkeypatch.setattr(strangers, 'generate', generate)
    strangers.STAGE.run(stage_config(mined, tmp_path / 'strangers'))
    assert {prompt.id.split()[0]: len(prompt.authors) for prompt in asked} == dict(own=1, stranger=0)


def test_a_contrast_that_is_too_small_drops_the_claim(mined, made, tmp_path):
    records, _ = made
    smallest = sorted(sum(record['leans']) for record in records)
    bound = (smallest[0] + smallest[1]) / 2
    c = stage_config(mined, tmp_path / 'strangers', min_contrast=bound)
    counts = strangers.STAGE.run(c)
    left = load_records(tmp_path / 'strangers' / 'records.jsonl')
    assert left == [record for record in records if sum(record['leans']) >= bound] != records
    assert counts['dropped_not_told_apart'] == made[1].get('dropped_not_told_apart', 0) + 1
