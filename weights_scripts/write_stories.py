"""Write stories by a story grammar: the two embedded texts, or other stories to train on.

    python weights_scripts/write_stories.py                into the package
    python weights_scripts/write_stories.py FOLDER
    python weights_scripts/write_stories.py OUT --grammar weights_scripts/training_grammar.txt --stories 30000

minillm needs one short text to calibrate thresholds and another to score models. Both are in the style of the embedded
models' training text: simple stories for small children. Every sentence of the grammar was written for this project.
None was sampled from a model or taken from a corpus, so both files are under the project's licence (MIT).

The third command writes stories with other plots to OUT/stories.txt; the default model was trained on them. With
``--opening introduced`` every story begins by introducing its hero, as most stories do ("Once upon a time, there was a
little girl named Lily. She loved to play outside."); the file is OUT/introduced.txt. With ``--opening described`` the
hero is described with nouns and pronouns that must agree ("Sam likes to draw. He is a kind boy."); the file is
OUT/described.txt. Plots that do not allow such an opening are left out.

The words and sentences are in story_grammar.txt and training_grammar.txt beside this script, in a small notation:

    %name       a table; its rows are divided by ";" and a row's columns by "/"
    @name       a rule; each line below it is one alternative, drawn again at each use, not twice in a story if possible
    #name       a plot; its lines follow one another, "/" begins a paragraph, a line in "? " is left out half the time,
                a first line "." means that the plot has its own opening, a last one that it needs no closing sentence
    [a|b]       one of the two, or of more; may be nested
    {name}      a rule, a row of a table, or a character of the cast; rows and cast stay the same within a story
    {toy.1}     column 1 of the row; {toy2} is another row of the same table
    {A.kind}    a property of A: kind, he, him, his, himself, the; {he}, {him}, ... alone belong to A, the hero
    //          a comment

The cast: the hero A, the friend B, A's parent or grandparent E, and H, who comes by and helps. A and B have different
genders, so that "he" and "she" are clear. At the end sentences get their capital letters, and "a" becomes "an" before a
vowel. Only ``random.Random.random`` is used, because it is the only method whose sequence Python promises to keep.
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
# A first sentence that introduces the hero, so that no other opening can be put before it; and the skew of the names in
# stories with --opening introduced, because most such stories use a few names.
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
    """The four forms of a pronoun, with the masculine forms as keys."""
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
        # The first names of the list are the most common; a larger skew makes them more common.
        name = names[int(min(self.rng.random() for _ in range(self.skew)) * len(names))]
        kind = self.draw(ANIMALS) if animal else "girl" if gender == "she" else "boy"
        the = f"{name} the {kind}" if animal else f"a {kind} named {name}"
        return {"name": name, "kind": kind, "the": the, **pronouns(gender)}

    def row(self, name: str) -> list[str]:
        """The row that this story has drawn from a table; "toy2" is another row of the table "toy"."""
        if name not in self.rows:
            table = name.rstrip("0123456789")
            taken = [row for other, row in self.rows.items() if other.rstrip("0123456789") == table]
            self.rows[name] = self.draw([row for row in self.grammar.tables[table] if row not in taken])
        return self.rows[name]

    def slot(self, match: re.Match) -> str:
        """The text that replaces {name} or {name.field}."""
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
        """The text with every choice made, the innermost first, and every {name} replaced."""
        while (chosen := re.sub(r"\[([^][]*)\]", lambda m: self.draw(m[1].split("|")), text)) != text:
            text = chosen
        return re.sub(r"\{([\w.]+)\}", self.slot, text)

    def tell(self, plot: list[str], opening: str = "open") -> str:
        """The story as text: an opening, the plot's paragraphs, in most cases a closing sentence.

        A plot with its own opening keeps it; an ``opening`` other than "open" is put before it. Where the plot's own
        opening already introduces the hero, this is impossible, and the result is "".
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
    """An endless series of stories: all plots in random order, then again; no story twice."""
    rng, seen, plots, every = random.Random(SEED), set(), [], list(grammar.plots)
    while True:
        plots = plots or list(every)
        plot = plots.pop(int(rng.random() * len(plots)))
        for _ in range(200):
            story = Story(rng, grammar, SKEWS.get(opening, 2)).tell(grammar.plots[plot], opening)
            if len(story) in LENGTHS and story not in seen:
                break
        else:
            every.remove(plot)  # its own opening always introduces the hero
            continue
        seen.add(story)
        yield f"{story}\n{SEPARATOR}\n"


def write(folder: Path) -> None:
    """Write the files of FILES, with stories of one series."""
    stories = series(Grammar(GRAMMAR.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in FILES.items():
        text = ""
        while len(text.encode("utf-8")) < size:
            text += next(stories)
        (folder / name).write_bytes(text.encode("utf-8"))


def main() -> None:
    """Write both embedded texts into a folder (by default the package's), or stories of another grammar."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--grammar", type=Path, help="the grammar of the stories; needs --stories and a folder")
    parser.add_argument("--stories", type=int, help="number of stories, written to FOLDER/stories.txt")
    parser.add_argument(
        "--opening", choices=("introduced", "described"), help="form of the opening; FOLDER/introduced.txt, ..."
    )
    a = parser.parse_args()
    if a.grammar is None:
        write(a.folder)
    elif a.folder == FOLDER or not a.stories:
        parser.error("--grammar needs --stories and a folder other than the package's")
    else:
        a.folder.mkdir(parents=True, exist_ok=True)
        stories = series(Grammar(a.grammar.read_text(encoding="utf-8")), a.opening or "open")
        (a.folder / f"{a.opening or 'stories'}.txt").write_bytes("".join(islice(stories, a.stories)).encode("utf-8"))


if __name__ == "__main__":
    main()
