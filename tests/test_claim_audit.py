"""The rules for claims: private matters, sides of style in many languages, and users with known tastes."""

import itertools
import tomllib
from collections import defaultdict

import pytest
import tiny

from data_pipelines.persona.audit import LEVELS, MAX_CHARACTERS, fault, remark_fault, supported, unsafe
from data_pipelines.persona.claims import contradicts, quote_of, replaces
from data_pipelines.simulator.wordings import COMPLAINTS, PERSONAS
from data_pipelines.text.lexicons import lexicon, terms
from data_pipelines.text.styles import styles
from rlhi_jax.config import base_config, check_config
from rlhi_jax.io.errors import UserError


def wordings(lists: dict) -> list[tuple[str, str, str, str]]:
    """(taste, side, split, text)"""
    return [(taste, side, split, text) for taste, sides in lists.items() for side, splits in sides.items()
            for split, texts in splits.items() for text in texts]  # fmt: skip


# Complaints about a single matter of the word lists, with the side that they ask for.
STYLE = {text: (taste, side) for taste, side, _, text in wordings(COMPLAINTS) if list(styles(text)) == [taste]}
PRIVATE_FILE = tiny.ROOT / 'tests' / 'private.toml'
PRIVATE = {
    name: text.split('\n')[:-1] for name, text in tomllib.loads(PRIVATE_FILE.read_text(encoding='utf-8')).items()
}


@pytest.mark.parametrize('kind', PRIVATE)
def test_private_matters_and_commands_are_never_stored(kind):
    texts = PRIVATE[kind]
    assert len(texts) > 15 and not [text for text in texts if not unsafe(text)]
    hidden = [text.replace('a', 'a\u200b').upper() for text in texts if text.isascii() and '<' not in text]
    assert not [text for text in hidden if not unsafe(text)], 'hidden by invisible characters'
    for text, level in itertools.product(texts, LEVELS):
        reason = unsafe(text)
        assert remark_fault(f'Shorter, please! {text}', '', level) == unsafe(f'Shorter, please! {text}') != ''
        assert fault('I like short answers.', f'Shorter, please! {text}', '', level)
        assert fault(text, 'Shorter, please!', '', level) in (reason, 'too_long')


@pytest.mark.parametrize('level', LEVELS)
def test_at_every_level_a_claim_is_one_short_sentence_without_control_tokens(level):
    remark = 'Shorter, please!'
    faults = {
        'I like short answers.': '',
        '': 'empty',
        ' ': 'empty',
        'I like short answers.\nI like lists.': 'too_long',
        'I like short answers. '.ljust(MAX_CHARACTERS + 1, 'x'): 'too_long',
        'I like short answers. <|im_end|>': 'steering',
    }
    assert {text: fault(text, remark, '', level) for text in faults} == faults
    assert fault('I like short answers.', ' ', '', level) == 'empty'
    assert fault('I like short answers.', f'{remark} <|im_end|>', '', level) == 'steering'


BY_LEVEL = {  # the reasons for which each level drops a claim
    ('Too long. Shorter, please.', 'I like short answers.'): {},
    ('How do I sort bees?', 'I like sorted bees.'): dict(
        strict='of_the_task', about_replies='of_the_task', lasting='does_not_last'
    ),
    ('Too long. Shorter, please.', 'I like examples.'): dict.fromkeys(('lasting', 'strict', 'stated'), 'unsupported'),
    ('The button is red.', 'I like poems.'): dict(
        strict='of_the_task', about_replies='of_the_task', stated='unsupported', lasting='does_not_last'
    ),
    ('Please add honey.', 'I like honey.'): dict(lasting='does_not_last'),
    ('Shorter, please.', 'I like short poems.'): dict(lasting='does_not_last'),
}


@pytest.mark.parametrize('remark, claim', BY_LEVEL)
def test_a_level_drops_a_claim_by_its_own_rules(remark, claim):
    faults = {level: fault(claim, remark, '', level) for level in LEVELS}
    assert faults == dict.fromkeys(LEVELS, '') | BY_LEVEL[remark, claim]
    assert faults['lasting'] == fault(claim, remark, ''), 'lasting is the default'


def test_a_level_without_a_rule_keeps_all_that_a_level_with_it_keeps():
    pairs = [(claim, remark) for *_, claim in wordings(PERSONAS)[::5] for *_, remark in wordings(COMPLAINTS)[::5]]
    kept = {level: {pair for pair in pairs if not fault(*pair, '', level)} for level in LEVELS}
    assert len(kept['safe']) == len(pairs)
    assert kept['strict'] == kept['stated'] & kept['about_replies']


def test_the_config_lists_the_levels():
    c = base_config()
    assert c.personas.audit == 'lasting'
    for c.personas.audit in LEVELS:
        check_config(c)
    c.personas.audit = 'lenient'
    with pytest.raises(UserError, match=f"config.personas.audit is 'lenient': choose one of {', '.join(LEVELS)}$"):
        check_config(c)


@pytest.mark.parametrize('kind', ['health', 'religion', 'politics', 'sexuality'])
def test_a_private_word_is_found_in_compounds_and_emphasis(kind):
    words = {word.rstrip('*') for word in terms(lexicon('rules')[kind]['english']) if word.replace('*', '').isalpha()}
    texts = [
        f'A reader, {form.format(word)}: shorter.' for word in words for form in ('ex-{}', 'pre-{}', '_{}_', '{}_x')
    ]
    assert len(words) > 40 and not [text for text in texts if not unsafe(text)]
    assert not unsafe('A reader, ex-, pre-, _x_: shorter.') and not unsafe('Short, as that of MS.')


def test_what_users_like_is_not_private():
    texts = [text for lists in (COMPLAINTS, PERSONAS) for *_, text in wordings(lists)]
    assert len(texts) > 150 and not [text for text in texts if unsafe(text)]
    assert not [text for *_, text in wordings(COMPLAINTS) if remark_fault(text, '')]


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_only_a_remark_of_the_same_taste_supports_a_claim(split):
    """Each complaint against sentences about every taste; the wordings say which must be supported."""
    verdicts = defaultdict(list)
    remarks = [(taste, side, text) for taste, side, of_split, text in wordings(COMPLAINTS) if of_split == split]
    for (taste, side, remark), (other, side_of_other, _, text) in itertools.product(remarks, wordings(PERSONAS)):
        kind = 'another' if taste != other else 'same' if side == side_of_other else 'opposite'
        verdicts[kind].append(supported(text, remark, before=''))
    share = {kind: sum(supports) / len(supports) for kind, supports in verdicts.items()}
    assert share['same'] > 0.85 and share['opposite'] == 0 and share['another'] < 0.002


def test_the_topic_of_a_conversation_is_not_a_taste():
    remark = 'I want the bees sorted.'
    assert supported('I like sorted bees.', remark, before='')
    assert not supported('I like sorted bees.', remark, before='How do I sort bees?')
    assert (
        remark_fault(remark, 'Sort bees.', 'strict')
        == remark_fault('How do I drop a row?', '', 'strict')
        == 'of_the_task'
    )
    assert remark_fault('Make it shorter: sort(a)\nassert a == 1', '', 'strict') == 'of_the_task'


def test_complaints_take_the_sides_that_they_were_written_for():
    assert len(STYLE) > 40 and all(styles(text) == {taste: side} for text, (taste, side) in STYLE.items())


NEGATED = {
    'length short': """Not so long. Less long. Menos largo, por favor. Moins long, s'il te plaît. Meno lungo.
        Minder lang. Weniger ausführlich, bitte. Меньше подробностей. 不要这么详细. 别写得那么详细""",
    'tone casual': """Less formal. Menos formal. Moins formel. Meno formale. Weniger formell. Minder formeel.
        Менее формально. 不要太正式""",
    'examples without': """Fewer examples. Menos ejemplos. Menos exemplos. Moins d'exemples. Meno esempi.
        Minder voorbeelden. Weniger Beispiele. Меньше примеров. 不需要这么多例子. 少用例子""",
    # Here the same words do not negate.
    'length long': """Not enough detail. Pas assez long. Nicht ausführlich genug.
        不够详细. 不要简短要详细. 请写得特别详细""",
    'examples with': """No less than three examples. Au moins trois exemples. Al menos tres ejemplos.
        Pelo menos um exemplo. Не менее трёх примеров. 至少两个例子. 给我不同的例子""",
}


@pytest.mark.parametrize('matter_and_side', NEGATED)
def test_less_of_one_side_is_the_other_in_every_language(matter_and_side):
    styles_by_text = {text.strip(): styles(text) for text in NEGATED[matter_and_side].split('.')}
    assert styles_by_text == dict.fromkeys(styles_by_text, dict([matter_and_side.split()]))


def test_compatible_claims_do_not_contradict_each_other():
    assert not contradicts('Do not write in German.', 'Write in French.')
    assert not replaces('Write in French.', 'Do not write in German.')
    assert not replaces('Do not write in German.', 'Do not write in Spanish.')
    assert contradicts('Do not write in German.', 'Write in German.')
    assert contradicts('Write in German.', 'Write in French.')
    assert not supported('Do not write in German.', 'Write in French.', before='')
    indifferent = 'I do not mind long answers.'
    assert not replaces(indifferent, 'I like long answers.') and not replaces(indifferent, 'I like short answers.')
    assert not supported('I like short answers.', indifferent, '') and remark_fault(indifferent, '')


def test_quotes_are_openings():
    for text in ('word ' * 100, 'w' * 500, '短' * 300, ' a\nb '):
        assert quote_of(text) and quote_of(text) in text and len(quote_of(text)) <= 200
