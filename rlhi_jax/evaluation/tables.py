"""Results as tables on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from rlhi_jax.evaluation.statistics import shown


def print_report(report: dict[str, Any]) -> None:
    """The report as tables: the funnel, accuracy on held-out pairs, satisfaction; 95 % intervals over users."""
    console = Console(width=118)
    funnel = Table('stage', 'counts', title='Kept and dropped')
    for name, counts in report['funnel'].items():
        funnel.add_row(name, ', '.join(f'{key} {value}' for key, value in counts.items()))
    console.print(funnel)
    accuracy = Table('held-out pairs', 'own persona', 'no persona', "a stranger's", 'artefact AUC', title='Accuracy')
    for objective in ('reward', 'dpo'):
        if objective in report:
            found = report[objective]
            auc = found['probe']['artefact_auc']
            probed = 'too few pairs' if auc is None else f'{auc:.2f}'
            for when, evaluation in (('before', found.get('before')), ('after', found['evaluation'])):
                if isinstance(evaluation, dict):
                    cells = [shown(evaluation['conditions'][c]['accuracy']) for c in ('true', 'empty', 'shuffled')]
                    accuracy.add_row(f'{objective} {when} ({evaluation["pairs"]})', *cells, probed)
                elif when == 'after':
                    accuracy.add_row(objective, evaluation or 'none held out', '', '', probed)
    console.print(accuracy)
    if 'satisfaction' in report:
        found = report['satisfaction']
        title = f'Satisfaction of {found["users"]} held-out users on {found["prompts"]} requests'
        table = Table('policy', 'own persona', 'opposing', 'none', 'gap own − opposing', title=title)
        for model, row in found['models'].items():
            names = ('own', 'opposing', 'empty', 'gap')
            table.add_row(model, *(shown(row[name]) if name in row else '' for name in names))
        table.add_row('change of the gap', '', '', '', shown(found['gap_change']))
        console.print(table)
        table = Table('taste', 'prompts', *found['models'], 'change', title='The gap by pair of tastes')
        for pair, row in found['by_pair'].items():
            cells = [shown(model['gap']) for model in row['models'].values()]
            name = f'{pair} (held out)' if row['held_out'] else pair
            table.add_row(name, str(row['prompts']), *cells, shown(row['gap_change']))
        console.print(table)
    for pair in report['pairs_to_read']:
        lines = (f'[{name}] {text[:400]}' for name, text in pair.items())
        console.print('\n'.join(lines), '', markup=False, sep='\n')
    for note in report['notes']:
        console.print(note)


def print_table(result: dict[str, Any]) -> None:
    """The result as a table: accuracy and margin by persona, with intervals."""
    title = f'{result["objective"]}, step {result["step"]}: {result["pairs"]} held-out pairs of {result["users"]} users'
    table = Table('persona', 'accuracy', 'margin', 'loss', title=title)
    for name, metrics in result['conditions'].items():
        table.add_row(name, *(shown(metrics[metric]) for metric in ('accuracy', 'margin', 'loss')))
    for name, difference in result['accuracy_difference'].items():
        table.add_row(name, shown(difference), '', '')
    Console(width=110).print(table)
