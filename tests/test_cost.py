"""The estimate of what a teacher will be asked, with numbers in closed form."""

from collections import Counter

import pytest

from data_pipelines.checks.cost import Asked, Lengths, Work, in_words, lengths_of, work_of_teacher
from data_pipelines.checks.sample import Sample
from data_pipelines.raw.formats import RawConversation
from data_pipelines.teacher.prompts import render
from rlhi_jax.config import base_config

LABELS = Asked(questions=12, characters=200, tokens_in=4800, tokens_out=240, seconds=6)
SENTENCES = Asked(questions=6, characters=40, tokens_in=1200, tokens_out=60, seconds=3)
LENGTHS = Lengths(exchange=1000, quote=80, conversation=3000, reply=600)


def work(follow_ups: float = 1000, **settings) -> dict[str, Work]:
    config = base_config()
    config.personas.samples, config.rewrites.samples, config.sampler.new_tokens = 2, 4, 1000
    config.update_from_flattened_dict(settings)
    labels = LABELS if config.follow_ups.labeller == 'teacher' else None
    return {each.name: each for each in work_of_teacher(config, follow_ups, LENGTHS, labels, SENTENCES)}


def test_closed_form():
    found = work()
    # A built-in label takes 400 + 20 tokens and half a second; a real one has 800 more characters.
    assert found['labels'] == Work('labels', 1000, 400 + 200, 20, 0.5)
    # 250 complaints, two samples; 200 + 10 tokens, and 40 more characters.
    assert found['sentences for personas'] == Work('sentences for personas', 500, 200 + 10, 10, 0.5)
    # 250 complaints, four samples. All 300 tokens of the built-in answers took 9 seconds.
    prompt = len(render('rewrite', feedback='')) / 4
    assert found['rewrites'] == Work('rewrites', 1000, 750 + prompt, 150, pytest.approx(150 * 0.03))
    assert found['rewrites'].tokens == 1000 * (900 + prompt)
    assert found['labels'].price(2, 8) == pytest.approx(1000 * (600 * 2 + 20 * 8) / 1e6)
    assert found['labels'].hours == 500 / 3600


@pytest.mark.parametrize(
    'settings, requests',
    [
        ({'follow_ups.labeller': 'head'}, {'sentences for personas': 500, 'rewrites': 1000}),
        ({'personas.writer': 'quotes'}, {'labels': 1000, 'rewrites': 1000}),
        ({'rewrites.max_turns': 30}, {'labels': 1000, 'sentences for personas': 500, 'rewrites': 120}),
        ({'rewrites.max_turns': 300}, {'labels': 1000, 'sentences for personas': 500, 'rewrites': 1000}),
    ],
)
def test_what_the_settings_leave_to_the_teacher(settings, requests):
    assert {name: each.requests for name, each in work(**settings).items()} == requests


def test_a_rewrite_is_no_longer_than_the_sampler_allows():
    assert work(**{'sampler.new_tokens': 100})['rewrites'].tokens_out == 100


def test_one_line_per_kind_and_the_sum():
    kinds = [Work('labels', 1000, 600, 20, 3.6), Work('rewrites', 500, 100, 100, 7.2)]
    assert in_words(kinds, 1000, 1.0, 10.0) == [
        'What the teacher will be asked about 1,000 follow-ups, assuming that 25% of them are feedback:',
        '  labels: about 1,000 requests, 620,000 tokens, 0.80 in money and 1.0 hours',
        '  rewrites: about 500 requests, 100,000 tokens, 0.55 in money and 1.0 hours',
        '  in all: about 1,500 requests, 720,000 tokens, 1.35 in money and 2.0 hours; prices are in the currency of '
        'config.teacher.price_in.',
    ]


def test_lengths_are_means_over_follow_ups():
    def conversation(*lengths: int) -> RawConversation:
        messages = [dict(role=('user', 'assistant')[i % 2], content='x' * size) for i, size in enumerate(lengths)]
        return RawConversation(id='c', user_id='u', messages=messages)

    conversations = [conversation(10, 3000, 20, 40), conversation(5, 6), conversation(1, 2, 3, 4, 5)]
    sample = Sample(conversations, Counter(), {}, [], 3, True, [])
    assert lengths_of(sample) == Lengths(
        exchange=(10 + 2000 + 20 + 6 + 12) / 3,  # the prompt shows 2000 characters of a text
        quote=(20 + 3 + 5) / 3,
        conversation=(3030 + 6 + 15) / 3,
        reply=(3000 + 2 + 4) / 3,
    )
