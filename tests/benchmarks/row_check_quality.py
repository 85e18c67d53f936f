"""How good row checks are: `python -m tests.benchmarks.row_check_quality [--rows N] [--show CHECK]`.

Takes conversations of people from PyPI's chitchat-dataset, which is downloaded to a temporary folder and not kept, plants faults with a
fixed seed, and prints how many of them each check finds. Findings in rows without a planted fault are relevant as well: some are
real, because people wrote these rows; `--show` prints them.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import phonenumbers
from stdnum import luhn

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import finish, pass_steps
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.run import row_check_steps
from loratory.engine.data.workshop.checks.settings import CheckSettings

SEED = 35
EACH = 150  # faults of a kind
SENTENCES = {
    "de": (
        "Gestern bin ich mit meiner Schwester in die Berge gefahren, und es hat den ganzen Tag geregnet.",
        "Am liebsten koche ich abends etwas Einfaches, weil ich nach der Arbeit müde bin.",
        "Wir haben uns lange über das neue Buch unterhalten, das mir wirklich gut gefallen hat.",
        "Im Sommer möchte ich endlich wieder ans Meer fahren und jeden Morgen schwimmen gehen.",
    ),
    "fr": (
        "Hier soir nous avons regardé un vieux film français, et ma mère a beaucoup pleuré à la fin.",
        "Je préfère travailler le matin, parce que le bureau est plus calme avant l'arrivée des autres.",
        "L'été prochain, nous irons chez mes grands-parents à la campagne pour ramasser des cerises.",
        "Mon frère a commencé à apprendre le piano, mais les voisins ne sont pas très contents.",
    ),
    "es": (
        "El fin de semana pasado fuimos a la playa con unos amigos y comimos pescado muy fresco.",
        "Mi abuela siempre dice que la mejor medicina es una buena sopa y dormir temprano.",
        "Todavía no sé qué voy a estudiar el próximo año, pero me gustaría vivir en otra ciudad.",
        "Cuando era niño, mañana y tarde jugábamos al fútbol en la calle hasta que oscurecía.",
    ),
    "ru": (
        "Вчера мы весь вечер гуляли по городу и разговаривали о том, куда поехать летом.",
        "Моя сестра работает в больнице и очень редко бывает дома по выходным.",
        "Я давно хотел научиться играть на гитаре, но мне всегда не хватает времени.",
        "Сегодня утром выпал первый снег, и дети сразу побежали во двор.",
    ),
}
ACCENTS = (
    "I had a really nice crème brûlée at that café last week",
    "My friend Zoë said the jalapeño soup was great – I’m not so sure",
    "We watched “Amélie” and it was fun…",
    "The hotel in Málaga cost 80 € a night",
    "Her name is Björk and she’s from Reykjavík",
)
REFUSED = (
    "I'm sorry, but I can't help with that request.",
    "I cannot assist with that.",
    "As an AI language model, I don't have personal experiences.",
    "I'm not able to provide medical advice, please see a doctor.",
    "Unfortunately, I cannot fulfill this request because it could cause harm.",
    "I apologize, but I cannot provide instructions for that.",
    "Sorry, but I won't be able to assist you with this.",
    "I am an AI assistant and do not have feelings.",
)
EMPTY = ("", "\n\n", " \n")  # between the marks of thinking
NEAR_MISSES = (
    "my order number is 4823 5567 2210 and it is late",
    "the meeting is on 2019-04-12 at 10:30",
    "we moved on 12/04/2019 and again on 03.11.2021",
    "it costs 1,234,567.89 dollars or so",
    "the account DE89 3704 0044 0532 0130 01 has a typo",
    "the card 4111 1111 1111 1112 was declined",
    "i use version 10.0.22.1 at home, on 192.168.1.20",
    "write to me@home or user@example.com, not really",
    "the isbn is 978-3-16-148410-0",
    "pi is 3.14159265358979 and the id is 550e8400-e29b-41d4-a716-446655440000",
    "x = {a: 1234567890, b: [20, 30, 40]} does not work",
    "the score was 21-17 18-21 21-19 in the end",
)


class Fault(NamedTuple):
    """A planted fault: the rows that it is in, by number after shuffling; any of them may be reported."""

    kind: str
    check: str
    rows: tuple[int, ...]


def main() -> None:
    """Plant, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000, help="rows of the dataset before faults are planted")
    parser.add_argument("--show", default="", help="a check whose findings without a planted fault are printed")
    parser.add_argument("--similarity", type=float, default=CheckSettings().similarity)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = conversations(Path(temporary), arguments.rows)
        faulty, faults = plant(rows, random.Random(SEED))
        file = Path(temporary) / "planted.jsonl"
        file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in faulty))
        measure(file, faults, CheckSettings(similarity=arguments.similarity), arguments.show)


def conversations(folder: Path, count: int) -> list[list[dict[str, str]]]:
    """Return rows of a question and an answer, all different."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        "chitchat-dataset==0.9.0",
    ]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        dialogues = json.loads(wheel.read("chitchat_dataset/dataset.json")).values()
    rows: dict[str, tuple[str, str]] = {}
    for dialogue in dialogues:
        texts = [" ".join(part["text"] for part in turn) for turn in dialogue["messages"]]
        for question, answer in zip(texts[::2], texts[1::2], strict=False):
            if len(f"{question} {answer}".split()) >= 20 and answer.strip() and question.strip():
                rows.setdefault("".join(filter(str.isalnum, (question + answer).lower())), (question, answer))
    chosen = random.Random(SEED).sample(list(rows.values()), min(count, len(rows)))
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in chosen
    ]


def plant(rows: list[list[dict[str, str]]], draw: random.Random) -> tuple[list[Any], list[Fault]]:
    """Return the rows with faults, shuffled, and where these are."""
    vocabulary = [word for row in rows for turn in row for word in turn["content"].split()]
    result: list[Any] = [[dict(turn) for turn in row] for row in rows]
    free = draw.sample(range(len(rows)), len(rows))
    faults: list[tuple[str, str, tuple[int, ...]]] = []

    def copy(kind: str, check: str, change: Callable[[str], str]) -> None:
        number = free.pop()
        result.append([{**turn, "content": change(turn["content"])} for turn in result[number]])
        faults.append((kind, check, (number, len(result) - 1)))

    def edit(kind: str, check: str, turn: int, change: Callable[[str], str]) -> None:
        number = free.pop()
        result[number][turn]["content"] = change(result[number][turn]["content"])
        faults.append((kind, check, (number,)))

    def rewording(share: float) -> Callable[[str], str]:
        def change(text: str) -> str:
            pieces = text.split()
            for index in draw.sample(range(len(pieces)), max(1, round(share * len(pieces)))) if pieces else ():
                pieces[index] = draw.choice(vocabulary)
            return " ".join(pieces)

        return change

    for _ in range(EACH):
        copy("equal but for case and punctuation", "duplicates", lambda text: text.upper().replace(" ", "  ") + " !")
        for tenths, name in ((1, "1 word of 10 changed"), (2, "2 of 10"), (3, "3 of 10"), (5, "5 of 10")):
            copy(name, "near_duplicates", rewording(tenths / 10))
        for language, sentences in SENTENCES.items():
            if draw.random() < 0.3:
                edit(
                    f"in {language}", "language", draw.randrange(2), lambda _, s=sentences: " ".join(draw.sample(s, 2))
                )
        edit("mail address", "personal_data", 0, lambda text: f"{text} write to {_mail(draw)} please")
        edit("phone, international", "personal_data", 1, lambda text: f"{text} call {_phone(draw, 'international')}")
        edit(
            "phone, national (US GB DE FR)", "personal_data", 1, lambda text: f"{text} call {_phone(draw, 'national')}"
        )
        edit("IBAN", "personal_data", 1, lambda text: f"{text} {_iban(draw)} is the account")
        edit("near miss of personal data", "", 0, lambda text: f"{text} {draw.choice(NEAR_MISSES)}")
        encoding = draw.choice(("latin-1", "cp1252"))
        edit(
            f"UTF-8 read as {encoding}",
            "mojibake",
            0,
            lambda text, e=encoding: f"{text} {_misread(draw.choice(ACCENTS), e)}",
        )
        edit("correct accents", "", 1, lambda text: f"{text} {draw.choice(ACCENTS)}")
        edit("refusal", "refusals", 1, lambda _: draw.choice(REFUSED))
        edit("card number", "personal_data", 1, lambda text: f"{text} charge {_card(draw)} for it")
        edit("empty thinking", "thinking", 1, lambda text: f"<think>{draw.choice(EMPTY)}</think>{text}")
    order = draw.sample(range(len(result)), len(result))
    place = {number: index for index, number in enumerate(order)}
    return [result[number] for number in order], [
        Fault(kind, check, tuple(place[number] for number in numbers)) for kind, check, numbers in faults
    ]


def _mail(draw: random.Random) -> str:
    name = draw.choice(("anna.meier", "j_smith92", "bob", "m.o'neil".replace("'", ""), "li-wei", "info+chat"))
    return f"{name}@{draw.choice(('gmail.com', 'uni-bonn.de', 'bbc.co.uk', 'mail.ru', 'proton.me'))}"


def _phone(draw: random.Random, form: str) -> str:
    formats = phonenumbers.PhoneNumberFormat
    regions = ("US", "GB", "DE", "FR") if form == "national" else ("US", "GB", "DE", "FR", "IN", "BR", "JP", "CH")
    region = draw.choice(regions)
    while True:
        example = phonenumbers.example_number_for_type(region, draw.choice((0, 1)))
        digits = str(example.national_number)
        digits = digits[:-4] + f"{draw.randrange(10000):04}"
        number = phonenumbers.PhoneNumber(country_code=example.country_code, national_number=int(digits))
        if phonenumbers.is_valid_number(number):
            style = formats.NATIONAL if form == "national" else draw.choice((formats.INTERNATIONAL, formats.E164))
            return phonenumbers.format_number(number, style)


def _iban(draw: random.Random) -> str:
    country, bank = draw.choice((("DE", ""), ("GB", "WEST"), ("NL", "ABNA")))
    account = bank + "".join(draw.choices("0123456789", k={"DE": 18, "GB": 14, "NL": 10}[country]))
    check = 98 - int("".join(str(int(letter, 36)) for letter in f"{account}{country}00")) % 97
    iban = f"{country}{check:02}{account}"
    return iban if draw.random() < 0.5 else " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))


def _card(draw: random.Random) -> str:
    prefix, groups = draw.choice((("4", (4, 4, 4, 4)), ("5500", (4, 4, 4, 4)), ("37", (4, 6, 5))))
    digits = prefix + "".join(draw.choices("0123456789", k=sum(groups) - len(prefix) - 1))
    digits += luhn.calc_check_digit(digits)
    ends = list(itertools.accumulate(groups))
    parts = [digits[end - length : end] for length, end in zip(groups, ends, strict=True)]
    return draw.choice(("", " ", "-")).join(parts)


def _misread(text: str, encoding: str) -> str:
    return text.encode().decode(encoding, "ignore")


def measure(file: Path, faults: list[Fault], settings: CheckSettings, show: str) -> None:
    """Print recall for each kind of fault, and precision for each check."""
    config, options = DatasetConfig(source=str(file)), SourceOptions()
    report = finish(row_check_steps(config, options, settings, seed=42))
    findings = {check.name: {finding.row: finding for finding in check.findings} for check in report.checks}
    assert all(check.rows < 1000 for check in report.checks), "all findings are listed"
    faults = [*faults, *crossing(config, faults)]
    planted_rows: dict[str, set[int]] = defaultdict(set)
    hits: dict[tuple[str, str], int] = defaultdict(int)
    total: dict[tuple[str, str], int] = defaultdict(int)
    for fault in faults:
        planted_rows[fault.check].update(fault.rows)
        total[fault.check, fault.kind] += 1
        hits[fault.check, fault.kind] += any(row in findings.get(fault.check, {}) for row in fault.rows)
    print(f"{report.rows:,} rows, {len(faults):,} faults; {report.seconds:.1f} s")
    print(f"{'check':<16}{'fault':<38}{'planted':>8}{'recall':>8}")
    for (check, kind), count in sorted(total.items()):
        if check:
            print(f"{check:<16}{kind:<38}{count:>8}{hits[check, kind] / count:>8.1%}")
    print(f"\n{'check':<16}{'rows':>8}{'precision':>11}  without a planted fault")
    for name, rows in findings.items():
        # Planted sentences are few, so rows that have the same ones are near-duplicates.
        repeats = (
            planted_rows["language"] | planted_rows["refusals"] if name in ("near_duplicates", "leakage") else set()
        )
        others = [row for row in rows if row not in planted_rows[name] | repeats]
        relevant = len(rows.keys() - (repeats - planted_rows[name]))
        precision = f"{1 - len(others) / relevant:.1%}" if relevant else "–"
        near_misses = sum(row in planted_rows[""] for row in others)
        print(f"{name:<16}{relevant:>8}{precision:>11}  {len(others)}, of which near misses {near_misses}")
        if name == show:
            for row in others:
                print(f"    {row + 1}: {rows[row].why} {rows[row].sample}")


def crossing(config: DatasetConfig, faults: list[Fault]) -> Iterator[Fault]:
    """Yield the planted copies whose rows are on both sides of the split: these are leaks."""
    result = finish(pass_steps(DatasetReader(config, SourceOptions()), 42))
    held_out = set(result.split.held_out.tolist())
    for fault in faults:
        if fault.check in ("duplicates", "near_duplicates") and len({row in held_out for row in fault.rows}) == 2:
            yield Fault(fault.kind, "leakage", fault.rows)


if __name__ == "__main__":
    main()
