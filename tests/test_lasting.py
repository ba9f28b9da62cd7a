"""Wishes that also hold for the next, unrelated request, in several languages, and others that do not."""

import tiny

from data_pipelines.checks.teacher import WISHES
from data_pipelines.core.record_files import stream_records
from data_pipelines.persona.audit import fault, remark_fault
from data_pipelines.persona.lasting import OTHER_WORDS, lasts, same_ways
from data_pipelines.simulator.wordings import COMPLAINTS

LASTING = """Shorter, please. | Could you say that in fewer words? | As a table, please. | Write it in plain English.
    Please give me the complete code, not snippets. | Too formal for me. | Cite your sources. | Metric units, please.
    Can you write it in Python? | Explain it step by step. | Do not use emojis. | Less generic, please.
    Kürzer, bitte. | Bitte auf Deutsch. | Schreib es als Liste. | Plus court, s'il vous plaît. | En français, merci.
    Más corto, por favor. | Escribe en español. | Più corto, per favore. | Mais curto, por favor.
    Короче, пожалуйста. | Напиши на русском. | 请简短一点 | 用中文回答 | 短くしてください | 日本語で書いてください"""
OF_THE_TASK = """I want images that exist. | Give me an 8-letter word with o and m. | Make the hero older.
    Add a save button to the form. | Use the second data set. | It still prints 3 instead of 4. | Try again. | Continue.
    That is wrong. | Make the river shorter. | Give me three examples of mammals. | Write a longer poem about bees.
    Explain the third step of the proof. | Der Held soll älter sein. | Ajoute un bouton rouge.
    Añade un botón rojo. | Добавь красную кнопку. | 把主角改成老人 | もう一度計算して"""


def phrases(texts: str) -> list[str]:
    return [' '.join(text.split()) for line in texts.splitlines() for text in line.split('|')]


def test_ways_of_answering_last():
    assert not [text for text in phrases(LASTING) if not lasts(text)]


def test_wishes_with_a_topic_do_not_last():
    assert not [text for text in phrases(OF_THE_TASK) if lasts(text, OTHER_WORDS)]


def test_a_lasting_wish_beside_a_few_other_words_counts_for_a_remark_only():
    remark = 'I asked about bees. Shorter, please.'
    assert lasts(remark, OTHER_WORDS) and not lasts(remark)
    assert not lasts(f'{remark} The queen lays eggs in wax cells, workers gather nectar.', OTHER_WORDS)
    assert not remark_fault(remark, '') and not fault('I like short answers.', remark, '')
    assert fault('I like short answers about bees.', remark, '') == 'does_not_last'


def test_a_claim_asks_for_the_ways_of_its_remark():
    assert same_ways('I like complete code.', 'Give me the complete code, not snippets.')
    assert not same_ways('I like snippets.', 'Give me the complete code, not snippets.')
    assert not same_ways('I like long answers.', 'Shorter!')
    assert fault('I like answers with metric units.', 'Shorter!', '') == 'unsupported'


def test_wishes_of_the_simulated_users_the_check_and_the_example_last():
    complaints = [text for sides in COMPLAINTS.values() for splits in sides.values()
                  for texts in splits.values() for text in texts]  # fmt: skip
    assert len(complaints) > 60 and not [text for text in (*complaints, *WISHES) if remark_fault(text, '')]
    turns = {record['id'] for record in stream_records(tiny.ROOT / 'tests' / 'labels' / 'claims_example.jsonl')}
    remarks = [
        record['messages'][int(turn.rsplit('/', 1)[1])]['content']
        for record in stream_records(tiny.ROOT / 'examples' / 'conversations.jsonl')
        for turn in turns
        if turn.rsplit('/', 1)[0] == record['conversation_id']
    ]
    assert len(remarks) > 30 and not [remark for remark in remarks if not lasts(remark, OTHER_WORDS)]
