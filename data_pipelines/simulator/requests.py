"""Requests from simulated users about everyday topics, and the words to expect in the replies.

There are several phrasings for every topic. No topic or phrasing occurs in two splits.
"""

import dataclasses

PHRASINGS = {
    'train': (
        'Why might I like {}?',
        'Why should I care about {}?',
        'How can I enjoy {}?',
        'How would you explain {} to me?',
        'What would I enjoy about {}?',
    ),
    'validation': (
        'Why could I love {}?',
        'Why is it good for me to know about {}?',
        'What might I find nice about {}?',
    ),
    'test': (
        'Why would I be fond of {}?',
        'Why should I learn about {}?',
        'How could I get to like {}?',
        'What may I find good about {}?',
    ),
}

TOPICS = {
    'train': {
        'cats': 'cat animal pet fur mouse mice kitten play purr claw feline hunt companion',
        'the moon': 'moon earth orbit sun night sky crater space tide astronaut lunar',
        'coffee': 'coffee bean cup drink caffeine roast brew flavor morning espresso taste',
        'rivers': 'river water sea flow ocean lake fish bank stream land valley',
        'the guitar': 'guitar string music instrument chord play song sound acoustic musician',
        'bees': 'bee honey flower hive pollin insect queen nectar colony colonies plant',
        'rainbows': 'rainbow light color colour sun sky drop arc red violet',
        'bread': 'bread flour dough oven bake yeast loaf wheat grain food eat',
        'trains': 'train rail track station passenger engine travel transport car locomotive speed',
        'volcanoes': 'volcano lava erupt magma ash mountain rock earth crust gas hot',
        'tea': 'tea leaf leaves water cup drink brew green black herb flavor',
        'dogs': 'dog animal pet breed loyal bark owner train walk puppy companion',
        'the ocean': 'ocean water sea fish wave salt marine earth depth coral life',
        'chess': 'chess board piece king queen pawn player game move strategy opponent',
        'winter': 'winter cold snow ice season temperature warm holiday weather day coat',
        'tomatoes': 'tomatoe fruit red plant vegetable salad sauce garden juicy grow vitamin',
        'bicycles': 'bicycle wheel ride pedal transport exercise brake road bike gear travel',
        'libraries': 'librar book read study knowledge learn borrow information research quiet',
        'birthdays': 'birthday cake party gift celebrat friend family candle year age',
        'the desert': 'desert sand dry hot water heat camel dune plant cactus temperature',
        'soccer': 'soccer ball team goal player game sport field play match score',
        'painting': 'paint color colour brush canvas art artist create oil express',
        'sleep': 'sleep rest night body brain health bed hour dream tired relax',
        'elephants': 'elephant animal trunk tusk large africa herd ear mammal memory ivory',
        'chocolate': 'chocolate cocoa sweet milk dark candy sugar bean dessert flavor taste',
        'gardens': 'garden plant flower soil grow water vegetable tree nature seed green',
        'bridges': 'bridge river road structure cross span steel connect water build engineer',
        'money': 'money bank save spend buy currency value goods pay coin budget',
        'whales': 'whale ocean mammal sea animal large blue water fish swim marine',
        'the violin': 'violin string bow music instrument play sound orchestra wood musician',
    },
    'validation': {
        'horses': 'horse animal ride farm gallop mane breed run mammal strong saddle',
        'the sun': 'sun star light heat energy earth planet solar hot sky gas',
        'cheese': 'cheese milk cow flavor dairy food cream taste aged eat pizza',
        'castles': 'castle king stone wall tower medieval knight fortress built history defen',
        'autumn': 'autumn leaf leaves season fall tree color colour cool harvest weather',
        'cooking': 'cook food ingredient recipe kitchen heat meal flavor dish eat taste',
        'owls': 'owl bird night hunt eye prey wing feather nocturnal fly mouse mice',
        'the piano': 'piano key music instrument play note sound musician classical string',
        'mountains': 'mountain peak high climb rock snow hike valley range earth nature',
        'apples': 'apple fruit red green tree sweet vitamin healthy eat pie juice',
        'airplanes': 'plane fly wing engine pilot travel passenger flight air sky airport',
        'rain': 'rain water cloud drop weather plant fall sky umbrella wet storm',
        'swimming': 'swimmi swim water pool exercise sport body stroke muscle breath fitness health',
        'penguins': 'penguin bird ice cold swim antarctic fish flightless egg colony colonies',
        'pizza': 'pizza cheese dough tomato sauce topping italian crust food slice bake',
        'forests': 'forest tree animal plant wood nature oxygen leaf leaves wildlife habitat',
        'spring': 'spring flower season warm bloom winter plant weather green rain tree',
        'museums': 'museum art history exhibit collection artifact culture visit learn painting',
        'butterflies': 'butterfl insect wing flower caterpillar color colour nectar fly garden',
        'basketball': 'basketball ball team player hoop game court score sport shoot dribbl',
        'the wind': 'wind air weather blow energy force move storm direction turbine pressure',
        'dancing': 'danci music dance move body art rhythm express step movement partner fun',
        'turtles': 'turtle shell animal slow reptile sea egg swim water live beach',
        'the drum': 'drum music rhythm beat instrument play sound stick percussion band',
        'lakes': 'lake water fish swim boat nature fresh shore river calm',
        'oranges': 'orange fruit juice vitamin sweet citrus peel tree healthy eat',
        'ships': 'ship sea ocean sail water cargo boat captain travel port',
        'snow': 'snow cold winter ice white flake weather ski warm melt',
        'running': 'runni exercise run shoe heart muscle health breath train body race',
        'parrots': 'parrot bird color colour talk feather beak fly pet cage speak',
        'soup': 'soup warm vegetable broth bowl cook hot flavor ingredient eat meal',
        'islands': 'island sea beach water ocean land sand tropical palm travel coast',
        'summer': 'summer sun warm hot beach season vacation holiday swim outdoor day',
        'theaters': 'theater theatre stage play actor movie film audience show perform drama',
        'spiders': 'spider web leg insect silk eight spin catch prey bug',
        'tennis': 'tennis ball racket racquet court player game match sport serve net',
        'thunderstorms': 'thunder storm lightning rain cloud weather loud wind sky safe',
        'singing': 'singi song sing voice music breath note sound vocal practice melod',
    },
    'test': {
        'frogs': 'frog amphibian pond water leg jump insect green skin egg tadpole',
        'the flute': 'flute music instrument play sound breath note woodwind melod orchestra',
        'waterfalls': 'waterfall water river rock nature fall cliff stream pool beaut',
        'grapes': 'grape fruit wine juice vine sweet vitamin healthy eat seed',
        'hiking': 'hiki hike trail walk nature mountain exercise outdoor view forest boot',
        'dolphins': 'dolphin ocean sea mammal swim animal smart intelligen water play fish',
        'the stars': 'stars star sky night light galax sun universe space constellation',
        'roses': 'rose flower garden color colour petal plant red scent bloom thorn love',
        'yoga': 'yoga body mind breath stretch pose exercise balance stress relax health',
        'photography': 'photo camera picture image light moment memor capture art lens',
        'camping': 'campi camp tent nature outdoor fire night forest hike star friend',
        'poetry': 'poe poem word emotion language rhyme verse feel express read write',
        'potatoes': 'potato vegetable root fries cook food eat mash bake starch vitamin',
        'lions': 'lion animal cat predator pride africa hunt mane prey wild strong',
        'rice': 'rice grain food eat dish cook meal bowl carb asia white brown',
        'skiing': 'skii ski snow mountain winter sport slope cold exercise resort balance',
    },
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A user's request."""

    text: str
    about: str  # stem of the topic's name
    words: tuple[str, ...]  # stems of words to expect in a reply on the topic


def requests(split: str) -> list[Request]:
    """Return all requests of a split: every topic in every phrasing."""
    return [
        Request(phrasing.format(topic), stems.split()[0], tuple(stems.split()[1:]))
        for topic, stems in TOPICS[split].items()
        for phrasing in PHRASINGS[split]
    ]
