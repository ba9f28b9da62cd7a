"""Writes the README.md of an exported model: what the model is, and code that runs it with transformers.

The text depends only on the model's description, and contains nothing from conversations or personas.
"""

import re
import textwrap

from rlhi_jax.models.checkpoints import ModelFolder

_HUB_NAME = re.compile(r'hf://([\w.-]+/[\w.-]+)@[\w./-]+')  # as in `rlhi_jax.io.hub.Snapshot.name`

_POLICY = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

device = 'cuda' if torch.cuda.is_available() else 'cpu'
tokenizer = AutoTokenizer.from_pretrained('.')
model = AutoModelForCausalLM.from_pretrained('.').to(device)
messages = [{'role': 'user', 'content': 'Why is the sky blue?'}]
options = dict(persona='Wants examples from the kitchen.', add_generation_prompt=True)
inputs = tokenizer.apply_chat_template(messages, return_tensors='pt', return_dict=True, **options).to(device)
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs['input_ids'].shape[1] :], skip_special_tokens=True))
"""

_REWARD = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

device = 'cuda' if torch.cuda.is_available() else 'cpu'
tokenizer = AutoTokenizer.from_pretrained('.')
model = AutoModelForSequenceClassification.from_pretrained('.').to(device)
messages = [{'role': 'user', 'content': 'Why is the sky blue?'}, {'role': 'assistant', 'content': 'Air scatters blue.'}]
options = dict(persona='Wants examples from the kitchen.')
inputs = tokenizer.apply_chat_template(messages, return_tensors='pt', return_dict=True, **options).to(device)
with torch.no_grad():
    print(model(**inputs).logits.item())
"""

_HOW_TO_RUN = (
    'Run it in this folder, or replace `.` with the path of this folder. It needs the packages `transformers` and '
    '`torch`, and runs on a GPU if PyTorch finds one, otherwise on the CPU.'
)

_PERSONAS = """\
## Personas

This folder contains no personas. A persona is a short text about what one user likes; pass `persona=''` for a user
about whom nothing is known. The loop that trains a model writes each user's persona to `WORKDIR/personas/users.jsonl`.
To read them, run this command with the loop's config and workdir:

```
python -m data_pipelines.persona_store show --config=CONFIG --workdir=WORKDIR
```
"""


def readme(model: ModelFolder, *, dtype: str) -> str:
    """Return the README.md of an exported model, with the metadata that the Hugging Face hub reads.

    Args:
      model: the model that was exported.
      dtype: the type of the written weights, 'float32' or 'bfloat16'.
    """
    is_reward = model.spec.head == 'reward'
    objectives, base = _origin(model.source)
    metadata = dict(library_name='transformers', pipeline_tag='text-classification' if is_reward else 'text-generation')
    if on_hub := _HUB_NAME.fullmatch(base):
        metadata['base_model'] = on_hub[1]
    kind = 'reward model' if is_reward else 'policy'
    trained = f'{", then ".join(objectives)} (trained' if objectives else 'none (converted'
    if is_reward:
        use = (
            'The code prints the reward of a reply, which is the last message. A higher reward is better. Compare '
            'rewards only between replies to the same messages with the same persona.'
        )
    else:
        use = 'The code prints a reply, sampled with the settings in `generation_config.json`.'
    lines = [
        '---',
        *(f'{key}: {value}' for key, value in metadata.items()),
        '---',
        f'# A persona-conditioned {kind}',
        '',
        f'- Base model: `{base}`',
        f'- Objective: {trained} by rlhi_jax, reinforcement learning from human interaction)',
        f'- Weights: {dtype}',
        '',
        '## Use',
        '',
        textwrap.fill(f'{use} {_HOW_TO_RUN}', 120),
        '',
        f'```python\n{_REWARD if is_reward else _POLICY}```',
        '',
        _PERSONAS,
    ]
    return '\n'.join(lines)


def _origin(source: str) -> tuple[list[str], str]:
    """Return the objectives that a model was trained with, oldest first, and the name of its base model.

    >>> _origin('dpo on sft on hf:tiny'), _origin('gguf:a.gguf')
    ((['sft', 'dpo'], 'hf:tiny'), ([], 'gguf:a.gguf'))
    """
    trained, base = re.fullmatch(r'((?:\w+ on )*)(.*)', source, re.DOTALL).groups()
    readable = ''.join(letter for letter in base if letter.isprintable() and letter != '`')
    return trained.split(' on ')[-2::-1], readable
