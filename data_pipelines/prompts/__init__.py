"""What the teacher is told: one Jinja file a task. Their digests are part of what a stage's output was made from."""

import functools
import re
from pathlib import Path

import jinja2

from rlhi_jax.files import digest, file_digest

_FOLDER = Path(__file__).parent


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_FOLDER)
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False)


def render(name: str, **values) -> str:
    """A prompt with its values filled in; a value that it lacks is an error."""
    return _environment().get_template(f'{name}.jinja').render(values).strip()


def render_turns(name: str, **values) -> list[tuple[str, str]]:
    """A prompt of several turns, which lines such as `--- user` open in its file, as (role, content).

    A value that holds such a line opens no turn.
    """
    source = _FOLDER.joinpath(f'{name}.jinja').read_text(encoding='utf-8')
    mark = digest(name, values)  # no text of a user holds the digest of itself
    marked = re.sub(r'^--- (user|assistant)\n', rf'{mark} \1\n', source, flags=re.MULTILINE)
    parts = re.split(rf'{mark} (user|assistant)\n', _environment().from_string(marked).render(values))
    return [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]


def prompt_digest(name: str) -> str:
    return file_digest(_FOLDER / f'{name}.jinja')
