"""Sentences for the personas and the complaints of simulated users, grouped by taste, side and split.

No three consecutive words of a persona occur in a persona from another split.
"""

PERSONAS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    'length': {
        'short': {
            'train': (
                'Please answer briefly, in two sentences.',
                'Please say it in two sentences.',
                'Please write two sentences.',
                'Please be brief: two sentences or three.',
                'Please give two short sentences.',
            ),
            'validation': (
                'Please keep it to two sentences.',
                'Please use just two sentences.',
                'Please reply in two brief sentences.',
                'Please tell me with two sentences.',
                'Please make it brief, only two sentences.',
            ),
            'test': (
                'Please explain it using two sentences.',
                'Please respond using two sentences.',
                'Please stop after two sentences.',
            ),
        },
        'long': {
            'train': (
                'Please write eight sentences.',
                'Please answer in eight sentences or more.',
                'Please write a long paragraph of seven sentences.',
                'Please say a lot: eight sentences.',
                'Please give eight long sentences.',
            ),
            'validation': (
                'Please use eight sentences.',
                'Please write at least seven sentences.',
                'Please reply in a long text of eight sentences.',
                'Please tell me a lot, with eight sentences.',
                'Please make it long, eight sentences.',
            ),
            'test': (
                'Please explain it using eight sentences.',
                'Please respond using eight sentences.',
                'Please go on for eight sentences.',
            ),
        },
    },
    'layout': {
        'list': {
            'train': (
                'Please write three bullet points.',
                'Please use three bullet points.',
                'Please write four bullet points.',
                'Please answer with three bullet points.',
                'Please write a list with three bullet points.',
            ),
            'validation': (
                'Please give a few bullet points.',
                'Please write some bullet points.',
                'Please reply with a list of bullet points.',
                'Please put it into bullet points.',
                'Please make it a bullet point list.',
            ),
            'test': (
                'Please explain it using bullet points.',
                'Please respond with bullet points.',
                'Please summarize it as bullet points.',
            ),
        },
        'prose': {
            'train': (
                'Please answer in one paragraph.',
                'Please write plain text, no bullet points.',
                'Please write plain sentences, not a list.',
                'Please use one paragraph of text.',
                'Please answer without a list.',
            ),
            'validation': (
                'Please give plain sentences.',
                'Please write a paragraph and no points.',
                'Please reply in running text, with no list.',
                'Please put it into plain sentences, no list.',
                'Please make it one paragraph without bullet points.',
            ),
            'test': (
                'Please explain it using a paragraph.',
                'Please respond with one plain paragraph.',
                'Please summarize it as plain text.',
            ),
        },
    },
    'address': {
        'you': {
            'train': (
                'Please say "you" to me.',
                'Please talk to me as "you".',
                'Please give me advice.',
                'Please tell me what I could do.',
                'Please tell me how it can help me.',
            ),
            'validation': (
                'Please use the word "you".',
                'Please advise me in person.',
                'Please reply as a friend would, with "you".',
                'Please put it as advice to me: "you can".',
                'Please make it personal and say "you".',
            ),
            'test': (
                'Please explain it using "you".',
                'Please respond with advice, saying "you".',
                'Please summarize it with "you" and "your".',
            ),
        },
        'impersonal': {
            'train': (
                'Please write in the third person.',
                'Please talk of facts: no "you".',
                'Please write facts, no advice.',
                'Please write about people in general.',
                'Please give general facts.',
            ),
            'validation': (
                'Please keep to third person.',
                'Please give facts for everybody, no "you".',
                'Please reply with facts and no advice.',
                'Please put it as general facts, never "you".',
                'Please make it impersonal, third person.',
            ),
            'test': (
                'Please explain it using general facts.',
                'Please respond with facts about people.',
                'Please summarize the plain facts only.',
            ),
        },
    },
    'angle': {
        'children': {
            'train': (
                'Please speak of children.',
                'Please tell me what it means to children.',
                'I have children: please mention them.',
                'Please say what children like about it.',
                'Please write for a family with children.',
            ),
            'validation': (
                'Please add a sentence on children.',
                'Children matter to me, so please name them.',
                'Please put in something about children.',
                'Please make it about my children.',
            ),
            'test': (
                'Please explain what children do with it.',
                'Please respond with a thought for children.',
            ),
        },
        'history': {
            'train': (
                'Please speak of history.',
                'Please tell me about its history.',
                'I care about history: please mention it.',
                'Please say what its history is.',
                'Please write about the history of it.',
            ),
            'validation': (
                'Please add a sentence on history.',
                'History matters to me, so please name it.',
                'Please put in something about history.',
                'Please make its history the point.',
            ),
            'test': (
                'Please explain what history tells of it.',
                'Please respond with a thought on history.',
            ),
        },
    },
    'person': {
        'I': {
            'train': (
                'Please tell me what you think, as "I".',
                'Please give your own view: "I think".',
                'I like answers in the first person.',
                'Please speak for yourself: say "I".',
                'Please say what you like: "I like".',
            ),
            'validation': (
                'Please use the word "I".',
                'Please give me a personal view, as "I".',
                'A view of yours, please: say "I".',
                'Please answer as "I", in your own voice.',
                'Please let me hear your own "I".',
            ),
            'test': (
                'Please explain it using "I".',
                'Please respond with "I think".',
            ),
        },
        'no I': {
            'train': (
                'Please do not tell me what you think.',
                'Please give no views of your own: no "I".',
                'I like answers without the word "I".',
                'Please leave yourself out of it.',
                'Please say nothing about yourself.',
            ),
            'validation': (
                'Please never say "I".',
                'Please give me no personal view.',
                'No view from you, please: no "I".',
                'Please answer without any "I".',
                'Please let me hear nothing of yourself.',
            ),
            'test': (
                'Please explain it without "I".',
                'Please respond with no "I" at all.',
            ),
        },
    },
}

COMPLAINTS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    'length': {
        'short': {
            'train': (
                'That is too long for me. Please keep it short.',
                'Too many words. I like short answers.',
            ),
            'validation': (
                'Could you say that in fewer words?',
                'Shorter, please. I do not read long answers.',
                'Please be brief with me.',
            ),
            'test': (
                'Cut it down, please. I only read a few words.',
                'Much shorter for me, please.',
            ),
        },
        'long': {
            'train': (
                'That is too short for me. Please go into detail.',
                'Too brief. I like long, detailed answers.',
            ),
            'validation': (
                'Could you say a lot more about it?',
                'Longer, please. I like to read many details.',
                'Please tell me much more than that.',
            ),
            'test': (
                'Go deeper, please. I read long texts.',
                'Much more detail for me, please.',
            ),
        },
    },
    'layout': {
        'list': {
            'train': (
                'I cannot follow this. Please make it a list.',
                'I like lists. Put it in points for me.',
            ),
            'validation': (
                'Could you set that out as bullet points?',
                'As a list, please. One point a line.',
                'Please write that as a list of items.',
            ),
            'test': (
                'Make bullet points of it, please.',
                'One item a line for me, please.',
            ),
        },
        'prose': {
            'train': (
                'I do not like lists. Please write it as plain text.',
                'No bullets for me. I like flowing text.',
            ),
            'validation': (
                'Could you write that as one paragraph and drop the points?',
                'No lists, please. Just sentences.',
                'Please write that in prose and not in items.',
            ),
            'test': (
                'Make one paragraph of it, please.',
                'No bullet points for me, please.',
            ),
        },
    },
    'address': {
        'you': {
            'train': (
                'This sounds distant. Please speak to me as "you".',
                'I like it personal. Say "you" to me.',
            ),
            'validation': (
                'Could you address me directly?',
                'Talk to me, please. Use the word "you".',
                'Please say it as if to me, with "you".',
            ),
            'test': (
                'Speak to me, please: say "you".',
                'More "you" and "your" for me, please.',
            ),
        },
        'impersonal': {
            'train': (
                'Please do not say "you". Keep it impersonal.',
                'This is too personal. I like a neutral style.',
            ),
            'validation': (
                'Could you leave me out of the answer?',
                'Without "you", please. Neutral words only.',
                'Please write it without addressing me.',
            ),
            'test': (
                'Do not speak to me like that: no "you".',
                'A neutral text for me, please.',
            ),
        },
    },
    'angle': {
        'children': {
            'train': (
                'You said nothing of children. Please mention them.',
                'I wanted to hear about children, too.',
            ),
            'validation': ('What about children? Please bring them in.',),
            'test': ('Children are missing here. Add them, please.',),
        },
        'history': {
            'train': (
                'You said nothing of its history. Please mention it.',
                'I wanted to hear about history, too.',
            ),
            'validation': ('What about history? Please bring it in.',),
            'test': ('History is missing here. Add it, please.',),
        },
    },
    'person': {
        'I': {
            'train': (
                'This is so cold. Please say what you think, as "I".',
                'I like first person. Say "I".',
            ),
            'validation': (
                'Could you speak for yourself?',
                'In the first person, please.',
                'Please tell me as "I", from your own view.',
            ),
            'test': (
                'Speak as yourself, please: say "I".',
                'Your own "I" for me, please.',
            ),
        },
        'no I': {
            'train': (
                'Please leave yourself out of it.',
                'I do not like "I". Keep to the facts.',
            ),
            'validation': (
                'Could you not talk about yourself?',
                'Without "I", please. Just facts.',
                'Please do not speak of yourself.',
            ),
            'test': (
                'Do not say "I", please.',
                'Facts alone for me, please.',
            ),
        },
    },
}
