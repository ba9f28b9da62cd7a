"""Who speaks: a key for the person behind a conversation, of what a public log says of them, and salted.

The key is of an address (WildChat's `hashed_ip`) and of the browser's header. It has limits that no key of a log is
without: people behind one address with the same browser are one user, and somebody whose address or browser changes
becomes another. So a persona may hold what others said, and a history may be cut.

    python -m data_pipelines.users --config=configs/NAME.py --user=ADDRESS [--header='{"user-agent": …}']

prints the key that records have in the place of an address, for `forget` and `persona_store`.
"""

import json

from absl import flags

from data_pipelines.privacy.user_keys import read_salt, user_key
from rlhi_jax.cli.program import require_flags, run
from rlhi_jax.io.errors import UserError


def main() -> None:
    from rlhi_jax.cli.program import load_config
    from rlhi_jax.config import require

    require_flags('user')
    config = load_config(flags.FLAGS.config)
    require(config, 'ingest.salt')
    try:
        header = json.loads(flags.FLAGS.header)
    except ValueError as error:
        raise UserError(f'--header={flags.FLAGS.header} is no JSON ({error}): give it as records do') from None
    print(user_key(flags.FLAGS.user, header, read_salt(config.ingest.salt)))


if __name__ == '__main__':
    from rlhi_jax.config import define_config_flag  # heavy, and processes that read raw files need none of it

    define_config_flag()
    flags.DEFINE_string('user', None, 'Address or id, as raw records hold it.')
    flags.DEFINE_string('header', 'null', "The browser's header as raw records hold it: JSON.")
    run(main)
