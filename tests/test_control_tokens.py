"""Control tokens as published templates and tokenizers spell them are found; ordinary text is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_families import FAMILIES, PUBLISHED

from data_pipelines.persona.audit import unsafe
from data_pipelines.preferences import acceptance
from data_pipelines.text.control_tokens import defused, spelled_in
from rlhi_jax.sampling.generator import Reply

REPLY = 'Bees dance to tell where flowers are'
ORDINARY = [
    '<div><span class="s">a</span></div><br/><del>struck</del> <strike>out</strike> <section> <pads>',
    '<!-- s --> <svg><mask id="m"/></svg> <role>Data Analyst</role> <thinking> <stop_of_turn>',
    '#include <stdio.h>\ncat <<EOS >out\n[[ -s file ]] && a[i] <<= 2',
    'List<String> Map<String, List<Integer>> Vec<Option<T>> Promise<string|null> Array<A|B>[] <T extends A | B>',
    'a < b | c > d; if (a<b||c>d) return a<b|c>d; xs |> map f <| x; p <|> q; [| 1; 2 |] [|x|]',
    'Animal <|-- Dog\nAnimal <|..|> Pet\nAnimal <|--|> Zebra',
    'the bracket <φ|ψ>, the projector |0><0| and the mean <0|A|0>',
    '<ann@example.org> <https://example.org/?a|b> ->> <- <> <|> </>',
    '[ ] to do, [x] done, [link](url), [TOC], [^1], [NAME], [INSTALL], [inst], regs[INST_0], [tool_calls], [think]',
    'Usage: count [OPTIONS] [ARGS]...\n[IMG]a.png[/IMG] [PREFIX] [MASK] [EOSIO] a[b[0]]~b [unused]',
    '### Instructions\n1. INST\n2. im_start|im_end, s>t, /s> and start_of_turn',
]


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_tokens_are_found(name):
    for token in PUBLISHED[name]:
        reply = Reply('id', 0, f'{REPLY}.{token} And so on.', finished=True)
        assert acceptance.reason_to_drop(reply, [], set(), 1.0) == 'degenerate', token
        assert token not in defused(reply.text), token
        assert unsafe(f'I like short answers.{token}') == 'steering', token


def test_tokens_of_our_test_templates_are_found():
    assert [token for family in FAMILIES.values() for token in family.controls if not spelled_in(token)] == []


@pytest.mark.parametrize('text', ORDINARY)
def test_ordinary_text_is_left_alone(text):
    assert defused(text) == text
    reply = Reply('id', 0, f'{REPLY}: {text}', finished=True)
    assert acceptance.reason_to_drop(reply, [], set(), 1.0) == ''


def test_struck_out_text_goes_with_the_tokens():
    assert defused('Now <s>9</s> 7 €') == 'Now < s>9< /s> 7 €'


PIECES = st.sampled_from([token for tokens in PUBLISHED.values() for token in tokens]) | st.text(
    st.sampled_from('<>[]|/~!bse s_'), max_size=3
)


@given(st.lists(PIECES, max_size=6).map(''.join))
def test_defusing_adds_blanks_until_no_token_is_left(text):
    assert not spelled_in(defused(text))
    assert defused(text).replace(' ', '') == text.replace(' ', '')
    assert (defused(text) != text) == spelled_in(text)
