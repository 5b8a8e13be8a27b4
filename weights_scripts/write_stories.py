"""Write stories by a story grammar: the two embedded texts, or other stories to train on.

    python weights_scripts/write_stories.py [FOLDER]                                                into the package
    python weights_scripts/write_stories.py OUT --grammar weights_scripts/training_grammar.txt --stories 30000

minillm needs a short text to calibrate thresholds on and another to score models on, both in the register of the
embedded models: simple stories for small children. Every sentence of the grammar was written for this project; none was
sampled from a model or taken from a corpus, so both files are under the project's own licence, MIT, like this script.

The second command writes stories of other plots, OUT/stories.txt, which the default model was trained on. With
``--opening introduced`` it writes only such as can begin like most stories, with a hero who is introduced ("Once upon a
time, there was a little girl named Lily. She loved to play outside."), OUT/introduced.txt; with ``--opening described``
the hero is told of with nouns and pronouns that must agree ("Sam likes to draw. He is a kind boy."), OUT/described.txt.

The words and sentences lie in story_grammar.txt and training_grammar.txt beside this script, in a small notation:

    %name       a table; its rows are divided by ";" and a row's columns by "/"
    @name       a rule; each line below it is one alternative, drawn anew at each use, not twice in a story if possible
    #name       a plot; its lines follow one another, "/" begins a paragraph, a line in "? " is left out half the time,
                a first line "." means that the plot has its own opening, a last one that it needs no closing sentence
    [a|b]       one of the two, or of more; may be nested
    {name}      a rule, or a row of a table, or somebody of the cast; rows and cast stay the same within a story
    {toy.1}     column 1 of the row; {toy2} is another row of the same table
    {A.kind}    what is known of A: kind, he, him, his, himself, the; {he}, {him}, ... alone belong to A, the hero
    //          a comment

The cast: the hero A, the friend B, the elder E of A, and H, somebody who happens to come by.
A and B are of different gender, so that "he" and "she" stay clear. Sentences get their capital letter, and "a" becomes
"an", at the end. Only ``random.Random.random`` is used: the one method whose sequence Python promises to keep.
"""

import argparse
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SEPARATOR = "<|endoftext|>"
GRAMMAR = Path(__file__).with_name("story_grammar.txt")
FOLDER = Path(__file__).parents[1] / "minillm" / "data" / "text"
FILES = {"calibration.txt": 60_000, "test.txt": 98_000}  # bytes to reach
SEED = 1  # of both files: they are parts of one series of stories, in which none comes twice
LENGTHS = range(500, 1301)  # characters of a story
# A first sentence that tells who the hero is, so that no other opening can stand before it; and the skew of the names
# in stories that begin like most, for most are about a few names.
INTRODUCES = re.compile(
    r"[Oo]nce|named|[Tt]here|lived| likes? | (?:is|was|are|were) (?:an?|the|two|friends|twins|best)\b"
)
SKEWS = {"introduced": 8}

GIRLS = "Lily Mia Anna Lucy Sara Amy Emma Molly Rosie Ella Nina Daisy Ruby Jane Sally Kate Zoe Polly Tina Bella".split()
BOYS = "Tim Ben Tom Max Sam Jack Leo Bob Finn Billy Joe Toby Oscar Charlie Noah Peter Danny Henry Luke Benny".split()
ANIMALS = ("rabbit fox bear mouse squirrel hedgehog pig lamb goat turtle monkey elephant deer otter pony puppy kitten "
           "panda beaver badger penguin raccoon mole lion duck frog").split()  # fmt: skip
PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}
ELDERS = {"mom": "she", "dad": "he", "grandma": "she", "grandpa": "he"}
HELPERS = {"wise old owl": "she", "kind old man": "he", "tall giraffe": "she", "friendly farmer": "he",
           "strong horse": "he", "gentle cow": "she", "nice lady": "she", "old gardener": "he", "clever crow": "she",
           "big brown dog": "he"}  # fmt: skip


def pronouns(he: str) -> dict[str, str]:
    """The four forms, named by the masculine ones."""
    return dict(zip(("he", "him", "his", "himself"), PRONOUNS[he], strict=True))


class Grammar:
    """The tables, rules and plots of a grammar file."""

    def __init__(self, text: str):
        self.tables: dict[str, list[list[str]]] = {}
        self.rules: dict[str, list[str]] = {}
        self.plots: dict[str, list[str]] = {}
        for line in text.splitlines():
            if not line or line.startswith("//"):
                continue
            if line[0] in "%@#":
                sign, name = line[0], line[1:]
                {"%": self.tables, "@": self.rules, "#": self.plots}[sign][name] = []
            elif sign == "%":
                rows = [row for row in line.split(";") if row.strip()]
                self.tables[name] += [[cell.strip() for cell in row.split("/")] for row in rows]
            else:
                (self.rules if sign == "@" else self.plots)[name].append(line)


class Story:
    """One story: its cast, the rows it has drawn, and the alternatives it has used."""

    def __init__(self, rng: random.Random, grammar: Grammar, skew: int = 2):
        self.rng, self.grammar, self.rows, self.used, self.skew = rng, grammar, {}, set(), skew
        gender = self.draw(["she", "he"])
        animals = self.rng.random() < 0.4
        elder = self.draw(list(ELDERS))
        self.cast = {"A": self.person(gender, animals), "E": {"name": elder, **pronouns(ELDERS[elder])}}
        self.cast["B"] = self.person("he" if gender == "she" else "she", animals != (self.rng.random() < 0.15))
        kind = self.draw(list(HELPERS))
        self.cast["H"] = {"name": f"the {kind.split()[-1]}", "kind": kind, **pronouns(HELPERS[kind])}

    def draw(self, options: list):
        """One of the options, all equally likely."""
        return options[int(self.rng.random() * len(options))]

    def person(self, gender: str, animal: bool) -> dict[str, str]:
        """A child or a young animal with a name."""
        names = GIRLS if gender == "she" else BOYS
        # The first names are the common ones, the more so the larger the skew.
        name = names[int(min(self.rng.random() for _ in range(self.skew)) * len(names))]
        kind = self.draw(ANIMALS) if animal else "girl" if gender == "she" else "boy"
        the = f"{name} the {kind}" if animal else f"a {kind} named {name}"
        return {"name": name, "kind": kind, "the": the, **pronouns(gender)}

    def row(self, name: str) -> list[str]:
        """The row of a table that this story has drawn; a digit at the end asks for one more, unlike the others."""
        if name not in self.rows:
            table = name.rstrip("0123456789")
            taken = [row for other, row in self.rows.items() if other.rstrip("0123456789") == table]
            self.rows[name] = self.draw([row for row in self.grammar.tables[table] if row not in taken])
        return self.rows[name]

    def slot(self, match: re.Match) -> str:
        """What stands for {name} or {name.field}."""
        name, _, field = match[1].partition(".")
        if name in self.grammar.rules:
            fresh = [line for line in self.grammar.rules[name] if line not in self.used]
            line = self.draw(fresh or self.grammar.rules[name])
            self.used.add(line)
            return self.expand(line)
        if name in self.cast:
            return self.cast[name][field or "name"]
        if name in self.cast["A"]:
            return self.cast["A"][name]
        return self.expand(self.row(name)[int(field or 0)])

    def expand(self, text: str) -> str:
        """The text with every choice made, the innermost first, and every slot filled."""
        while (chosen := re.sub(r"\[([^][]*)\]", lambda m: self.draw(m[1].split("|")), text)) != text:
            text = chosen
        return re.sub(r"\{([\w.]+)\}", self.slot, text)

    def tell(self, plot: list[str], opening: str = "open") -> str:
        """The story as text: an opening, the plot's paragraphs, most times a closing sentence.

        A plot with an opening of its own keeps it. Any other opening than "open" comes before it, and if it tells
        itself who the hero is, there is no such story: "".
        """
        own = plot[0] == "."
        begins = [] if own else [f"{{{opening}}}", *["/"][: int(self.rng.random() * 2)]]
        lines = [*begins, *(line for line in plot if line != ".")]
        kept = (line.removeprefix("? ") for line in lines if not line.startswith("? ") or self.rng.random() < 0.5)
        paragraphs = [self.expand(part.strip()) for part in " ^".join(kept).split("^/")]
        paragraphs = [part + '"' * (part.count('"') % 2) for part in paragraphs]  # a lesson may end in a quotation
        if opening != "open" and own:
            first = re.split(r"[.!?]", paragraphs[0])[0]
            if self.cast["A"]["kind"] in ANIMALS or self.cast["A"]["name"] not in first or INTRODUCES.search(first):
                return ""
            paragraphs[0] = self.expand(f"{{{opening}}} ^") + paragraphs[0]
        if plot[-1] != "." and self.rng.random() < 0.6:
            friends = self.cast["B"]["name"] in paragraphs[-1]
            paragraphs[-1] += " " + self.expand("{together}" if friends else "{alone}")
        return polish("\n".join(paragraphs))


def polish(text: str) -> str:
    """Set the capital letters of sentences and quotations, and "an" before a vowel; ^ is the start of a line."""
    text = re.sub(r" +", " ", text).replace(', " ', ', "')  # the second: between 'said, "' and a lesson
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    begins = r'((?:^|\n|[.!?] |\." |[.!?]" (?=")|, (?="))\^?"?|\^"?)([a-z])'  # not after '!" ': "Oh!" he said
    text = re.sub(begins, lambda m: m[1] + m[2].upper(), text).replace("^", "")
    # A quotation that only goes on after "he said," has no capital letter.
    return re.sub(r'(," [^".!?]*, ")([A-HJ-Z])', lambda m: m[1] + m[2].lower(), text)


def series(grammar: Grammar, opening: str = "open") -> Iterator[str]:
    """Stories without end, each plot in its turn, no story twice."""
    rng, seen, plots, every = random.Random(SEED), set(), [], list(grammar.plots)
    while True:
        plots = plots or list(every)
        plot = plots.pop(int(rng.random() * len(plots)))
        for _ in range(200):
            story = Story(rng, grammar, SKEWS.get(opening, 2)).tell(grammar.plots[plot], opening)
            if len(story) in LENGTHS and story not in seen:
                break
        else:
            every.remove(plot)  # it has an opening of its own, always
            continue
        seen.add(story)
        yield f"{story}\n{SEPARATOR}\n"


def write(folder: Path) -> None:
    """Write the files of FILES: stories of one series."""
    stories = series(Grammar(GRAMMAR.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in FILES.items():
        text = ""
        while len(text.encode("utf-8")) < size:
            text += next(stories)
        (folder / name).write_bytes(text.encode("utf-8"))


def main() -> None:
    """Write both embedded texts into the folder named, or into the package; or so many stories of another grammar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--grammar", type=Path, help="of these stories; with --stories and a folder")
    parser.add_argument("--stories", type=int, help="how many, into FOLDER/stories.txt")
    parser.add_argument("--opening", choices=("introduced", "described"), help="begin so; FOLDER/introduced.txt, ...")
    a = parser.parse_args()
    if a.grammar is None:
        write(a.folder)
    elif a.folder == FOLDER or not a.stories:
        parser.error("--grammar needs --stories and a folder of its own")
    else:
        a.folder.mkdir(parents=True, exist_ok=True)
        stories = series(Grammar(a.grammar.read_text(encoding="utf-8")), a.opening or "open")
        (a.folder / f"{a.opening or 'stories'}.txt").write_bytes("".join(islice(stories, a.stories)).encode("utf-8"))


if __name__ == "__main__":
    main()
