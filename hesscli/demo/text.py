"""Text made by the project: stories, arithmetic and programs, each document a function of one seed.

What a document says early decides what it says late (who, where, what colour, which value), so that
attention over many tokens pays, and a model is left with both things to know and things to guess.
"""

from random import Random

from hesscli.demo.program import program

PEOPLE = [("Mara", "she", "her"), ("Tomas", "he", "him"), ("Ines", "she", "her"), ("Oskar", "he", "him")]
PEOPLE += [("Lena", "she", "her"), ("Pavel", "he", "him"), ("Noor", "she", "her"), ("Hugo", "he", "him")]
TRADES = ["baker", "carpenter", "doctor", "farmer", "gardener"]
TRADES += ["miller", "painter", "sailor", "teacher", "weaver"]
TOWNS = ["Arden", "Brook", "Calder", "Denby", "Elmere", "Farrow"]
TOWNS += ["Garth", "Holm", "Kirby", "Linden", "Marsh", "Norwick"]
THINGS = ["basket", "book", "box", "candle", "clock", "hammer"]
THINGS += ["kettle", "lamp", "map", "mirror", "rope", "spoon"]
COLOURS = ["black", "blue", "brown", "green", "grey", "red", "white", "yellow"]
PLACES = ["behind the barrel", "in the cellar", "near the gate", "on the roof", "under the stairs"]
PLACES += ["beside the well", "inside the oven", "on the table", "between two stones", "under the bridge"]
ANIMALS = ["cat", "crow", "dog", "goat", "hen", "horse", "mouse", "sheep"]
PLURALS = {"mouse": "mice", "sheep": "sheep"}
MANNERS = ["calmly", "gladly", "loudly", "quickly", "quietly", "sadly", "slowly"]
TIMES = ["One morning", "That evening", "After the storm", "In the autumn", "Before dinner", "Late at night"]
DOINGS = [("sings", "sing"), ("sleeps", "sleep"), ("runs", "run"), ("waits", "wait"), ("eats", "eat")]
FRUITS = ["apples", "coins", "eggs", "keys", "nuts", "pears", "plums", "stones"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
NUMBERS += ["eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen"]


def document(seed: int) -> str:
    """One document: of ten, five are stories, two arithmetic, three programs."""
    rng = Random(seed)
    return rng.choice([story] * 5 + [arithmetic] * 2 + [program] * 3)(rng)


def story(rng: Random) -> str:
    """Sentences about two people and a thing, whose owner, colour and place come back at the end."""
    (hero, she, her), (friend, he, _) = rng.sample(PEOPLE, 2)
    home, away = rng.sample(TOWNS, 2)
    colour, thing, place = rng.choice(COLOURS), rng.choice(THINGS), rng.choice(PLACES)
    lines = [
        f"{hero} was a {rng.choice(TRADES)} in {home}, and {friend} was a {rng.choice(TRADES)} in {away}.",
        f"{she.capitalize()} had a {colour} {thing} that {she} loved.",
        *(_aside(rng, hero, she) for _ in range(rng.randrange(3))),
        f"{rng.choice(TIMES)} {friend} {rng.choice(MANNERS)} took the {thing} and put it {place}.",
        *(_aside(rng, friend, he) for _ in range(rng.randrange(1, 4))),
        f'"Where is my {colour} {thing}?" asked {hero}. "It is {place}," said {friend}.',
    ]
    if rng.random() < 0.5:
        had, more = rng.randrange(2, 8), rng.randrange(2, 8)
        fruit = rng.choice(FRUITS)
        lines.append(
            f"{friend} gave {her} {NUMBERS[had]} {fruit} and then {NUMBERS[more]} more, "
            f"so {she} had {NUMBERS[had + more]} {fruit}."
        )
    lines.append(f"In the end {friend} went back to {away} and {hero} stayed in {home} with the {thing}.")
    return " ".join(lines)


def _aside(rng: Random, name: str, pronoun: str) -> str:
    """A sentence whose verb agrees with a noun that stands several words before it."""
    animal, many = rng.choice(ANIMALS), rng.random() < 0.5
    noun = PLURALS.get(animal, animal + "s") if many else animal
    verb = rng.choice(DOINGS)[many]
    where = rng.choice(PLACES)
    owner = rng.choice([f"that {name} feeds", f"of the {rng.choice(TRADES)}", f"{where}", "with one eye"])
    tail = rng.choice([f"{rng.choice(MANNERS)}", f"when {pronoun} comes home", f"and {name} watches"])
    return f"The {rng.choice(COLOURS)} {noun} {owner} {verb} {tail}."


def arithmetic(rng: Random) -> str:
    """Lines such as `(4 + 7) * 3 = 33`, in one or several operations, all of them right."""
    return "\n".join(_equation(rng) for _ in range(rng.randrange(5, 12)))


def _equation(rng: Random) -> str:
    a, b, c = rng.randrange(2, 60), rng.randrange(2, 60), rng.randrange(2, 10)
    small, other = a % 9 + 1, b % 9 + 1
    return rng.choice(
        [
            f"{a} + {b} = {a + b}",
            f"{max(a, b)} - {min(a, b)} = {abs(a - b)}",
            f"{small} * {c} = {small * c}",
            f"({small} + {other}) * {c} = {(small + other) * c}",
            f"{a} + {b} + {c} = {a + b + c}",
            f"{a} {'<' if a < b else '>' if a > b else '='} {b}",
        ]
    )
