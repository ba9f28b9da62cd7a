"""Rewrites: the reasons to drop samples, by tables of examples and brute force; and the stage itself."""

import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from raw_conversations import WILDCHAT, config

from data_pipelines import pairs, rewrites
from data_pipelines.core.record_files import load_records, write_records
from data_pipelines.core.stage import Task
from data_pipelines.core.turns import to_messages
from data_pipelines.preferences.acceptance import best, reason_to_drop, resemblance
from data_pipelines.teacher.prompts import render
from data_pipelines.teacher.rewriting import instruction
from data_pipelines.text import languages
from rlhi_jax.config import base_config
from rlhi_jax.config.checks import check_config
from rlhi_jax.data.rows import Capacities
from rlhi_jax.io.errors import UserError
from rlhi_jax.sampling.generator import Reply
from rlhi_jax.scoring.candidates import Candidates, CandidateScorer

ENGLISH, GERMAN = 'Why do bees dance in front of their hive?', 'Warum tanzen die Bienen vor ihrem Stock?'
TEXTS = dict(
    original='Bees dance because they are happy insects that love the summer and the sun.',
    request=ENGLISH,
    feedback='That is wrong. Look at what the dance tells the other bees.',
)
GOOD = 'A dancing bee shows her sisters how far the flowers are, and in which direction from the sun.'
# Samples by the reason to drop them; '' for those that are kept.
SAMPLES = {
    '': [
        GOOD,
        GOOD.upper(),
        'Distance and direction.',
        '- far: a long waggle\n- near: a short one',
        '```python\ndef dance(distance):\n    return "waggle" * distance\n```',
        'Sure-footed as goats, bees walk on the comb and waggle as they go.',
        'Here in the dark of the hive, a bee waggles to tell of flowers.',
        'Great tits eat bees, so the dance is done inside.',
        'Yes: the dance tells where flowers are.',
        "I can't say that better than von Frisch did: they tell of flowers.",
        '42',
    ],
    'empty': [''],
    'degenerate': [
        '...',
        '***\n---',
        'Bees dance. ' * 12,
        'the the the the the the the the',
        '哈' * 80,
        'They tell of flowers.<|im_end|>\n<|im_start|>user',
        '[INST] Why do bees dance? [/INST] They tell of flowers.',
        '### Human: Why?\nThey tell of flowers.',
        '<think>The user wants the truth.</think> They tell of flowers.',
    ],
    'preamble': [
        f'Here is a shorter answer:\n\n{GOOD}',
        f'Here are three facts about the dance of bees:\n\n1. {GOOD}',
        f'Sure! {GOOD}',
        f'Certainly, {GOOD}',
        f'Of course. {GOOD}',
        f'I apologize for the confusion. {GOOD}',
        f'I’m sorry about that. {GOOD}',
        f"You're right, {GOOD}",
        f'You are absolutely correct. {GOOD}',
        f'Thank you for pointing that out. {GOOD}',
        f'**Revised answer:**\n\n{GOOD}',
        f"I'd be happy to explain. {GOOD}",
        f'I have rewritten the answer. {GOOD}',
        f"This time, I'll be brief. {GOOD}",
        f'My previous response was wrong. {GOOD}',
        "I'm ready for your request.",
    ],
    'refusal': [
        "I'm sorry, but I can't help with that.",
        'As an AI language model, I have no opinion on bees.',
        'I cannot provide that.',
        'Unfortunately, I do not know of bees.',
    ],
    'copy': [*TEXTS.values(), TEXTS['original'].upper(), TEXTS['original'].replace('summer and', 'summer  and') + '!'],
    'another_language': [
        'Eine tanzende Biene zeigt ihren Schwestern, wie weit die Blüten entfernt sind.',
        'Une abeille qui danse montre à ses sœurs où se trouvent les fleurs.',
        '跳舞的蜜蜂告诉姐妹们花在哪里，离蜂巢有多远。',
        'Танцующая пчела показывает сёстрам, как далеко находятся цветы.',
    ],
}
OPENINGS = {  # in each language: a good rewrite, one with a preamble, and a refusal
    'fr': (
        'Les abeilles montrent où sont les fleurs.',
        'Bien sûr ! Les abeilles',
        'Je suis désolé, mais je ne peux pas',
    ),
    'de': ('Bienen zeigen einander den Weg.', 'Natürlich! Bienen zeigen', 'Es tut mir leid, aber das kann ich nicht'),
    'es': ('Las abejas muestran el camino.', 'Aquí tienes una versión:\n', 'Lo siento, pero no puedo'),
    'pt': ('As abelhas mostram o caminho.', 'Aqui está a resposta:\n', 'Desculpe, mas não posso'),
    'it': ('Le api mostrano la strada.', 'Ecco la risposta:\n', 'Mi dispiace, ma non posso'),
    'ru': ('Пчёлы показывают дорогу.', 'Конечно! Пчёлы показывают', 'Извините, но я не могу'),
    'zh': ('蜜蜂指路。', '好的，以下是新的回答：', '很抱歉，我无法回答。'),
    'ja': ('ミツバチは道を示します。', 'もちろんです。ミツバチは', '申し訳ありませんが、お答えできません。'),
    'ko': ('꿀벌은 길을 알려 줍니다.', '물론입니다! 꿀벌은', '죄송하지만 도와드릴 수 없습니다.'),
    'ar': ('النحل يدل على الطريق.', 'بالطبع! النحل', 'عذرًا، لا يمكنني المساعدة'),
}
FEEDBACK = {  # on a reply in English to a request in English → the languages that a rewrite may be in
    'Please be brief.': 'en',
    'Ok': 'en',
    'In French, please.': 'fr',
    'Can you translate that into German?': 'de',
    'Spanish please': 'es',
    'Not in Latin!': 'en',
    'French, not English': 'fr',
    'I want this in French not English.': 'fr',
    'Answer in German. I do not understand English.': 'de',
    'I do not understand a word of this so please say it in Dutch.': 'nl',
    'Why not in Italian?': 'it',
    "Why can't you say it in Polish?": 'pl',
    '不要用中文': 'en',
    '为什么用中文回答': 'en',
    'en français, svp': 'fr',
    'auf Deutsch bitte': 'de',
    'Ответь по-русски, пожалуйста': 'ru',
    '请用中文回答': 'zh',
    '日本語で答えてください': 'ja',
    '한국어로 다시 써 줘': 'ko',
    'بالعربية من فضلك': 'ar',
    'Polish it': 'en pl',  # Polish is not asked for, but allowing it does no harm
    'My French neighbour keeps bees; tell it for her.': 'en fr',
    'Das ist mir viel zu lang, sag es bitte kürzer.': 'de en',
    'C’est beaucoup trop long pour moi, sois plus bref.': 'en fr',
}


def reply(text: str, *, finished: bool = True) -> Reply:
    return Reply('r', 0, text, finished)


@pytest.mark.parametrize(('reason', 'text'), [(why, text) for why, texts in SAMPLES.items() for text in texts])
def test_samples_are_dropped_by_reason(reason, text):
    wanted = languages.wanted(ENGLISH, TEXTS['original'], TEXTS['feedback'])
    assert reason_to_drop(reply(text), tuple(TEXTS.values()), wanted, 0.95) == reason


@pytest.mark.parametrize('text', [text for texts in SAMPLES.values() for text in texts if text])
def test_what_was_cut_off_is_dropped(text):
    assert reason_to_drop(reply(text, finished=False), (), frozenset(), 0.95) == 'cut_off'


@pytest.mark.parametrize('code', OPENINGS)
def test_openings_in_other_languages(code):
    reasons = [reason_to_drop(reply(text), (), {code}, 0.95) for text in OPENINGS[code]]
    assert reasons == ['', 'preamble', 'refusal']


@pytest.mark.parametrize('feedback', FEEDBACK)
def test_the_languages_that_feedback_leaves(feedback):
    assert languages.wanted(ENGLISH, TEXTS['original'], feedback) == set(FEEDBACK[feedback].split())


def test_the_languages_of_other_requests():
    assert languages.wanted(GERMAN, '', 'Kürzer!') == {'de'}
    assert languages.wanted(GERMAN, '', 'auf Englisch') == languages.wanted(GERMAN, '', 'In English, please') == {'en'}
    assert languages.wanted('Translate into French: bees dance in summer.', '', 'shorter') == {'en', 'fr'}
    for complaint in (
        'Please do not answer in English.',
        "I don't want it in English!",
        'Why is it in English? I wrote German.',
        'Stop writing in English',
        'bitte nicht auf Englisch',
    ):
        assert languages.wanted(GERMAN, ENGLISH, complaint) == {'de'}, complaint
    # A request may be a text to translate: the user does not object to the language of the reply.
    assert languages.wanted(GERMAN, 'Pourquoi les abeilles dansent-elles devant la ruche ?', 'shorter') == {'de', 'fr'}
    assert languages.wanted('x = [i for i in range(9)]', '', 'Try again with a generator.') == set()  # of any


def test_identification_on_real_replies():
    """WildChat's later replies in English conversations are seldom taken for another language."""
    if not WILDCHAT.exists():
        pytest.skip('the WildChat file is not here (../shared/data/wildchat)')
    fired, replies = 0, 0
    for conversation in map(json.loads, WILDCHAT.read_bytes().splitlines()):
        texts = [message['content'] for message in conversation['messages']]
        if conversation['metadata'].get('language') == 'English':
            for request, first, feedback, second in zip(
                texts[::2], texts[1::2], texts[2::2], texts[3::2], strict=False
            ):
                wanted = languages.wanted(request, first, feedback)
                fired += bool(wanted) and languages.language(second) not in {'', *wanted}
                replies += 1
    assert replies > 300 and fired <= 0.02 * replies


def longest_common(one: str, other: str) -> int:
    """Length of the longest common subsequence, by the textbook recurrence."""
    row = [0] * (len(other) + 1)
    for a in one:
        new = [0]
        for column, b in enumerate(other):
            new.append(row[column] + 1 if a == b else max(row[column + 1], new[column]))
        row = new
    return row[-1]


@given(st.text('abé 。', max_size=12), st.text('abé 。', max_size=12))
def test_resemblance_is_the_share_of_the_longest_common_subsequence(one, other):
    a, b = (' '.join(text.split()) for text in (one, other))
    expected = 2 * longest_common(a, b) / (len(a) + len(b)) if a or b else 1
    assert resemblance(one, other) == pytest.approx(expected)


GAINS = st.lists(st.tuples(st.sampled_from(['a', 'b', 'c']), st.none() | st.sampled_from([-1.0, 0.0, 0.5, 2.0])))


@given(GAINS, st.sampled_from([-5.0, 0.0, 0.5, 9.0]))
def test_the_best_has_the_largest_gain_and_every_sample_is_counted(samples, min_gain):
    counts: Counter = Counter()
    chosen = best(samples, min_gain, counts)
    enough = [(text, gain) for text, gain in samples if gain is not None and gain >= min_gain]
    assert sum(counts.values()) + bool(chosen) == len(samples)
    assert bool(chosen) == bool(enough) and (not chosen or chosen in enough)
    assert not chosen or chosen[1] == max(gain for _, gain in enough)
    for order in itertools.islice(itertools.permutations(samples), 24):
        assert best(order, min_gain, Counter()) == chosen


def test_settings_that_make_no_sense_are_refused():
    for key, value in dict(samples=0, max_resemblance=0.0, min_gain=float('nan')).items():
        c = base_config()
        c.rewrites[key] = value
        with pytest.raises(UserError, match=f'config.rewrites.{key}'):
            check_config(c)


@pytest.fixture(scope='module')
def mined(tmp_path_factory):
    """A tiny model and finished folders of earlier stages: 12 turns of feedback, three of which cannot be used."""
    folder = tmp_path_factory.mktemp('mined')
    tiny.write_model(folder / 'model', spec=tiny.LOOP_SPEC)
    conversations, turns, personas = [], [], []
    for number in range(12):
        name = f'c{number}'
        texts = [f'Question {number}?', f'Answer {number}.', 'Shorter, please.', 'No.', 'In French.', 'Non.']
        messages = to_messages(zip(('user', 'assistant') * 3, texts, strict=True))
        split = 'test' if number == 0 else 'validation' if number == 1 else 'train'
        conversations.append(dict(id=name, user_id=f'u{number}', split=split, messages=messages))
        turns.append(dict(id=f'{name}/2', conversation=name, turn_index=2, user_id=f'u{number}', split=split))
        turns[-1] |= dict(mined=number != 2, request=texts[0], reply=texts[1], follow_up=texts[2])
        if number != 3:
            personas.append(dict(id=f'{name}/0', persona='Likes it short.'))
    for stage, records in dict(conversations=conversations, follow_ups=turns, personas=personas).items():
        (folder / stage).mkdir()
        write_records(folder / stage / 'records.jsonl', records)
        (folder / stage / 'manifest.json').write_text('{}')
    return folder


def stage_config(mined, output, **settings):
    names = ('conversations', 'follow_ups', 'personas')
    c = config(output.parent, rewrites=str(output), **{name: str(mined / name) for name in names})
    c.model.path, c.model.dtype, c.model.logprob_chunk = str(mined / 'model'), 'float32', 64
    c.sampler.update(dict(slots=8, prompt_tokens=900, new_tokens=200))
    c.teacher.row_tokens, c.eval.batch_rows = 2048, 8
    # A random model's gains are small and mostly below 0; this bound lies among them.
    c.rewrites.update(dict(max_feedback_drop=50.0, min_gain=-0.15) | settings)
    return c


def program_flags(c) -> list[str]:
    """The flags that turn a program's default config into this one."""
    changed = flatten(c).items() - flatten(base_config()).items()
    return [f'--config={tiny.CONFIG}', *(f'--config.{name}={value}' for name, value in sorted(changed))]


@pytest.fixture(scope='module')
def whole(mined):
    """The output folder of the stage as a program, never interrupted."""
    c = stage_config(mined, mined / 'whole')
    tiny.run_program('data_pipelines.rewrites', *program_flags(c))
    return mined / 'whole'


def assert_nothing_is_lost(output):
    counts = json.loads((output / 'manifest.json').read_text())['counts']
    records = load_records(output / 'records.jsonl')
    dropped = {name: count for name, count in counts.items() if name.startswith('dropped_')}
    samples = sum(count for name, count in dropped.items() if name.startswith('dropped_rewrite_'))
    kept = counts['kept_train'] + counts.get('kept_validation', 0)
    assert kept == len(records) > 0
    assert counts['rewrites_drawn'] == samples + kept
    assert counts['follow_ups_read'] == 12 == sum(dropped.values()) - samples + kept
    assert dropped['dropped_test_split'] == dropped['dropped_no_feedback'] == 1
    assert dropped['dropped_persona_would_know_it'] == 1
    assert dropped['dropped_rewrite_cut_off'] and dropped['dropped_rewrite_not_better']
    assert all(record['gain'] >= -0.15 and record['rewrite'] != record['original'] for record in records)


def test_counts_add_up(mined, whole, tmp_path):
    assert_nothing_is_lost(whole)
    control = stage_config(mined, tmp_path / 'control', from_scratch=True, regenerate=False)
    rewrites.STAGE.run(control)
    assert_nothing_is_lost(tmp_path / 'control')


def log_prob_given(mined, c, messages, reply: str) -> float:
    """The log-probability of a reply after messages, scored alone."""
    capacities = Capacities(tokens=2048, scored=512, pairs=1)
    scorer = CandidateScorer(c, str(mined / 'model'), capacities, sees_persona=False)
    return scorer([Candidates('q', messages, '', [reply])])['q'][0]


def test_the_gain_is_what_the_feedback_adds(mined, whole):
    """The teacher, asked about each rewrite alone, gives the same difference between feedback and mere dislike."""
    c = stage_config(mined, whole)
    for record in load_records(whole / 'records.jsonl')[:3]:
        rise = 0.0
        for sign, feedback in ((1, record['feedback']), (-1, rewrites.DISLIKE)):
            asked = dict(role='user', content=render('rewrite', feedback=feedback))
            shown = [*record['messages'], dict(role='assistant', content=record['original']), asked]
            rise += sign * log_prob_given(mined, c, shown, record['rewrite'])
        assert record['gain'] == pytest.approx(rise, abs=1e-3)


def test_without_the_reply_the_teacher_reads_request_remark_and_bounds_in_one_turn(mined, tmp_path, monkeypatch):
    """The gain compares that prompt with the one of a plain retry, which lacks only the remark."""
    asked = {}

    def generate(task, model_path, prompts):
        asked.update({prompt.id: prompt for prompt in prompts})
        return {
            prompt.id: [Reply(prompt.id, 0, GOOD, True), Reply(prompt.id, 1, 'Nectar.', True)] for prompt in prompts
        }

    monkeypatch.setattr(rewrites, 'generate', generate)
    options = dict(shows_reply=False, regenerate=False, min_words=20, max_words=60, min_gain=-99.0)
    for name, retry in (('rewrites', False), ('retries', True)):
        c = stage_config(mined, tmp_path / name, from_scratch=retry, **options)
        rewrites.STAGE.run(c)
        record = load_records(tmp_path / name / 'records.jsonl')[-1]
        request = record['messages'][-1]['content']
        shorter = len(record['original'].split()) // 2
        with_remark = f'{request}\n\nShorter, please. Use at most {shorter} words.'
        without = f'{request}\n\nUse 20 to 60 words.'
        prompt = asked[f'rewrite {record["id"]}']
        assert prompt.turns == (('user', without if retry else with_remark),) and prompt.keep == 1
        given, plain = (
            log_prob_given(mined, c, to_messages([('user', text)]), record['rewrite'])
            for text in (with_remark, without)
        )
        assert record['gain'] == pytest.approx(given - plain, abs=1e-3)


@pytest.mark.parametrize(
    ('words', 'least', 'feedback', 'bounds'),
    [
        (70, 0, 'Why?', 'at most 70'),
        (70, 20, 'Why?', '20 to 70'),
        (3, 0, 'Why?', 'at most 60'),
        (70, 20, 'Too long.', 'at most 35'),
        (300, 20, 'Too long.', 'at most 60'),
        (1, 20, 'Too long.', 'at most 1'),
        (70, 20, 'Longer, please.', 'at least 140'),
        (10, 20, 'Longer, please.', 'at least 60'),
        (70, 20, '', '20 to 70'),
    ],
)
def test_how_long_a_rewrite_may_be(words, least, feedback, bounds):
    """As long as the reply that it replaces, unless the feedback is about the length."""
    settings = base_config().rewrites
    settings.shows_reply, settings.max_words, settings.min_words = False, 60, least
    ((_, text),) = instruction(ENGLISH, 'word ' * words, feedback, settings)
    assert text == f'{ENGLISH}\n\n' + f'{feedback} Use {bounds} words.'.strip()


def test_what_the_conversation_holds_already_is_a_copy(mined, tmp_path, monkeypatch):
    """Earlier replies count too: one of them in place of an answer is not a rewrite."""
    earlier = (('user', 'And wasps?'), ('assistant', 'Wasps hunt flies and build their nests of paper.'))
    turns, next_reply = (*earlier, ('user', ENGLISH)), 'They tell of their flowers.'
    turn = dict(id='c/4', conversation='c', user_id='u', follow_up=TEXTS['feedback'], reply='They like it.')
    case = rewrites.Case(turn, turns, next_reply=next_reply, original=TEXTS['original'])
    samples = [GOOD, earlier[1][1], TEXTS['original'], next_reply]
    monkeypatch.setattr(rewrites, 'generate', lambda *_: {'rewrite c/4': [reply(text) for text in samples]})
    counts = Counter()
    (drawn,) = rewrites._drawn(Task(stage_config(mined, tmp_path / 'x'), tmp_path, 'x', 'rewrites'), [case], counts)
    assert drawn.samples == [GOOD] and counts == dict(rewrites_drawn=4, dropped_rewrite_copy=3)


def test_killed_it_ends_in_the_same_bytes(mined, whole):
    killed = mined / 'killed'
    flags = program_flags(stage_config(mined, killed))
    command = [sys.executable, '-m', 'data_pipelines.rewrites', *flags]
    running = subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and len(tiny.journaled(killed)) < 30:  # half of the rewrites are drawn
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL and not killed.exists()
    tiny.run_program('data_pipelines.rewrites', *flags)
    for name in ('records.jsonl', 'manifest.json'):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def flatten(c, prefix: str = '') -> dict:
    flat = {}
    for name, value in c.items():
        flat |= flatten(value, f'{prefix}{name}.') if hasattr(value, 'items') else {f'{prefix}{name}': value}
    return flat


def write_rewrites(folder, *rewrites):
    """A finished folder of rewrites, each given as (split, text)."""
    common = dict(user_id='', persona='', messages=[dict(role='user', content='?')], original='No.', gain=1.0)
    folder.mkdir()
    records = [common | dict(id=f'c{n}/2', split=split, rewrite=text) for n, (split, text) in enumerate(rewrites)]
    write_records(folder / 'records.jsonl', records)
    (folder / 'manifest.json').write_text('{}')


def test_too_few_pairs_are_refused(tmp_path):
    folder = tmp_path / 'rewrites'
    good = [(split, f'Yes, {n}.') for n, split in enumerate(['train'] * 5 + ['validation'] * 3)]
    write_rewrites(folder, *good, ('train', 'I cannot help.'))
    c = config(tmp_path, rewrites=str(folder), pairs=str(tmp_path / 'pairs'))
    c.pairs.sources = 'rewrites'
    with pytest.raises(UserError, match=r'^only 5 training pairs .* config.pairs.min_pairs is 16 .*_is_a_refusal": 1'):
        pairs.STAGE.run(c)
    assert not (tmp_path / 'pairs').exists()
    c.pairs.min_pairs = 5
    assert pairs.STAGE.run(c)['kept_rewrites_train'] == 5
    c.pairs.min_pairs = 4  # stops nothing, changes nothing
    pairs.STAGE.run(c)
    c.pairs.min_pairs = 6
    with pytest.raises(UserError, match='^only 5 training pairs'):
        pairs.STAGE.run(c)
    c.pairs.sources = 'rewrites,rewrites'
    with pytest.raises(UserError, match='unknown or repeated'):
        pairs.STAGE.run(c)


def test_a_source_without_a_folder_is_left_out(tmp_path, capsys):
    write_rewrites(tmp_path / 'rewrites', *(('train', f'Yes, {n}.') for n in range(3)))
    c = config(tmp_path, rewrites=str(tmp_path / 'rewrites'), pairs=str(tmp_path / 'pairs'))
    c.pairs.min_pairs = 1
    assert c.pairs.sources == 'rewrites,candidates' and not c.data.candidates
    assert pairs.STAGE.run(c) == dict(kept_rewrites_train=3, rewrites_read=3, with_persona=0)
    assert 'config.data.candidates is empty' in capsys.readouterr().out
    c.data.rewrites = ''
    with pytest.raises(UserError, match='config.data.rewrites is empty'):
        pairs.STAGE.run(c)
