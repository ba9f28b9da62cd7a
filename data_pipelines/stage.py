"""What every stage shares: a config, an output folder that appears whole or not at all, and a summary."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rlhi_jax.config import check_config
from rlhi_jax.errors import UserError, run
from rlhi_jax.files import new_folder, read_json

Work = Callable[[ConfigDict, Path], dict[str, int]]


def run_stage(work: Work, *, output: str, identity: Callable[[ConfigDict], dict[str, Any]]) -> None:
    """Run a stage's program.

    Args:
      work: writes the stage's files into the folder that it is given and returns its counts.
      output: the config key that names the output folder, such as 'data.shards'.
      identity: digests of all that the output depends on; a finished folder with the same identity is kept as it is.
    """
    config_flags.DEFINE_config_file('config', None, 'Python file with get_config(), optionally :variant.')
    flags.DEFINE_bool('overwrite', False, 'Replace the output folder if it exists.')

    def main() -> None:
        config = check_config(flags.FLAGS.config)
        section, key = output.split('.')
        if not config[section][key]:
            raise UserError(f'config.{output} is empty: name the folder to write')
        folder = Path(config[section][key])
        wanted = identity(config)
        if (folder / 'manifest.json').exists() and not flags.FLAGS.overwrite:
            manifest = read_json(folder / 'manifest.json', 'remove the folder, or pass --overwrite', fields=())
            if manifest.get('made_from') == wanted:
                print(f'{folder}: up to date {json.dumps(manifest.get("counts"))}')
                return
            raise UserError(
                f'config.{output}: {folder} was made from other input or settings: pass --overwrite, or rename'
            )
        with new_folder(folder, overwrite=flags.FLAGS.overwrite) as temporary:
            counts = work(config, temporary)
        print(f'{folder}: {json.dumps(counts)}')

    run(main)
