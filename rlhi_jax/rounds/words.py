"""Describes the results of a round in words: a one-sentence summary, caveats and next steps."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config.loop_paths import METHODS, is_gated, method_of
from rlhi_jax.evaluation.conditions import CONDITIONS
from rlhi_jax.evaluation.statistics import MIN_USERS
from rlhi_jax.rounds.in_force import LINK


def summary(report: dict[str, Any]) -> str:
    """Return a sentence that states how many items each part of the round produced, and the policy's results.

    Parts that have not been run yet are left out.
    """
    funnel, steps = report['funnel'], []
    if counts := funnel.get('follow_ups'):
        steps.append(_number(counts['mined'], 'complaint'))
    if counts := funnel.get('personas'):
        steps.append(_number(counts['claims'], 'claim'))
    if counts := funnel.get('rewrites'):
        steps.append(_number(_kept(counts), 'rewrite'))
    if counts := funnel.get('strangers'):
        steps.append(f'{_number(_kept(counts), "request")} answered under two wishes')
    policy = METHODS[report['method']].trains[-1]
    if counts := funnel.get(f'{policy}: pairs'):
        steps.append(_number(_kept(counts), 'pair'))
    text = ' → '.join(steps) or 'Nothing has been made yet'
    if evaluation := report.get(policy, {}).get('evaluation'):
        condition = next(name for name in CONDITIONS if name in evaluation['conditions'])
        accuracy = evaluation['conditions'][condition]['accuracy']
        enough = evaluation['users'] >= MIN_USERS
        interval = f' [{accuracy["low"]:.0%}, {accuracy["high"]:.0%}]' if enough else ''
        text += (
            f'; the policy prefers the chosen reply in {accuracy["mean"]:.0%}{interval} of '
            f'{_number(evaluation["pairs"], "held-out pair")} from {_number(evaluation["users"], "user")} '
            f'({condition} persona' + (')' if enough else '; too few users for an interval)')
        )
    if satisfaction := report.get('satisfaction'):
        gaps = {when: model['gap'] for when, model in satisfaction['models'].items()}
        text += (
            f'; replies under their own persona satisfy {_number(satisfaction["users"], "simulated user")} more often '
            f'than replies under the opposite persona, by {_points(gaps["before"])} before training and by '
            f'{_points(gaps["after"])} after it'
        )
    return text


def _points(gap: dict[str, float]) -> str:
    return f'{gap["mean"]:.2f} [{gap["low"]:.2f}, {gap["high"]:.2f}]'


def _kept(counts: dict[str, int]) -> int:
    return sum(number for name, number in counts.items() if name.startswith('kept_'))


def _number(number: int, unit: str) -> str:
    return f'{number:,} {unit}' + ('' if number == 1 else 's')


def models(config: ConfigDict) -> dict[str, str]:
    """Return the names of the policy and of its teacher, without their folders or addresses."""
    policy = Path(config.model.path).name
    return dict(policy=policy, teacher=config.teacher.model or Path(config.teacher.path).name or f'{policy} itself')


def notes(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> list[str]:
    """Return lines of text to print after the summary: caveats, the locations of the results, and next steps."""
    lines = []
    if config.loop.smoke:
        lines.append('This is a smoke test with few users and few steps: its figures are not evidence.')
    if counts := report['funnel'].get('personas'):
        share = counts['turns_with_persona'] / max(counts['turns'], 1)
        lines.append(
            f'{share:.0%} of the turns that can be mined have a persona; nothing is known yet about the other users.'
        )
    if not config.teacher.path and config.loop.method != 'oracle':
        lines.append(
            f'The teacher is the policy itself ({Path(config.model.path).name}): unless that is a strong model, this '
            'run tests the plumbing only. Set config.teacher.path to a stronger model.'
        )
    if reason := report.get('satisfaction_not_evaluated'):
        lines.append(f'Satisfaction was not evaluated: {reason}')
    if verdict := report.get('gate'):
        said = 'The new policy is promoted' if verdict['promoted'] else 'The new policy is not promoted'
        lines += [f'{said}: {"; ".join(verdict["why"])}', f'Policy in force: {workdir}/{LINK}']
    elif config.loop.gate and not is_gated(config):
        lines.append(
            f'No gate judged the new policy, because config.loop.method={config.loop.method!r} with these settings '
            'makes no pairs of held-out users: judge the policy yourself before you use it.'
        )
    lines.append(f'Data card: {workdir}/card/card.md')
    lines += [f'Model: {workdir}/{objective}/huggingface' for objective in method_of(config).trains]
    lines.append(
        'Next: read the card; correct personas with `python -m data_pipelines.persona_store` and run the loop with '
        '--redo; sample from the policy with `python -m rlhi_jax.generate`'
    )
    return lines
