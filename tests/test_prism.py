"""PRISM as published: conversations with rated replies become preferences, split by participant."""

import json

import tiny


def reply(turn, content, score, kept):
    rating = dict(model_provider='p', model_name='m', within_turn_id=0, score=score, if_chosen=kept)
    return dict(rating, turn=turn, role='model', content=content)


def conversation(name, user):
    history = [dict(turn=0, role='user', content='Why?')]
    history += [reply(0, 'Good.', 90, True), reply(0, 'Fair.', 50, False), reply(0, 'Bad.', 5, False)]
    history += [dict(turn=1, role='user', content='And then?'), reply(1, 'A', 60, False), reply(1, 'B', 55, True)]
    history += [dict(turn=2, role='user', content='So?'), reply(2, 'C', 10, False), reply(2, 'D', 70, True)]
    return dict(conversation_id=name, user_id=user, conversation_type='unguided', conversation_history=history)


def test_best_over_worst_after_the_replies_that_were_kept(tmp_path):
    lines = [json.dumps(conversation(f'c{n}', f'user{n % 5}')) for n in range(20)]
    lines += ['{', '[]', json.dumps(dict(user_id='user1', conversation_history=[{}]))]
    (tmp_path / 'conversations.jsonl').write_text('\n'.join(lines))
    survey = [dict(user_id=f'user{n}', system_string=f' Be brief, {n}. ', self_description='secret') for n in range(4)]
    (tmp_path / 'survey.jsonl').write_text('\n'.join(map(json.dumps, survey)))
    files = [f'--{name}={tmp_path / name}.jsonl' for name in ('conversations', 'survey')]
    tiny.run_program('data_pipelines.sources.prism', *files, f'--to={tmp_path / "pairs"}', '--folds=3')
    by_split = {
        split: [json.loads(line) for line in (tmp_path / 'pairs' / f'{split}.jsonl').read_text().splitlines()]
        for split in ('train', 'validation')
    }
    pairs = by_split['train'] + by_split['validation']
    assert len(pairs) == 40
    assert {pair['id'] for pair in pairs} == {f'c{n}/{turn_index}' for n in range(20) for turn_index in (0, 4)}
    users = [{pair['user_id'] for pair in of_split} for of_split in by_split.values()]
    assert all(users) and not users[0] & users[1]
    for pair in pairs:
        prompt = [message['content'] for message in pair['prompt']]
        sides = pair['chosen'][0]['content'], pair['rejected'][0]['content']
        first = pair['id'].endswith('/0')
        assert prompt == (['Why?'] if first else ['Why?', 'Good.', 'And then?', 'B', 'So?'])
        assert sides == (('Good.', 'Bad.') if first else ('D', 'C'))
        number = pair['user_id'].removeprefix('user')
        assert pair['persona'] == ('' if number == '4' else f'Be brief, {number}.') and 'secret' not in str(pair)
    counts = json.loads((tmp_path / 'pairs' / 'manifest.json').read_text())['counts']
    assert counts['turns_read'] == 60 == len(pairs) + counts['dropped_within_margin']
    assert (counts['dropped_no_record'], counts['dropped_no_conversation']) == (2, 1)
    again = [*files, f'--to={tmp_path / "pairs"}', '--folds=3', '--overwrite', '--min_rating_gap=70']
    tiny.run_program('data_pipelines.sources.prism', *again)
    lines = [*(tmp_path / 'pairs').glob('*.jsonl')]
    ids = [json.loads(line)['id'] for path in lines for line in path.read_text().splitlines()]
    assert len(ids) == 20 and all(name.endswith('/0') for name in ids)  # 90 over 5; 70 over 10 is too close
    refused = tiny.run_program('data_pipelines.sources.prism', files[0], check=False)
    assert refused.returncode == 2 and '--survey' in refused.stderr
