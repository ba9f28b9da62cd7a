"""Qwen2.5-Coder-Instruct from GGUF (Q4_K_M): logits and greedy tokens as transformers gives them for the same file.

`python launch/models.py Qwen2.5-Coder-0.5B-Instruct` fetches a model. The variables in `MODELS` name the files.

Dimension key: B batch, T tokens, D width, V vocabulary.
"""

import gc
import os
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from rlhi_jax.conversion.gguf import read_gguf  # noqa: E402
from rlhi_jax.models.decoder import Decoder, output_head  # noqa: E402

pytestmark = pytest.mark.real_model
MODELS = {'0.5B': 'RLHI_QWEN_CODER_0_5B_GGUF', '1.5B': 'RLHI_QWEN_CODER_1_5B_GGUF'}
NEW_TOKENS = 64
PROMPTS = (
    'Explain tides to a child.',
    'How do I sort a list in Python?',
    'Write a poem about naïve cafés — in French.',
)


def in_transformers(path):
    """For each prompt its length, the ids of prompt and greedy reply, and the logits at each of these."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    rows = []
    for text in PROMPTS:
        chat = [{'role': 'user', 'content': text}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', return_dict=True)
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=NEW_TOKENS)[:, :-1]
            logits_TV = model(ids).logits[0].numpy()
        rows.append((inputs['input_ids'].shape[1], ids[0].tolist(), logits_TV))
    return rows


@pytest.mark.parametrize('size', MODELS)
def test_logits_and_greedy_tokens(size, record_property):
    if not os.environ.get(MODELS[size]):
        pytest.skip(f'{MODELS[size]} does not name the GGUF file of Qwen2.5-Coder-{size}-Instruct')
    path = Path(os.environ[MODELS[size]])
    rows = in_transformers(path)
    gc.collect()  # before our copy of the weights is in memory
    spec, params, _ = read_gguf(path)
    assert spec.family == 'qwen2' and spec.qkv_bias
    params['layers'] = {name: jax.device_put(params['layers'].pop(name)) for name in list(params['layers'])}
    params = {name: jax.device_put(params.pop(name)) for name in list(params)}
    decoder = Decoder(spec)

    @jax.jit
    def logits_of(params, tokens_BT):
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        hidden_BTD = decoder.apply({'params': params}, tokens_BT, position_BT, tokens_BT.shape[1] - position_BT)
        return output_head(spec, params).logits(hidden_BTD)

    longest, worst, undecided, checked = max(len(ids) for _, ids, _ in rows), 0.0, 0, 0
    for start, ids, expected_TV in rows:
        tokens_BT = np.array([ids + [0] * (longest - len(ids))])  # padding is at the end, where no real token sees it
        ours_TV = np.asarray(logits_of(params, tokens_BT))[0, : len(ids)]
        worst = max(worst, float(np.abs(ours_TV - expected_TV).max()))
        reply_TV = ours_TV[start - 1 : -1]
        top2 = np.partition(reply_TV, -2, axis=-1)[:, -2:]
        differs = reply_TV.argmax(-1) != ids[start:]
        assert np.ptp(top2, axis=-1)[differs].max(initial=0) <= 2e-3
        undecided += int(differs.sum())
        checked += len(ids) - start
    print(f'{size}: logits within {worst:.1e}; {checked} greedy tokens, {undecided} of them tied within 2e-3')
    record_property('greatest_logit_difference', worst)
    record_property('greedy_tokens', checked)
    record_property('greedy_tokens_tied_within_2e-3', undecided)
    assert worst <= 1e-3
    assert checked >= 3 * 32 and undecided <= 3
