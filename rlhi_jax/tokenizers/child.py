"""Loads a folder's tokenizer and checks the folder's chat template.

`rlhi_jax.tokenizers.trial` runs this program in a child process.
"""

import resource
import sys
from pathlib import Path

from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.limits import MEMORY, SECONDS
from rlhi_jax.tokenizers.template import ChatTemplate, extend, special_tokens


def main(folder: str, persona_in: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        tokenizer, special = load_tokenizer(Path(folder)), special_tokens(Path(folder))
        template = (Path(folder) / 'chat_template.jinja').read_text(encoding='utf-8')
        ChatTemplate(extend(template, tokenizer, special, placement=persona_in), tokenizer, special)
    except UserError as error:
        print(f'error: {one_line(error)}')
        sys.exit(2)


if __name__ == '__main__':
    main(*sys.argv[1:])
