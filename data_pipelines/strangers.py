"""Answer a user's request as two users with different wishes would like it, for counterfactual pairs.

    python -m data_pipelines.strangers --config=configs/NAME.py

A pair of a rewrite and the original reply can be told apart without the persona, for example by length or by author.
The two replies of a counterfactual pair come from the same teacher and answer the same request: only the persona tells
which is better. Each claim in the persona store, made from a user's feedback on a reply, may lead to such a pair:

1. Another author's claim is chosen: the stranger's (see `data_pipelines.preferences.strangers`).
2. The teacher answers the user's request `config.strangers.samples` times under the user's own feedback, and as often
   under the stranger's feedback. The prompt is that of the stage `rewrites` (see `config.rewrites`), and samples are
   dropped for the same reasons.
3. A sample's lean to its own wish is its log-probability after the prompt with that wish's feedback minus its
   log-probability after the prompt with the other feedback, in nats. The model in `rlhi_jax.config.likelihood_path`
   computes it. For each wish, the sample with the largest lean is kept. The sum of the two leans, the contrast, must be
   at least `config.strangers.min_contrast`. (A single lean says little, because one of the two prompts may make all
   samples more likely. In the contrast, this cancels out.)

The stage `pairs` makes two pairs of each record, one for each persona, so every reply is chosen as often as it is
rejected. Unlike in other pairs, the persona contains the claim made from the feedback itself, because this claim
decides which reply is better. Users of a split meet only strangers of the same split.
"""

from data_pipelines.core.stage import KEPT, Stage, Step, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.core.histories import author_id, authors
from data_pipelines.core.inputs import input_digest, input_folder
from data_pipelines.core.passes import at_most, in_blocks, in_passes
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import MINED_SPLITS, FollowUp, StrangerRecord, Wish
from data_pipelines.core.turns import STRANGER, pair_id, request_index, to_messages, to_turns
from data_pipelines.persona.claims import oldest_first, states
from data_pipelines.persona.store import CLAIMS, claims_digest, persona_maker, tokenizer_digest
from data_pipelines.preferences.acceptance import accepted, best
from data_pipelines.preferences.strangers import pools, stranger_to
from data_pipelines.reports.statistics import of_strangers
from data_pipelines.teacher.endpoint import spending
from data_pipelines.teacher.generation import generate, model_identity, rises
from data_pipelines.teacher.rewriting import instruction, prompt_digests
from data_pipelines.text import languages
from rlhi_jax.config import likelihood_path, require, settings_identity, teacher_path
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import digest
from rlhi_jax.sampling.generator import Prompt, Turns
from rlhi_jax.scoring.candidates import Candidates

BLOCK = 256  # claims that a model processes together
SIDES = ('own', 'stranger')


class Case(NamedTuple):
    """A claim with the exchange that it was made from, and the results of the steps so far.

    Attributes:
      turn: the record of the feedback turn.
      turns: the conversation, ending with the request.
      wishes: the wishes of the user and, after the first step, of the stranger, keyed by side.
      samples: the samples that have passed the filters, keyed by side.
      leans: the lean of the sample that the last step chooses for each side, in nats, keyed by side.
    """

    turn: FollowUp
    turns: Turns
    wishes: dict[str, Wish]
    samples: dict[str, list[str]]
    leans: dict[str, float]

    @property
    def name(self) -> str:
        return self.turn['id']

    def asked(self, side: str, settings: ConfigDict) -> Turns:
        """The teacher's prompt under one side's feedback; `settings` is `config.rewrites`."""
        return instruction(self.turns[-1][1], self.turn['reply'], self.wishes[side]['feedback'], settings)


def _identity(config: ConfigDict) -> dict[str, Any]:
    require(config, 'model.path')
    return dict(
        inputs=[input_digest(config, key) for key in ('conversations', 'follow_ups')],
        claims=claims_digest(config),
        tokenizer=tokenizer_digest(config),
        policy=model_identity(config, likelihood_path(config)),
        teacher=model_identity(config, teacher_path(config)),
        prompts=prompt_digests(config.rewrites),
        settings=settings_identity(config, 'strangers')
        | {name: config.rewrites[name] for name in ('shows_reply', 'max_words', 'min_words', 'max_resemblance')}
        | {name: config.personas[name] for name in ('max_claims', 'max_tokens')},
        row_tokens=config.teacher.row_tokens,
        sampler=settings_identity(config, 'sampler'),
        seed=config.seed,
    )


def _work(task: Task) -> dict[str, int]:
    counts: Counter = Counter()
    cases = functools.partial(_cases, task.config)
    pool_of_split = pools((case.turn['split'], case.wishes['own']) for case in cases(Counter()))
    steps = [functools.partial(_met, pool_of_split), functools.partial(_drawn, task), functools.partial(_best, task)]
    chosen = at_most(task.config.strangers.max_claims, cases, lambda case: digest(case.name), 'dropped_over_max_claims')
    return task.write(_records(task, in_passes(chosen, steps, counts), counts), counts)


def _cases(config: ConfigDict, counts: Counter) -> Iterator[Case]:
    """Yield a case for each claim of a split that is mined."""
    persona_of = persona_maker(config)
    folders = input_folder(config, 'follow_ups') / RECORDS, input_folder(config, 'personas') / CLAIMS
    for author in authors(config, *folders):
        turns = {turn['id']: turn for turn in author.records[0]}
        claims = oldest_first(author.records[1])
        history = states(claims, max_claims=config.personas.max_claims)
        for claim, state in zip(claims, history[1:], strict=True):
            counts['claims_read'] += 1
            if (turn := turns.get(claim['id'])) is None:
                raise UserError(
                    f'config.data.personas has a claim about turn {claim["id"]!r}, which is not in '
                    "config.data.follow_ups: rerun the 'personas' stage"
                )
            if turn['split'] not in MINED_SPLITS:
                counts['dropped_test_split'] += 1
                continue
            messages = author.conversations[claim['conversation']]['messages']
            wish = Wish(
                author=author_id(turn['user_id'], turn['conversation']),
                user_id=turn['user_id'],
                feedback=turn['follow_up'],
                claim=claim['text'],
                persona=persona_of(state),
            )
            upto_request = to_turns(messages[: request_index(turn['turn_index']) + 1])
            yield Case(turn, upto_request, dict(own=wish), {}, {})


def _met(pool_of_split: dict[str, list[Wish]], cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with a stranger's wish. Cases for which there is none are dropped and counted."""
    for case in cases:
        stranger = stranger_to(case.wishes['own'], pool_of_split[case.turn['split']], case.name)
        if stranger is None:
            counts['dropped_no_stranger'] += 1
        else:
            yield case._replace(wishes=case.wishes | dict(stranger=stranger))


def _drawn(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with the samples of both sides that pass the filters, if both sides have at least one."""
    config = task.config
    for block in in_blocks(cases, BLOCK):
        prompts = []
        for case in block:
            for side in SIDES:
                asked = case.asked(side, config.rewrites)
                prompts.append(
                    Prompt(
                        f'{side} {case.name}',
                        (*case.turns[:-1], *asked),
                        samples=config.strangers.samples,
                        keep=len(asked),
                        # The teacher's cache forgets an answer without authors as soon as it forgets anybody, which
                        # suits a prompt that joins the words of two users.
                        authors=(case.wishes['own']['author'],) if side == 'own' else (),
                    )
                )
        replies = generate(task, teacher_path(config), prompts)
        for case in block:
            samples = {}
            for side in SIDES:
                drawn = replies[f'{side} {case.name}']
                counts['rewrites_drawn'] += len(drawn)
                rules = _rules(case, side)
                samples[side] = accepted(drawn, *rules, config.rewrites.max_resemblance, counts)
            if all(samples.values()):
                yield case._replace(samples=samples)
            else:
                counts['dropped_no_sample_left'] += 1
                counts['dropped_rewrite_without_the_other_side'] += sum(map(len, samples.values()))


def _rules(case: Case, side: str) -> tuple[list[str], frozenset[str]]:
    """Return the texts that a sample must not copy, and the languages that it may be in."""
    feedback = case.wishes[side]['feedback']
    known = [*(text for _, text in case.turns), case.turn['reply'], feedback]
    return known, languages.wanted(case.turns[-1][1], case.turn['reply'], feedback)


def _best(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[Case]:
    """Yield each case with only the sample of each side that leans most to that side, if their contrast is enough."""
    for block in in_blocks(cases, BLOCK):
        leans = _leans(task, block)
        for case in block:
            chosen = {}
            for side in SIDES:
                leaning = list(zip(case.samples[side], leans[case.name][side], strict=True))
                if most := best(leaning, -math.inf, counts):
                    chosen[side] = most
            if len(chosen) < 2:
                counts['dropped_longer_than_a_row'] += 1
                counts['dropped_rewrite_without_the_other_side'] += len(chosen)
            elif sum(lean for _, lean in chosen.values()) < task.config.strangers.min_contrast:
                counts['dropped_not_told_apart'] += 1
                counts['dropped_rewrite_not_told_apart'] += 2
            else:
                yield case._replace(
                    samples={side: [text] for side, (text, _) in chosen.items()},
                    leans={side: lean for side, (_, lean) in chosen.items()},
                )


def _leans(task: Task, cases: Sequence[Case]) -> dict[str, dict[str, list[float | None]]]:
    """Return by how many nats each sample leans to its own side, keyed by case id and by side.

    A lean is None if the sample and a prompt do not fit in a row of `config.teacher.row_tokens` tokens. The prompts
    contain only the last request of a conversation. All samples of a case are leaves of one tree after the prompt with
    the user's feedback, and of another tree after the prompt with the stranger's.
    """

    def prompt(case: Case, side: str) -> Candidates:
        messages = to_messages(case.asked(side, task.config.rewrites))
        return Candidates(f'lean {side} {case.name}', messages, '', [*case.samples['own'], *case.samples['stranger']])

    both = [(prompt(case, 'own'), prompt(case, 'stranger')) for case in cases]
    leans = {}
    for case, to_user in zip(cases, rises(task, both, likelihood_path(task.config)), strict=True):
        number = len(case.samples['own'])
        to_stranger = [None if lean is None else -lean for lean in to_user[number:]]
        leans[case.name] = dict(own=to_user[:number], stranger=to_stranger)
    return leans


def _records(task: Task, cases: Iterable[Case], counts: Counter) -> Iterator[StrangerRecord]:
    for case in cases:
        counts[f'kept_{case.turn["split"]}'] += 1
        (own,), (stranger,) = (case.samples[side] for side in SIDES)
        yield StrangerRecord(
            id=pair_id(case.name, STRANGER),
            conversation=case.turn['conversation'],
            split=case.turn['split'],
            user_id=case.turn['user_id'],
            stranger_id=case.wishes['stranger']['user_id'],
            messages=to_messages(case.turns),
            wishes=[case.wishes[side] for side in SIDES],
            replies=[own, stranger],
            leans=[case.leans[side] for side in SIDES],
        )
    counts.update(spending(task))


STAGE = Stage(
    name='strangers',
    version=3,
    work=_work,
    output='data.strangers',
    identity=_identity,
    files={RECORDS: KEPT},
    steps=(
        Step('claims', read=('claims_read',)),
        Step('rewrites drawn', dropped=('dropped_rewrite_',)),  # a record keeps two
    ),
    summary=of_strangers,
)

if __name__ == '__main__':
    STAGE.main()
