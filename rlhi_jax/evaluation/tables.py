"""Prints results as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhi_jax.evaluation.conditions import CONDITIONS
from rlhi_jax.evaluation.statistics import shown
from rlhi_jax.objectives import OBJECTIVES


def print_report(report: dict[str, Any]) -> None:
    """Print the loop's report: a summary, accuracy on held-out pairs, satisfaction, example pairs and notes.

    Intervals are 95 % confidence intervals over users.
    """
    console = Console(width=118)
    for table in _accuracy_table(report):
        console.print(table)
    if 'satisfaction' in report:
        for table in _satisfaction_tables(report['satisfaction']):
            console.print(table)
    for pair in report['pairs_to_read']:
        lines = (f'[{name}] {text[:400]}' for name, text in pair.items())
        console.print('\n'.join(lines), '', markup=False, sep='\n')
    console.print(report['summary'], markup=False)
    for note in report['notes']:
        console.print(note, markup=False)


def _accuracy_table(report: dict[str, Any]) -> list[Table | str]:
    """Return a table of accuracy on held-out pairs, per persona condition, before and after training.

    The column 'artefact AUC' shows how well a classifier that sees only the replies recognises the chosen one (0.5:
    no better than chance). For an objective that was not evaluated, a line below the table gives the reason. If no
    objective was evaluated, only these lines are returned.
    """
    table = Table('held-out pairs', *CONDITIONS, 'artefact AUC', title='Accuracy by persona condition')
    lines = []
    for objective in (name for name in report if name in OBJECTIVES):
        section = report[objective]
        auc = section.get('probe', {}).get('artefact_auc')  # an online run has no probe
        probed = 'too few pairs' if auc is None else f'{auc:.2f}'
        for when, evaluation in (('before', section.get('before')), ('after', section['evaluation'])):
            if evaluation:
                conditions = evaluation['conditions']
                users = evaluation['users']
                cells = [
                    shown(conditions[name]['accuracy'], users) if name in conditions else '' for name in CONDITIONS
                ]
                table.add_row(f'{objective} {when} ({evaluation["pairs"]})', *cells, probed)
            elif when == 'after':
                lines.append(f'{objective}: not evaluated: {section["not_evaluated"]}')
    return ([table] if table.rows else []) + lines


def _satisfaction_tables(summary: dict[str, Any]) -> tuple[Table, Table]:
    """Return two tables of simulated users' satisfaction.

    The first table shows satisfaction under each persona condition. The second shows, for each taste, the gap:
    satisfaction under 'own' minus satisfaction under 'other'. The change in the gap is the gap after training minus the
    gap before training. The gap of valid replies leaves out replies that could satisfy nobody.
    """
    title = f'Satisfaction of {summary["users"]} held-out users with replies to {summary["prompts"]} requests'
    conditions = [name for name in CONDITIONS if all(name in row for row in summary['models'].values())]
    table = Table('policy', *conditions, 'gap own − other', 'gap of valid replies', title=title)
    columns = (*conditions, 'gap', 'gap_of_valid')
    for model, row in summary['models'].items():
        table.add_row(model, *(shown(row[name], summary['users']) if name in row else '' for name in columns))
    changes = [summary.get(name) for name in ('gap_change', 'gap_of_valid_change')]
    cells = (shown(change, summary['users']) if change else '' for change in changes)
    table.add_row('change in the gap', *('' for _ in conditions), *cells)
    by_taste = Table('taste', 'prompts', *summary['models'], 'change', title='Gap for each taste')
    for taste, row in summary['by_taste'].items():
        cells = [shown(model['gap'], row['users']) for model in row['models'].values()]
        name = f'{taste} (held out)' if row['held_out'] else taste
        by_taste.add_row(name, str(row['prompts']), *cells, shown(row['gap_change'], row['users']))
    return table, by_taste


def print_reward_table(result: dict[str, Any]) -> None:
    """Print the result of `rlhi_jax.evaluation.reward.evaluation`, with confidence intervals."""
    console, users = Console(width=118), result['users']
    title = f'{result["pairs"]} pairs from {users} users'
    table = Table('persona', 'accuracy', 'mean over users', 'log loss', title=title)
    for name, row in result['conditions'].items():
        table.add_row(name, *(shown(row[metric], users) for metric in ('accuracy', 'accuracy_by_user', 'log_loss')))
    for name, accuracy in result['baselines'].items():
        table.add_row(f'baseline: {name}', shown(accuracy, users))
    for name, difference in result['difference'].items():
        table.add_row(name, shown(difference, users))
    console.print(table)
    calibration = result['calibration']
    times = [when for when in ('before', 'after') if when in calibration]
    errors = [f'{calibration[when]["calibration_error"]:.3f} {when}' for when in times]
    console.print(f'Calibration error: {", ".join(errors)} scaling the rewards', markup=False)
    slices = Table('slice', 'group', 'pairs', 'users', 'accuracy', title=f'{next(iter(result["conditions"]))} persona')
    for matter, groups in result['slices'].items():
        for group, row in groups.items():
            cells = str(row['pairs']), str(row['users']), shown(row['accuracy'], row['users'])
            slices.add_row(matter, Text(group), *cells)
    console.print(slices)


def print_table(result: dict[str, Any]) -> None:
    """Print an evaluation: accuracy, margin and loss under each persona condition, with confidence intervals."""
    title = (
        f'{result["objective"]}, step {result["step"]}: {result["pairs"]} held-out pairs from {result["users"]} users'
    )
    table = Table('persona', 'accuracy', 'margin', 'loss', title=title)
    for name, metrics in result['conditions'].items():
        table.add_row(name, *(shown(metrics[metric], result['users']) for metric in ('accuracy', 'margin', 'loss')))
    for name, difference in result['accuracy_difference'].items():
        table.add_row(name, shown(difference, result['users']), '', '')
    console = Console(width=110)
    console.print(table)
    if not result['accuracy_difference']:
        console.print('The held-out pairs have no personas, so they were evaluated without a persona.')
