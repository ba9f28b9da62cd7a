"""Tries a tokenizer and a chat template from elsewhere in a child process with limits on time and memory."""

import resource
import subprocess
import sys
from pathlib import Path

from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.template import ChatTemplate, extend, special_tokens

SECONDS = 20  # of processor time; a vocabulary of 250,000 tokens takes about five
MEMORY = 4 * 2**30  # bytes of address space; a vocabulary of 250,000 tokens takes about one fourth


def try_tokenizer(folder: Path, persona_in: str, source: str) -> None:
    """Load a folder's tokenizer, and extend and check its chat template, in a child process.

    A template is a program, and a tokenizer may ask for any amount of memory. In this process, a hostile one could take
    all time or memory.

    Raises:
      UserError: the tokenizer or the template is refused, or takes too much time or memory.
    """
    command = [sys.executable, '-m', 'rlhi_jax.tokenizers.trial', str(folder), persona_in]
    child = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False)
    if child.returncode == 2 and child.stdout.startswith('error: '):
        raise UserError(child.stdout.removeprefix('error: ').strip())
    if child.returncode:
        raise UserError(
            f'--source={source}: its tokenizer or chat template takes more than {SECONDS} s or {MEMORY // 2**30} GiB '
            'to load, or crashes: use another model, or pass --template=NAME if only its template is at fault'
        )


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
