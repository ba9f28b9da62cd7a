"""Tries the tokenizer and chat template of an imported model in a child process with limited time and memory."""

import subprocess
import sys
from pathlib import Path

from rlhi_jax.io.errors import UserError
from rlhi_jax.tokenizers.limits import MEMORY, SECONDS


def try_tokenizer(folder: Path, persona_in: str, source: str) -> None:
    """Load a folder's tokenizer, and extend and check its chat template, in a child process.

    A template is a program, and a tokenizer may need any amount of memory. The child process protects this process from
    templates that run forever and tokenizers that exhaust the memory.

    Raises:
      UserError: the tokenizer or the template is rejected, or needs too much time or memory.
    """
    command = [sys.executable, '-m', 'rlhi_jax.tokenizers.child', str(folder), persona_in]
    child = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False)
    if child.returncode == 2 and child.stdout.startswith('error: '):
        raise UserError(child.stdout.removeprefix('error: ').strip())
    if child.returncode:
        raise UserError(
            f'--source={source}: its tokenizer or chat template crashes, or takes more than {SECONDS} s or '
            f'{MEMORY // 2**30} GiB to load: use another model'
        )
