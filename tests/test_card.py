"""Check data cards: the numbers against brute force, and hostile text with a Markdown parser."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from data_pipelines import card
from data_pipelines.core.record_files import write_records
from data_pipelines.core.registry import stage_named
from data_pipelines.reports.card_text import escaped, fenced, markdown
from data_pipelines.reports.folders import Folder, folders, funnel
from data_pipelines.reports.statistics import summary
from rlhi_jax.config import base_config
from rlhi_jax.data.encode import Piece
from rlhi_jax.data.plan import RowPlan, save_plan
from rlhi_jax.data.rows import Capacities
from rlhi_jax.data.shards import write_shards
from rlhi_jax.data.tree import Interaction, Message, Pair
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest, file_digest, write_json

HOSTILE = (
    '```\n# No heading\n<script>alert(1)</script>',
    'a | b\n--- | ---\n| c | d |',
    '~~~\r```` x\r\n[link](http://x.y) ![image](x)\n\n***\n',
    '<!-- open\n</details><h1>big</h1> &lt; &#35; **bold** `code`',
    '\x1b[31mred\x07\u2028# line\x85# next\x00',
)
LANGUAGES = ('English', '', '| <b>x</b> | # `a`\n\n# Not | a heading', 'www.x.y')


def messages(*texts: str) -> list[dict]:
    return [dict(role=('user', 'assistant')[i % 2], content=text) for i, text in enumerate(texts)]


def stage(folder: Path, counts: dict, made_from: dict, **files) -> Path:
    folder.mkdir(parents=True)
    for name, records in files.items():
        write_records(folder / f'{name}.jsonl', records)
    extra = {} if folder.name != 'pairs' else dict(probe=dict(artefact_auc=0.625, pairs=9, accepted=False))
    write_json(folder / 'manifest.json', dict(stage=folder.name, counts=counts, made_from=made_from) | extra)
    return folder


def by_split(records: list[dict]) -> dict[str, int]:
    return {f'kept_{split}': number for split, number in Counter(record['split'] for record in records).items()}


@pytest.fixture
def run(tmp_path):
    """A card config with a folder for every stage that mines pairs, and the records in those folders by stage."""
    rng = np.random.default_rng(0)
    users = ['', *(f'u{n}' for n in range(150))]

    def pick(options):
        return options[rng.integers(len(options))]

    def record(name: str, **fields) -> dict:
        return dict(id=name, split=pick(('train', 'train', 'validation')), user_id=pick(users), **fields)

    conversations = [
        record(f'c{n}', language=pick(LANGUAGES), messages=messages(*'abcdefgh'[: rng.integers(1, 8)]))
        for n in range(300)
    ]
    labels = ('reattempt_with_feedback', 'new_request', 'other')
    turns = [record(f't{n}', label=pick(labels), confidence=round(rng.random(), 3)) for n in range(80)]
    for turn in turns:
        turn['mined'] = turn['label'] == labels[0] and turn['confidence'] >= 0.5
    remarks = [dict(id=f'c{n}/0', persona=pick(('', 'Likes it short.', 'Likes tea.'))) for n in range(300)]
    rewrites = [record(f'r{n}', gain=round(rng.normal(), 2)) for n in range(12)]
    replies = [dict(text='x', finished=bool(rng.integers(2))) for _ in range(20)]
    candidates = [record(f'p{n}', persona=pick(('', 'x')), replies=replies[: rng.integers(2, 20)]) for n in range(15)]
    pairs = [
        record(
            f'{HOSTILE[n % 5]}{n} {pick(("rewrite", "best/worst"))}',
            persona=pick(('', 'Likes tea.')),
            prompt=messages(pick(HOSTILE)),
            chosen=[dict(role='assistant', content=pick(HOSTILE) * rng.integers(1, 4))],
            rejected=[dict(role='assistant', content='word ' * rng.integers(1, 60))],
        )
        for n in range(40)
    ]
    split = {name: [pair for pair in pairs if pair['split'] == name] for name in ('train', 'validation')}
    counts = dict(records_read=310, dropped_toxic=7, dropped_seen_before=3, users=9) | by_split(conversations)
    made_from = dict(inputs=[[HOSTILE[1], 'f00d']])
    ingested = stage(tmp_path / 'conversations', counts, made_from, records=conversations)
    made_from = dict(conversations=file_digest(ingested / 'records.jsonl'), settings=dict(min_confidence=0.5))
    counts = dict(turns_read=81, dropped_no_judgement=1, mined=3, teacher_tokens_in=700, teacher_tokens_out=90)
    counts |= dict(teacher_cost_millionths=530) | Counter(f'kept_{turn["label"]}' for turn in turns)
    stage(tmp_path / 'follow_ups', counts, made_from, records=turns)
    counts = dict(remarks=12, claims=9, edited=1, deleted=1, dropped_cut_off=2, users=5, turns=300)
    claims = [dict(id=f'c{n}/2', text=HOSTILE[n % 5], quote=HOSTILE[-n % 5]) for n in range(9)]
    others = dict(claims=claims, users=[dict(user_id=f'u{n}') for n in range(5)])
    stage(tmp_path / 'personas', counts, {}, records=remarks, **others)
    counts = dict(follow_ups_read=80, dropped_no_feedback=60, dropped_no_rewrite_left=8, rewrites_drawn=40)
    counts |= dict(dropped_rewrite_copy=20, dropped_rewrite_refusal=8, feedback_turns=20) | by_split(rewrites)
    stage(tmp_path / 'rewrites', counts, {}, records=rewrites)
    counts = dict(prompts_read=18, prompts_kept=15, replies=200)
    counts |= dict(dropped_fewer_than_two_replies=3, dropped_empty_replies=4)
    stage(tmp_path / 'candidates', counts, {}, records=candidates)
    counts = dict(rewrites_read=20, candidates_read=30, dropped_within_margin=9, kept_all=40)  # one pair is missing
    stage(tmp_path / 'pairs', counts, {}, **split)
    c = base_config()
    for kind in ('conversations', 'follow_ups', 'personas', 'rewrites', 'candidates', 'pairs'):
        c.data[kind] = str(tmp_path / kind)
    c.data.shards, c.data.card = str(tmp_path / 'not_run'), str(tmp_path / 'card')
    records = dict(conversations=conversations, follow_ups=turns, personas=remarks)
    return c, records | dict(rewrites=rewrites, candidates=candidates, pairs=pairs)


def made(c) -> tuple[dict, str]:
    card.STAGE.run(c, overwrite=True)
    folder = Path(c.data.card)
    return json.loads((folder / 'card.json').read_text()), (folder / 'card.md').read_text()


def distribution(values) -> dict:
    values = list(values)
    percentiles = (0, 10, 25, 50, 75, 90, 99, 100)
    numbers = np.percentile(values, percentiles, method='inverted_cdf').tolist()
    named = {str(percentile): value for percentile, value in zip(percentiles, numbers, strict=True)}
    return dict(number=len(values), mean=pytest.approx(np.mean(values)), percentiles=named)


def activity(records) -> dict:
    sizes = sorted(Counter(record['user_id'] for record in records if record['user_id']).values(), reverse=True)
    return dict(
        per_user=distribution(sizes),
        share_of_the_most_active=sum(sizes[: -(-len(sizes) // 100)]) / sum(sizes),
        without_user=sum(not record['user_id'] for record in records),
    )


def number(records, **wanted) -> int:
    return sum(all(record[key] == value for key, value in wanted.items()) for record in records)


def known_users(records, split: str) -> int:
    return len({record['user_id'] for record in records if record['split'] == split} - {''})


def test_it_says_what_brute_force_counts(run):
    c, records = run
    sections = made(c)[0]['sections']
    conversations, turns, pairs = (records[name] for name in ('conversations', 'follow_ups', 'pairs'))
    user_turns = [sum(message['role'] == 'user' for message in each['messages']) for each in conversations]
    assert sections['conversations']['turns_per_conversation'] == distribution(user_turns)
    assert sections['conversations']['users'] == activity(conversations)
    assert sections['conversations']['languages'] == {name: number(conversations, language=name) for name in LANGUAGES}
    for split in ('train', 'validation'):
        of_split = sections['conversations']['splits'][split]
        assert of_split['conversations'] == number(conversations, split=split)
        assert of_split['users'] == known_users(conversations, split)
        turns_of_split = [n for n, each in zip(user_turns, conversations, strict=True) if each['split'] == split]
        assert of_split['user_turns'] == sum(turns_of_split)
        assert sections['follow_ups']['mined'][split] == number(turns, split=split, mined=True)
        of_split = sections['pairs']['splits'][split]
        assert of_split['pairs'] == number(pairs, split=split) and of_split['users'] == known_users(pairs, split)
        assert of_split['with_persona'] == number(pairs, split=split, persona='Likes tea.')
        for source in ('rewrite', 'best/worst'):
            of_source = [pair for pair in pairs if pair['id'].endswith(f' {source}')]
            assert sections['pairs']['sources'][source][split] == number(of_source, split=split)
    for label, statistics in sections['follow_ups']['labels'].items():
        confidences = [turn['confidence'] for turn in turns if turn['label'] == label]
        expected = dict(turns=len(confidences), share=len(confidences) / 80, mean_confidence=np.mean(confidences))
        assert statistics == pytest.approx(expected)
    assert sections['follow_ups']['min_confidence'] == 0.5 and sections['pairs']['probe']['artefact_auc'] == 0.625
    lengths = [len(record['persona'].split()) for record in records['personas'] if record['persona']]
    assert sections['personas']['turns_with_persona'] == len(lengths)
    assert sections['personas']['words'] == distribution(lengths)
    assert sections['rewrites']['gain'] == distribution(record['gain'] for record in records['rewrites'])
    replies = [record['replies'] for record in records['candidates']]
    assert sections['candidates']['replies_per_prompt'] == distribution(map(len, replies))
    finished = [reply['finished'] for drawn in replies for reply in drawn]
    assert sections['candidates']['share_of_replies_finished'] == np.mean(finished)
    texts = {side: [pair[side][0]['content'] for pair in pairs] for side in ('chosen', 'rejected')}
    words = {side: [len(text.split()) for text in each] for side, each in texts.items()}
    for side in texts:
        assert sections['pairs']['lengths'][f'{side}, characters'] == distribution(map(len, texts[side]))
        assert sections['pairs']['lengths'][f'{side}, words'] == distribution(words[side])
    longer = np.mean(np.greater(words['chosen'], words['rejected']))
    assert sections['pairs']['share_of_chosen_longer']['words'] == pytest.approx(longer)
    assert sections['pairs']['users'] == activity(pairs)


def test_the_funnel_adds_up_or_says_that_it_does_not(run):
    c, records = run
    content, text = made(c)
    steps = {name: folder['steps'] for name, folder in content['funnel'].items()}
    checked = {(name, step['unit']): step['adds_up'] for name, of_folder in steps.items() for step in of_folder}
    assert checked == {
        ('conversations', 'records'): True,
        ('follow_ups', 'turns after a reply'): True,
        ('personas', 'remarks'): True,
        ('rewrites', 'follow-ups'): True,
        ('rewrites', 'rewrites drawn'): True,
        ('candidates', 'prompts'): True,
        ('candidates', 'replies'): None,
        ('pairs', 'rewrites and prompts'): False,
    }
    assert text.count('**The counts do not add up**') == 1
    assert '| gain: nats by which the feedback makes a rewrite more likely |' in text
    assert steps['rewrites'][0]['dropped'] == dict(no_feedback=60, no_rewrite_left=8)
    assert steps['rewrites'][1]['dropped'] == dict(rewrite_copy=20, rewrite_refusal=8)
    assert steps['personas'][0]['dropped'] == dict(cut_off=2, deleted=1)
    assert content['funnel']['rewrites']['others'] == dict(feedback_turns=20)
    assert content['funnel']['personas']['others'] == dict(edited=1, users=5, turns=300)
    assert content['made_of']['follow_ups'] == ['conversations'] and content['made_of']['pairs'] == []


@pytest.mark.parametrize(
    'file', ['conversations/records', 'personas/claims', 'personas/users', 'personas/records', 'candidates/records']
)
def test_what_is_not_on_disk_does_not_add_up(run, file):
    c, _ = run
    kind, name = file.split('/')
    path = Path(c.data[kind]) / f'{name}.jsonl'
    path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert made(c)[0]['funnel'][kind]['steps'][0]['adds_up'] is False


@pytest.mark.parametrize('changed, adds_up', [({}, True), (dict(trees=2), False)])
def test_shards_are_held_against_their_trees(tmp_path, changed, adds_up):
    messages = (Message(-1, 'user', 'x'), Message(0, 'assistant', 'a'), Message(0, 'assistant', 'b'))
    manifest = dict(stage='shards', made_from={}, counts=dict(lines_read=1, pairs_kept=1, trees=1) | changed)
    write_shards([Interaction('t', messages, (Pair('p', 0, 1, 2),))], tmp_path, trees_per_shard=1, manifest=manifest)
    assert funnel(Folder('shards', 'shards', tmp_path, stage_named('shards')))[0]['adds_up'] is adds_up


@pytest.mark.parametrize(
    'changed, adds_up', [({}, True), (dict(rows=2), False), (dict(pairs_kept=2, pairs_read=2), False)]
)
def test_row_plans_are_held_against_their_rows_and_pairs(tmp_path, changed, adds_up):
    capacities = Capacities(tokens=8, scored=8, pairs=1)
    counts = dict(pairs_read=1, pairs_kept=1, rows=1) | changed
    identity = dict(capacities=dataclasses.asdict(capacities))
    plan = RowPlan([[(0, Piece(0, (0,)), 0)]], ['p'], capacities, identity, counts)
    save_plan(plan, tmp_path, dict(stage='rows', made_from={}))
    assert funnel(Folder('rows', 'rows', tmp_path, stage_named('rows')))[0]['adds_up'] is adds_up


def test_the_teacher_per_accepted_pair(run):
    c, records = run
    costs = made(c)[0]['teacher']
    each = dict(tokens_in=700 / 40, tokens_out=90 / 40, cost_millionths=530 / 40)
    assert costs == dict(tokens_in=700, tokens_out=90, cost_millionths=530, pairs=40, per_pair=each)


def test_examples_are_the_first_by_hash(run):
    c, records = run
    training = sorted((pair for pair in records['pairs'] if pair['split'] == 'train'), key=lambda p: digest(p['id']))
    assert [pair['id'] for pair in made(c)[0]['examples']['pairs']] == [pair['id'] for pair in training[:5]]


def parsed(text: str):
    return MarkdownIt('commonmark').enable('table').parse(text)


def test_no_text_breaks_out_of_the_card(run):
    c, _ = run
    content, text = made(c)
    tokens = parsed(text)
    pieces = [piece for token in tokens for piece in [token, *(token.children or [])]]
    ours = {'heading_open', 'table_open', 'paragraph_open', 'fence', 'inline', 'text', 'strong_open', 'code_inline'}
    ours |= {'bullet_list_open', 'list_item_open'}
    kinds = {piece.type for piece in pieces if not piece.type.startswith(('tr_', 'th_', 'td_', 'tbody_', 'thead_'))}
    assert {kind for kind in kinds if not kind.endswith('_close')} <= ours
    shown = iter(token.content for token in tokens if token.type == 'fence')
    for pair in content['examples']['pairs']:
        for part in filter(pair.get, ('persona', 'request', 'chosen', 'rejected')):
            visible = pair[part].translate(dict.fromkeys((0, 7, 27), '�'))
            assert next(shown).split() == visible.split()
    assert next(shown, None) is None
    headings = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == 'heading_open']
    assert len(headings) == len(content['funnel']) + len(content['sections']) + 6 + 5  # title, 5 parts, 5 examples
    cells = [
        ''.join(piece.content for piece in tokens[index + 1].children)
        for index, token in enumerate(tokens)
        if token.type == 'td_open'
    ]
    assert {' '.join(name.split()) or 'not stated' for name in LANGUAGES} < set(cells)


@pytest.mark.parametrize(
    'text', [*HOSTILE, '`' * 9, '', '\t# x', 'www.x.y http://x.y a@b.c', '1. x', '- x', 'a_b_ *c*']
)
def test_text_stays_text(text):
    (block,) = parsed(fenced(text))
    assert block.type == 'fence'
    inline = parsed(f'x {escaped(text)}')[1].children
    assert [piece.type for piece in inline if piece.content] == ['text'] * sum(bool(piece.content) for piece in inline)
    visible = ''.join(letter if letter.isprintable() else ' ' for letter in text)
    assert ''.join(piece.content for piece in inline).split() == ['x', *visible.split()]


def test_long_texts_are_cut():
    assert fenced('x' * 2007).endswith('… and 7 more characters.') and '…' not in fenced('x' * 2000)


def test_stages_that_were_not_run_are_left_out(run):
    c, _ = run
    for kind in ('follow_ups', 'personas', 'candidates'):
        c.data[kind] = ''
    c.data.rewrites = str(Path(c.data.rewrites) / 'missing')
    content, text = made(c)
    assert content['left_out'] == [
        *('candidates', 'follow_ups', 'gate', 'personas', 'rewrites', 'rows', 'shards', 'strangers')
    ]
    assert set(content['sections']) == set(content['funnel']) == {'conversations', 'pairs'}
    missing = 'candidates, follow ups, gate, personas, rewrites, rows, shards, strangers'
    assert f'Stages not run, or not set in the config: {missing}.' in text
    assert content['teacher'] is None
    c.data.conversations = c.data.pairs = ''
    with pytest.raises(UserError, match='does not point to the finished folder of any stage'):
        card.STAGE.run(c, overwrite=True)


def test_several_folders_of_pairs_are_told_apart(run, tmp_path):
    c, _ = run
    for objective in ('reward', 'dpo'):
        (tmp_path / objective).mkdir()
        (tmp_path / objective / 'pairs').symlink_to(tmp_path / 'pairs')
    c.data.pairs = ','.join(str(tmp_path / objective / 'pairs') for objective in ('reward', 'dpo', 'none'))
    content, _ = made(c)
    assert {'reward/pairs', 'dpo/pairs'} < set(content['sections']) and 'none/pairs' in content['left_out']
    assert content['teacher']['pairs'] == 40  # each pair counts once


def test_folders_of_several_kinds_are_told_apart_whatever_they_are_called(tmp_path):
    c = base_config()
    for kind in ('pairs', 'shards', 'rows'):
        c.data[kind] = ','.join(str(stage(tmp_path / kind / name, {}, {})) for name in 'ab')
    finished, _ = folders(c)
    assert sorted(folder.name for folder in finished) == [
        f'{kind}/{name}' for kind in ('pairs', 'rows', 'shards') for name in 'ab'
    ]


def test_the_same_folders_give_the_same_bytes(run, tmp_path, monkeypatch):
    c, _ = run
    card.STAGE.run(c)
    assert Path(c.data.card).stat().st_mode & 0o77 == 0
    written = Path(c.data.card, 'card.md').stat().st_mtime_ns
    card.STAGE.run(c)
    assert Path(c.data.card, 'card.md').stat().st_mtime_ns == written
    with monkeypatch.context() as older, pytest.raises(UserError, match='was made with different input'):
        older.setattr(card, 'STAGE', dataclasses.replace(card.STAGE, version=card.STAGE.version + 1))
        card.STAGE.run(c)
    elsewhere = tmp_path / 'moved'
    elsewhere.mkdir()
    other = c.copy_and_resolve_references()
    for kind in ('conversations', 'follow_ups', 'personas', 'rewrites', 'candidates', 'pairs'):
        Path(c.data[kind]).rename(elsewhere / kind)
        other.data[kind] = str(elsewhere / kind)
    other.data.card = str(elsewhere / 'card')
    card.STAGE.run(other)
    for name in ('card.md', 'card.json', 'manifest.json'):
        assert Path(c.data.card, name).read_bytes() == Path(other.data.card, name).read_bytes()


def test_a_stage_without_a_section_of_its_own_shows_its_numbers(run):
    c, _ = run
    content = made(c)[0]
    content['sections'] = dict(openers=dict(kind='openers', records=7, words=summary(Counter([1, 2, 3]))))
    text = markdown(content)
    assert '| records | 7 |' in text and '| words | 3 | 2 |' in text
