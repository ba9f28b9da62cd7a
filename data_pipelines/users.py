"""Prints the key that replaces a user's address or id in records if `config.ingest.salt` is set.

    python -m data_pipelines.users --config=configs/NAME.py --user=ADDRESS [--header='{"user-agent": …}']

Pass this key to `forget` and `persona_store`. `data_pipelines/privacy/user_keys.py` explains how keys are made.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string('user', None, "The user's address or id, exactly as it appears in the raw records.")
    flags.DEFINE_string('header', 'null', "The browser's header from the raw records, as JSON.")
    start()

import json

from data_pipelines.privacy.user_keys import read_salt, user_key
from rlhi_jax.config.paths import require
from rlhi_jax.io.errors import UserError


def main() -> None:
    require_flags('user')
    config = load_config(flags.FLAGS.config)
    require(config, 'ingest.salt')
    try:
        header = json.loads(flags.FLAGS.header)
    except ValueError as error:
        raise UserError(
            f'--header={flags.FLAGS.header} is not valid JSON ({error}): pass the header exactly as it appears in the '
            'raw records'
        ) from None
    print(user_key(flags.FLAGS.user, header, read_salt(config.ingest.salt)))


if __name__ == '__main__':
    run(main)
