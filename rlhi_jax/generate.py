"""Samples replies to the conversations in a file.

    python -m rlhi_jax.generate --config=configs/NAME.py --prompts=FILE.jsonl [--to=REPLIES.jsonl]

Each line of the prompts file is a JSON object with `messages`, a list of objects with `role` and `content`. The fields
`id`, `persona`, `system` and `samples` (the number of replies) are optional. The output file has one line per reply, in
the order of the prompts: a JSON object with `id`, `sample`, `text` and `finished`. With `config.sampler.logprobs`, it
also has `logprobs`, the log-probability of each token in nats, and `logprob`, their sum. Without --to, each reply is
printed below the persona and the last turn of its prompt. `config.model.path` is the model's folder, and
`config.sampler` contains the sampling settings.
"""

from absl import flags

from rlhi_jax.cli.program import define_config_flag, load_config, require_flags, run, start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_config_flag()
    flags.DEFINE_string('prompts', None, 'Prompts to reply to, as JSON lines.')
    flags.DEFINE_string('to', None, 'File to write the replies to, as JSON lines; without it, they are printed.')
    start()

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rlhi_jax.config import require
from rlhi_jax.io.errors import UserError, one_line
from rlhi_jax.io.files import write_bytes
from rlhi_jax.io.progress import Progress
from rlhi_jax.parallel.crew import run_shared, share
from rlhi_jax.sampling.generator import Prompt, Reply, draw, prompt_turns
from rlhi_jax.tokenizers.template import Context


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts from a JSON lines file.

    Raises:
      UserError: the file does not exist, a line is not a prompt, or two prompts have the same id.
    """
    if not path.is_file():
        raise UserError(f'--prompts={path} does not exist: set --prompts to an existing JSON lines file')
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                record = dict(id=str(number), system='', persona='', samples=1) | record
            turns = prompt_turns(record, ('id', 'system', 'persona'))
            name, samples = record['id'], record['samples']
            if type(samples) is not int or samples < 1:
                raise ValueError('its samples must be an integer of at least 1')
            if name in prompts:
                raise ValueError('an earlier prompt has the same id')
        except (ValueError, RecursionError) as error:
            raise UserError(
                f'--prompts={path}, line {number} is not a prompt ({one_line(error)}): fix the line'
            ) from None
        prompts[name] = Prompt(name, turns, Context(record['system'], record['persona']), samples)
    return list(prompts.values())


def readable(prompt: Prompt, reply: Reply) -> str:
    """Format a reply as readable text that begins with the persona and the last turn of its prompt."""
    persona = prompt.context.persona or 'none'
    text = reply.text + ('' if reply.finished else ' … (cut off)')
    return f'persona: {persona}\nuser: {prompt.turns[-1][1]}\nassistant: {text}\n'


def to_record(reply: Reply, logprobs: bool) -> dict[str, Any]:
    """Return the JSON object for a reply, with its log-probabilities if `logprobs` is true."""
    record = reply._asdict()
    del record['logprobs']
    return record | (dict(logprob=math.fsum(reply.logprobs), logprobs=reply.logprobs) if logprobs else {})


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require(config, 'model.path')
    require_flags('prompts')
    prompts = read_prompts(Path(flags.FLAGS.prompts))
    run_shared(lambda: reply_to(prompts, config), config)


def reply_to(prompts: Sequence[Prompt], config: ConfigDict) -> None:
    """Sample the replies to the prompts, and write or print them."""
    replies = []
    with Progress('generate', sum(prompt.samples for prompt in prompts), unit='replies') as progress:
        for reply in map(Reply._make, share(draw, config, dict(model=config.model.path), prompts)):
            replies.append(reply)
            progress.update(len(replies))
    order = {prompt.id: position for position, prompt in enumerate(prompts)}
    replies.sort(key=lambda reply: (order[reply.id], reply.sample))
    if not flags.FLAGS.to:
        print('\n'.join(readable(prompts[order[reply.id]], reply) for reply in replies))
        return
    records = (to_record(reply, config.sampler.logprobs) for reply in replies)
    lines = (json.dumps(record, ensure_ascii=False) + '\n' for record in records)
    to = Path(flags.FLAGS.to)
    to.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(to, ''.join(lines).encode())
    print(f'wrote {to}')


if __name__ == '__main__':
    run(main)
