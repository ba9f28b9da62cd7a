"""Write a data card about the finished stage folders: their contents, why records were dropped, and example pairs.

    python -m data_pipelines.card --config=configs/NAME.py

Reads the stage folders in `config.data`, where `pairs`, `shards` and `rows` may list several folders, separated by
commas. Writes card.md for people, and card.json with the same content, to `config.data.card`. If the card's folder is
in a loop's workdir, the card opens with the summary in the loop's report.json. If the loop has not finished, the
opening also says which part it has reached. The card also lists the stages that were not run. This stage counts
everything again from the records, line by line, and compares the result with each stage's own counts.

While a loop is running, its card contains only the opening (`write_opening`). If the loop is killed, this card still
says which part the loop had reached.
"""

from data_pipelines.core.stage import Stage, Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.persona.store import CLAIMS
from data_pipelines.preferences.reading import first_by_hash, pairs_to_read
from data_pipelines.reports.card_text import markdown
from data_pipelines.reports.folders import (
    Folder,
    digests,
    folders,
    funnel,
    other_counts,
    sources,
    teacher_costs,
    upstream_first,
)
from rlhi_jax.io.errors import UserError
from rlhi_jax.io.files import new_folder, read_json, write_bytes, write_json
from rlhi_jax.io.progress import Progress

EXAMPLE_CLAIMS = 3


def describe(
    finished: list[Folder], missing: list[str], inputs: dict[str, dict[str, str]], opening: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the card's content, ready to be written as JSON. The same folders always give the same content.

    Args:
      finished: the finished folders.
      missing: names of folders that are not set in the config or are not finished.
      inputs: the digests that `digests` returns for each folder, keyed by folder name.
      opening: the result of `opening_of`; None for no opening.
    """
    card: dict[str, Any] = dict(inputs=inputs, left_out=missing, funnel={}, sections={}, examples={})
    card['opening'] = opening or {}
    card['made_of'] = sources(finished, inputs)
    with Progress('card', len(finished), unit='folders') as progress:
        for number, folder in enumerate(upstream_first(finished, card['made_of']), start=1):
            if folder.stage.summary:
                section = folder.stage.summary(folder.records, folder.manifest)
                card['sections'][folder.name] = dict(section, kind=folder.kind)
            if folder.kind == 'personas':
                card['claims'] = first_by_hash(folder.path / CLAIMS, EXAMPLE_CLAIMS)
            if folder.kind == 'pairs':
                card['examples'][folder.name] = pairs_to_read(folder.path / 'train.jsonl')
            card['funnel'][folder.name] = dict(steps=funnel(folder), others=other_counts(folder))
            progress.update(number)
    return card | dict(teacher=teacher_costs(finished))


def _identity(config: ConfigDict) -> dict[str, Any]:
    finished, missing = folders(config)
    if not finished:
        raise UserError(
            'config.data does not point to the finished folder of any stage: set at least one of '
            f'config.data.{", config.data.".join(missing)}'
        )
    identity: dict[str, Any] = dict(inputs={folder.name: digests(folder) for folder in finished}, left_out=missing)
    opening = opening_of(Path(config.data.card).parent)
    return identity | (dict(opening=opening) if opening else {})


def opening_of(workdir: Path, *, at_work: bool = False) -> dict[str, Any]:
    """Return the opening of a loop's card: the main entries of the loop's report. Return {} if there is no report.

    Args:
      workdir: the loop's folder.
      at_work: whether the loop is still running. If false, a loop that has reached its last part (writing the card)
        counts as finished.
    """
    if not (workdir / 'report.json').is_file():
        return {}
    report = read_json(workdir / 'report.json', 'remove the file', fields=())
    opening = {name: report[name] for name in ('summary', 'models', 'unfinished') if name in report}
    if opening.get('unfinished', {}).get('part') == STAGE.name and not at_work:
        del opening['unfinished']
    return opening


def write_opening(workdir: Path) -> None:
    """Write a card with only the opening, for a loop that is still running.

    This card replaces the card of an earlier run, whose counts may no longer match the folders. The `card` stage later
    treats this card as out of date.
    """
    opening = opening_of(workdir, at_work=True)
    # If another run is writing the card, leave it to that run.
    with suppress(UserError), new_folder(workdir / STAGE.name, overwrite=True) as folder:
        folder.chmod(0o700)
        write_card(folder, describe([], [], {}, opening))
        write_json(folder / 'manifest.json', dict(stage=STAGE.name, made_from=dict(opening=opening), counts={}))


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json and card.md."""
    write_json(folder / 'card.json', card)
    write_bytes(folder / 'card.md', markdown(card).encode())


def _work(task: Task) -> dict[str, int]:
    card = describe(*folders(task.config), task.made_from['inputs'], task.made_from.get('opening'))
    write_card(task.folder, card)
    checks = [step['adds_up'] for folder in card['funnel'].values() for step in folder['steps']]
    counts = Counter(folders=len(card['funnel']), adding_up=checks.count(True), not_adding_up=checks.count(False))
    return task.write_manifest(counts)


STAGE = Stage('card', 4, _work, 'data.card', _identity, forgetting='removed')

if __name__ == '__main__':
    STAGE.main()
