"""`rlhi_jax.user_rewards`: from files of preferences to rewards of new users, and what it refuses."""

import numpy as np
import pytest
import tiny
from test_reward_evaluation import write
from test_rewards import sequence

from rlhi_jax.config import base_config
from rlhi_jax.data.tree import Preference
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import read_json
from rlhi_jax.models.checkpoints import open_model
from rlhi_jax.models.decoder import Decoder, variables
from rlhi_jax.models.parameters import load_params
from rlhi_jax.parallel.sharding import make_mesh, on_mesh
from rlhi_jax.scoring.candidates import Candidates
from rlhi_jax.scoring.gaps import pair_states
from rlhi_jax.state_rewards.folder import open_rewards
from rlhi_jax.tokenizers.template import ChatTemplate
from rlhi_jax.user_rewards import evaluate_rewards, fit_rewards


def preferences(users: range, each: int) -> list[dict]:
    """Users who like lists, and users who like prose; nothing but the user tells which."""
    records, rng = [], np.random.default_rng(users.start)
    for user in users:
        for number in range(each):
            words = [f'word{rng.integers(50)}' for _ in range(4)]
            replies = ['- ' + '\n- '.join(words), ' '.join(words) + '.']
            chosen, rejected = replies[:: 1 if user % 2 else -1]
            prompt = [dict(role='user', content=f'Give me {words[0]}.')]
            record = dict(id=f'{user}/{number}', user_id=f'u{user}', persona='', prompt=prompt)
            records.append(record | dict(chosen=tiny._reply(chosen), rejected=tiny._reply(rejected)))
    return records


def settings():
    c = base_config()
    c.model.dtype, c.rows.tokens, c.rows.scored, c.model.logprob_chunk = 'float32', 512, 256, 64
    c.low_rank.rank, c.low_rank.penalty, c.low_rank.steps = 2, 0.1, 200
    return c


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('users')
    model = tiny.write_model(folder / 'model')
    train = write(folder / 'train.jsonl', preferences(range(16), 6))
    fit_rewards(settings(), model, train, 'train', folder / 'rewards', overwrite=False)
    return folder, model


def test_new_users_are_known_after_a_few_preferences(fitted):
    folder, model = fitted
    new = write(folder / 'new.jsonl', preferences(range(100, 108), 24))
    result = evaluate_rewards(settings(), model, new, 'test', folder / 'rewards')
    accuracy = {count: value['mean'] for count, value in result['accuracy'].items()}
    assert result['users'] == 8 and result['pairs'] == 8 * 4
    assert accuracy['0'] == pytest.approx(0.5, abs=0.1)  # half like lists
    assert accuracy['10'] > 0.9


def test_states_are_those_of_plain_sequences(fitted):
    """The last hidden state of a reply, and the mean over its scored tokens, computed one sequence at a time."""
    _, folder = fitted
    model, records = open_model(folder), preferences(range(3), 2)
    parsed: list[Preference] = [tiny.parsed(record) for record in records]
    found = pair_states(settings(), model, parsed)
    template, mesh = ChatTemplate.load(model.tokenizer_path), make_mesh(settings().mesh.to_dict())
    decoder = Decoder(model.spec)
    with on_mesh(mesh):
        params = load_params(decoder, model, mesh, seed=0)
        for record in records:
            for number, side in enumerate(('chosen', 'rejected')):
                item = Candidates(record['id'], record['prompt'], '', ())
                ids, scored = sequence(template, item, record[side][0]['content'], '')
                tokens, position = np.array([ids] * 8), np.tile(np.arange(len(ids)), (8, 1))
                hidden_TD = decoder.apply(variables(params), tokens, position, len(ids) - position)[0]
                expected = np.concatenate([hidden_TD[-1], hidden_TD[scored.start : scored.stop].mean(axis=0)])
                np.testing.assert_allclose(found[record['id']][number], expected, atol=1e-4)


def test_users_without_an_id_teach_what_all_have_in_common(fitted, tmp_path):
    _, model = fitted
    everyone = [record | dict(user_id='') for record in preferences(range(1, 2), 30)]  # all like lists
    fit_rewards(settings(), model, write(tmp_path / 'a.jsonl', everyone), 'train', tmp_path / 'to', overwrite=False)
    rewards = open_rewards(tmp_path / 'to', model=open_model(model).weights)
    assert not rewards.users
    new = write(tmp_path / 'new.jsonl', preferences(range(101, 102), 24))
    result = evaluate_rewards(settings(), model, new, 'test', tmp_path / 'to')
    assert result['accuracy']['0']['mean'] == 1.0


def test_what_is_refused(fitted, tmp_path):
    folder, model = fitted
    c, train, rewards = settings(), str(folder / 'train.jsonl'), folder / 'rewards'
    known = write(tmp_path / 'known.jsonl', preferences(range(2), 24))
    with pytest.raises(UserError, match="--rewards were fitted to the user 'u0' of --pairs"):
        evaluate_rewards(c, model, known, 'test', rewards)
    few = write(tmp_path / 'few.jsonl', preferences(range(200, 202), 20))
    with pytest.raises(UserError, match='no user has more than 20 preferences'):
        evaluate_rewards(c, model, few, 'test', rewards)
    other = tiny.write_model(tmp_path / 'other', spec=tiny.SPEC, seed=5)
    with pytest.raises(UserError, match='are for the states of another model than --model'):
        evaluate_rewards(c, other, train, 'test', rewards)
    with pytest.raises(UserError, match='manifest.json'):
        evaluate_rewards(c, model, train, 'test', tmp_path / 'nothing')
    with pytest.raises(UserError, match='overwrite'):
        fit_rewards(c, model, train, 'train', rewards, overwrite=False)
    c.rows.tokens, c.rows.scored = 32, 32
    c.model.logprob_chunk = 32
    with pytest.raises(UserError, match='no pair fits in a row of 32 tokens'):
        fit_rewards(c, model, train, 'train', tmp_path / 'new', overwrite=False)
    assert not (tmp_path / 'new').exists()


def test_a_head_tells_users_apart_by_their_personas(fitted, tmp_path):
    folder, model = fitted
    personas = ['I like prose.', 'I like lists.']

    def with_personas(users: range) -> list[dict]:
        return [r | dict(persona=personas[int(r['user_id'][1:]) % 2]) for r in preferences(users, 6)]

    c, train = settings(), write(tmp_path / 'train.jsonl', with_personas(range(16)))
    line = fit_rewards(c, model, train, 'train', tmp_path / 'to', kind='persona_head', overwrite=False)
    assert line.startswith('96 pairs of 16 users')
    new = write(tmp_path / 'new.jsonl', with_personas(range(100, 108)))
    result = evaluate_rewards(c, model, new, 'test', tmp_path / 'to')
    accuracy = {name: row['accuracy']['mean'] for name, row in result['conditions'].items()}
    assert accuracy['own'] > 0.9 and accuracy['other'] < 0.1
    assert accuracy['empty'] == pytest.approx(0.5, abs=0.2)  # every second user prefers lists
    about = read_json(tmp_path / 'to' / 'manifest.json', '', fields=())
    assert about['kind'] == 'persona_head' and about['settings'] == c.persona_head.to_dict()
    (tmp_path / 'to' / 'rewards.safetensors').write_bytes(b'{}')
    with pytest.raises(UserError, match='are damaged'):
        evaluate_rewards(c, model, new, 'test', tmp_path / 'to')


def test_ties_are_kept_if_asked_for(fitted, tmp_path):
    _, model = fitted

    def with_ties(users: range, each: int) -> list[dict]:
        records = preferences(users, each)
        return [r | (dict(score_chosen=1, score_rejected=1) if n % 3 == 0 else {}) for n, r in enumerate(records)]

    c, train = settings(), write(tmp_path / 'train.jsonl', with_ties(range(8), 6))
    fit_rewards(c, model, train, 'train', tmp_path / 'without', overwrite=False)
    assert read_json(tmp_path / 'without' / 'manifest.json', '', fields=())['pairs'] == 32
    c.low_rank.ties = True
    fit_rewards(c, model, train, 'train', tmp_path / 'with', overwrite=False)
    assert read_json(tmp_path / 'with' / 'manifest.json', '', fields=())['pairs'] == 48
    new = write(tmp_path / 'new.jsonl', with_ties(range(50, 52), 33))
    results = {name: evaluate_rewards(c, model, new, 'test', tmp_path / name) for name in ('without', 'with')}
    assert [result['counts'].get('dropped_tie', 0) for result in results.values()] == [22, 0]
    assert [result['pairs'] for result in results.values()] == [2 * (22 - 20), 2 * (33 - 20)]
    # Before anything is known of a user, the three outcomes are about equally likely.
    assert results['with']['log_loss']['0']['mean'] == pytest.approx(np.log(3), abs=0.2)


def test_the_folder_says_what_it_was_made_from(fitted):
    folder, model = fitted
    about = read_json(folder / 'rewards' / 'manifest.json', '', fields=())
    assert about['model'] == open_model(model).weights and about['pairs'] == 96 and len(about['users']) == 16
    assert about['settings'] == settings().low_rank.to_dict() and 0 < about['loss'] < 0.5
