"""The line that a stage prints: what it kept and dropped, and what it paid."""

import pytest

from data_pipelines.core.counts import Step, in_words, with_time
from data_pipelines.core.registry import stage_named

REWRITES = dict(
    follow_ups_read=24, feedback_turns=9, rewrites_drawn=18, kept_train=2, kept_validation=1,
    dropped_no_feedback=7, dropped_test_split=8, dropped_no_rewrite_left=5, dropped_over_max_turns=1,
    dropped_rewrite_cut_off=9, dropped_rewrite_preamble=0,
)  # fmt: skip
PAID = dict(teacher_tokens_in=1_200_000, teacher_tokens_out=34_567, teacher_cost_millionths=1_234_567)
LINES = {
    'rewrites': (
        REWRITES,
        'kept 3 of 24 follow-ups (train 2, validation 1), dropped 21 (test split 8, no feedback 7, no rewrite left 5, '
        'others 1)',
    ),
    'follow_ups': (
        dict(turns_read=2000, mined=410, kept_other=1000, kept_new_request=500, kept_continuation=400, kept_x=99)
        | dict(dropped_no_judgement=1)
        | PAID,
        'kept 1,999 of 2,000 turns after a reply (other 1,000, new request 500, continuation 400, others 99), dropped '
        '1 (no judgement 1); 410 mined; the teacher used 1,234,567 tokens, which cost 1.23',
    ),
    'personas': (
        dict(remarks=11, claims=8, deleted=1, dropped_unsupported=2, users=12, users_with_persona=7),
        'kept 8 of 11 remarks, dropped 3 (unsupported 2, deleted 1); 7 users with persona',
    ),
    'satisfaction': (
        dict(prompts_read=12, dropped_prompt_too_long=0, replies=36), '12 prompts read, 36 replies',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', LINES)
def test_a_stage_sums_up_its_counts(name):
    counts, line = LINES[name]
    stage = stage_named(name)
    assert in_words(stage.steps, stage.shown, counts) == line


def test_a_teacher_without_a_price_costs_nothing():
    free = PAID | dict(teacher_cost_millionths=0)
    assert in_words([Step('turns', ('read',))], [], free) == 'the teacher used 1,234,567 tokens'
    cached = dict.fromkeys(PAID, 0)
    assert in_words([Step('turns', ('read',))], [], dict(read=1, kept_a=1) | cached) == 'kept 1 of 1 turns'


def test_the_time_comes_last():
    assert with_time('kept 1 of 1 turns', 61) == 'kept 1 of 1 turns; 1 min 1 s' and with_time('', 0.04) == '0.0 s'
