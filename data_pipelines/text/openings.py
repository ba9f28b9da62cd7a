"""Recognizes replies that open with a refusal or with a remark about the reply itself, in twelve languages."""

import itertools
import re
import unicodedata

_READ = 300  # characters at the beginning of a reply that are read
_ACCENTS = re.compile('[\u0300-\u036f\u064b-\u0652]')

# Alternatives are in lower case without accents, as in the text that `plain` returns.
_REFUSALS = {
    'en': [
        r"(i('m| am) )?((very|so|really|truly) )?sorry\b(?!,? (to hear|about|for your))",
        r"i('m| am) (afraid (that )?i\b|unable|not (able|comfortable|allowed|programmed))",
        r'(i (do )?apologi[sz]e|(my )?apologies)\b',
        r"(unfortunately,? )?(as|i('m| am) (just|only)) (an? )?(ai|artificial|(large )?language model)\b",
        r'unfortunately,? i\b',
        r"i(( must| have to)|('m| am) going to have to) (decline|refuse)",
        r"i (do not|don't) (feel comfortable|have the ability)\b",
        r'it (is|would) not (be )?appropriate for me\b',
        r"i (can(no|'| no)t( and will not)?|won't|will not) (in good conscience )?"
        r'(access|answer|assist|be able|browse|comply|complete|continue|create|discuss|do(?! without)|engage|fulfil'
        r'|generate|give|help(?! but)|offer|participate|perform|process|provide|share|support|write)\b',
    ],
    'fr': [
        r"(je (suis|regrette) (vraiment )?)?desolee?\b,?|en tant qu(e |')(ia\b|intelligence|modele d|assistant)",
        r'je ne (peux|suis) pas (en mesure|(vous |t.)?aider|repondre|fournir)',
    ],
    'de': [
        r'es tut mir (sehr )?leid|entschuldigung,|leider (kann|bin) ich|als (eine? )?(ki\b|kunstliche|sprachmodell)',
        r'ich kann (dir|ihnen) (dabei|damit) nicht',
    ],
    'es': [
        r'lo (siento|lamento)|como (una? )?(ia\b|inteligencia|modelo de leng)',
        r'no puedo (ayudar|cumplir|proporcionar|responder)',
    ],
    'pt': [
        r'desculpe|sinto muito|lamento,|como (uma? )?(ia\b|inteligencia|modelo de ling)',
        r'nao posso (ajudar|fornecer|responder)',
    ],
    'it': [r'mi dispiace|in quanto (ia\b|intelligenza|modello)|non posso (aiutar|fornir|risponder)'],
    'nl': [r'(het )?spijt me|sorry,? maar ik|als (een )?(ai\b|taalmodel)|ik kan (je|u) (daar|hier)\w* niet'],
    'ru': [
        r'извините|простите|к сожалению,? я|как (ии\b|искусственныи|языковая)',
        r'я не могу (помочь|ответить|предоставить|выполнить)',
    ],
    'zh': [r'(很|非常)?(抱歉|对不起|對不起)|作为(一个|一名)?(ai|人工智能|语言模型)|我(无法|不能)(提供|回答|协助|帮助)'],
    'ja': [r'申し訳(ありません|ございません)|すみませんが|aiとして'],
    'ko': [r'죄송(하지만|합니다)|저는 (ai|인공지능)'],
    'ar': [r'عذرا|آسف|أعتذر|كنموذج لغ'],
}
_CHANGED = r'(revised|rewritten|updated|new|improved|corrected|shorter|longer|simpler|simplified)'
_PREAMBLES = {
    'en': [
        r'(sure( thing)?|certainly|of course|absolutely|definitely|ok(ay)?|al(l )?right|great|got it|understood'
        r"|no problem|yes, of course)([!,.:;—]| [-–] | (here|i can|i'd|i'll)\b)",
        r"(here|below)('s| is| are| you (go|are))\b[^.!?\n]*:\s*(\n|$|[\"“*])",
        r"(here|this|below)('s| is| are) (an?|the|your|my|another|some) (\w+,? ){0,2}"
        rf'({_CHANGED}|clearer|better|alternative|different|modified|revision|rewrite|version|attempt|answer|reply)\b',
        rf'((an?|the|my) )?{_CHANGED} (\w+ )?(answer|version|reply|response|text)\W*(:|\n)',
        r"((i'm|i am|my) )?((very|so|really|truly|sincere) )?(sorry|apologi[sz]e|apologies) (for|about|if|that)\b",
        r'i (do )?((sincerely|deeply) )?apologi[sz]e( (for|about|if|that)\b|\.)',
        r"(yes, )?you('re| are) ((absolutely|completely|quite|totally) )?(right|correct)\b",
        r'(thank you|thanks) for (your|the|pointing|letting|bringing|clarif|asking)',
        r"i('ve| have) (now )?(revised|rewritten|updated|changed|corrected|simplified|shortened|made|fixed)\b",
        r"i('d| would) be (happy|glad|delighted|pleased) to\b|i understand (that )?(you|your)\b|i('m| am) ready\b",
        r"this time,? i('ll| will|'ve| have)\b|(my|the) (previous|last|earlier) (answer|reply|response)\b",
        r"(i'll|i will|let me) (try|rewrite|rephrase|revise|redo|answer|give (it|you)|make (it|this))\b",
    ],
    'fr': [
        r"(voici|bien sur|d'accord|certainement|avec plaisir|toutes mes excuses|je m'excuse|merci pour)\b",
        r'(vous avez|tu as) raison\b',
    ],
    'de': [
        r'(hier|nachfolgend) (ist|sind|kommt)\b|(naturlich|gerne?|selbstverstandlich|klar|sicher)[!,.:]',
        r'(sie haben|du hast) recht\b|ich entschuldige mich',
    ],
    'es': [
        r'aqui (esta|tienes?|te|le|va|hay)\b|claro([!,.:]| que si)|por supuesto|desde luego|gracias por',
        r'tienes? razon|disculpas?[,.]|perdon\b|me disculpo',
    ],
    'pt': [r'aqui (esta|estao|vai)\b|com certeza|peco desculpas|voce (tem razao|esta cert)|obrigad[oa] por'],
    'it': [r'ecco(ti)?\b|(certo|certamente)[!,.:]|ha[i]? ragione|mi scuso|grazie per'],
    'nl': [r'hier (is|zijn|volgt)\b|(natuurlijk|zeker)[!,.:]|je hebt gelijk'],
    'ru': [
        r'(конечно|разумеется|хорошо)[!,.:]|вы правы|ты прав|прошу прощения|приношу извинения|спасибо за',
        r'вот (ваш|твои|нов|исправленн|переписанн|более|пример|текст|ответ|несколько|как)',
    ],
    'zh': [
        r'当然|(好的|没问题)[,，!！。:：]|(以下|下面)是|这是(修改|重写|新|更新)|[你您]说得(对|没错)|谢谢[你您]?的',
    ],
    'ja': [r'もちろん|承知|かしこまりました|わかりました|以下[はがに]|こちら[がは]|ご指摘'],
    'ko': [r'물론|알겠습니다|네[,!.]|다음은|여기'],
    'ar': [r'بالطبع|بالتأكيد|إليك|حسنا|أنت محق|شكرا '],
}


def _opens_as(patterns: dict[str, list[str]]) -> re.Pattern:
    """Combine the patterns of all languages into one that matches texts beginning with any of them."""
    return re.compile(r'\A\W*(?:' + '|'.join(itertools.chain.from_iterable(patterns.values())) + ')')


_REFUSAL, _PREAMBLE = _opens_as(_REFUSALS), _opens_as(_PREAMBLES)


def plain(text: str) -> str:
    """Convert text to lower case with straight apostrophes; drop Latin and Cyrillic accents and Arabic vowel signs.

    >>> plain('Français, l’Élysée')
    "francais, l'elysee"
    """
    text = text.casefold().replace('’', "'")
    if text.isascii():
        return text
    return unicodedata.normalize('NFC', _ACCENTS.sub('', unicodedata.normalize('NFKD', text)))


def is_refusal(reply: str) -> bool:
    """Whether a reply opens with a refusal or an apology for not complying.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal('My apologies, but I cannot do this.')
    (True, True)
    >>> is_refusal('I can help: knead the dough.'), is_refusal("I can't recommend it enough!")
    (False, False)
    """
    return bool(_REFUSAL.match(plain(reply[:_READ])))


def has_preamble(reply: str) -> bool:
    """Whether a reply opens by announcing an answer or a change, or by saying that an earlier reply was wrong.

    "Here are five facts:" counts as a preamble even if a list follows, because the rewrite prompt asks for the answer
    alone.

    >>> has_preamble('Here is a shorter version:\\n\\nBees fly.'), has_preamble("You're right, bees do fly.")
    (True, True)
    >>> has_preamble('Here in the north, bees fly late.'), has_preamble('Sure-footed goats climb.')
    (False, False)
    """
    return bool(_PREAMBLE.match(plain(reply[:_READ])))
