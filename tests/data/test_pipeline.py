import json
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter

import numpy as np
import pytest

from triform.data import pipeline, prepare, shards
from triform.data.cleaning import Clean, Deduplicate, Filter, Normalize, Overlap, WeightedSource
from triform.data.duplicates import rows_of_a_band, signatures
from triform.data.mixture import Mixture
from triform.data.ngrams import unit_hashes, units
from triform.data.pipeline import Cleaned
from triform.data.shards import Shards

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))


def texts(count, seed=0, size=(12, 120)):
    rng = random.Random(seed)
    return ["".join(rng.choices(HAN, k=rng.randint(*size))) for _ in range(count)]


def write(path, lines):
    path.write_text("".join(json.dumps({"text": line, "n": i}, ensure_ascii=False) + "\n" for i, line in enumerate(lines)), "utf-8")
    return str(path)


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kept(made):
    return [row["text"] for part in made.parts() for row in part]


def test_what_was_read_is_kept_or_dropped_for_a_reason(tmp_path):
    good = texts(40)
    lines = [*good, "短", good[3], f" {good[4]}\n", "★" * 20, "", *texts(5, seed=1)]
    made = prepare([write(tmp_path / "a.jsonl", lines), write(tmp_path / "b.jsonl", [good[0], *texts(3, seed=2)])], tmp_path / "p")
    told = made.manifest
    assert (told["read"], told["kept"]) == (len(lines) + 4, 40 + 5 + 3)
    assert told["dropped"] == {"duplicate": 3, "empty": 1, "symbols": 1, "too short": 1}
    assert kept(made) == [*good, *texts(5, seed=1), *texts(3, seed=2)]
    for each in (told, *told["sources"]):
        assert each["read"] == each["kept"] + sum(each["dropped"].values())
        assert sum(each["lengths"].values()) == each["kept"]
    gone = [json.loads(line) for path in sorted((tmp_path / "p/dropped").iterdir()) for line in path.read_text("utf-8").splitlines()]
    assert Counter(each["reason"] for each in gone) == told["dropped"]
    assert gone[0] == {"row": 41, "reason": "too short", "text": "短"}
    assert not (tmp_path / "p/state.sqlite").exists()


def test_stages_left_out_leave_the_text_alone(tmp_path):
    lines = ["短", "短", "Ａ\u200b", "★★★"]
    made = prepare([write(tmp_path / "a.jsonl", lines)], tmp_path / "p", Clean(normalize=None, filter=None, deduplicate=None))
    assert kept(made) == lines
    assert list(made.parts()[0])[1] == {"text": "短", "n": 1}


def changed(text, share, seed=0):
    rng = random.Random(seed)
    return "".join(rng.choice(HAN) if rng.random() < share else c for c in text)


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    base = texts(30, size=(400, 500))
    near = [changed(text, 0.004, i) for i, text in enumerate(base)]  # 5-grams: a Jaccard similarity of about 0.96
    far = [changed(text, 0.1, i) for i, text in enumerate(base)]  # about 0.42
    path = write(tmp_path / "a.jsonl", [*base, *near, *far])
    made = prepare([path], tmp_path / "p", Clean(deduplicate=Deduplicate(near=0.8)))
    assert made.manifest["dropped"].get("near-duplicate", 0) + made.manifest["dropped"].get("duplicate", 0) == 30
    assert kept(made) == [*base, *far]
    exact = prepare([path], tmp_path / "exact", Clean())
    assert exact.manifest["kept"] >= 80


def test_minhash_estimates_the_jaccard_similarity():
    a = texts(1, size=(2000, 2000))[0]
    b = changed(a, 0.03)
    how = Deduplicate(near=0.8, permutations=1024)
    one, two = signatures([unit_hashes(units(a)), unit_hashes(units(b))], how)
    sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b)]
    true = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert np.mean(one == two) == pytest.approx(true, abs=0.06)  # 4 standard errors of 1,024 hashes
    assert abs(np.mean(one == two) - true / 2) > 0.06
    assert signatures([unit_hashes([])], how) == [None]


@pytest.mark.parametrize("near", [0.5, 0.7, 0.8, 0.95])
def test_bands_find_97_percent_of_the_pairs(near):
    def found(rows):
        return 1 - (1 - near**rows) ** (128 // rows)

    rows = rows_of_a_band(near, 128)
    assert found(rows) >= 0.97 > found(rows + 1)


@pytest.mark.parametrize("action", ["drop", "report"])
def test_overlap_with_an_evaluation_set(tmp_path, action):
    lines = texts(20, size=(60, 90))
    held = write(tmp_path / "held.jsonl", [texts(1, seed=5)[0] + lines[3][10:24], "短", *texts(4, seed=6)])
    english = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    source = write(tmp_path / "a.jsonl", [*lines, f"Then: {english.upper()}, and so on and on", english.replace("seven", "7") + " end"])
    other = write(tmp_path / "english.jsonl", [english])
    clean = Clean(filter=None, overlap=Overlap(sources=(held, other), action=action))
    made = prepare([source], tmp_path / "p", clean)
    assert made.manifest["overlap"] == {held: 1, other: 1}
    assert made.manifest["dropped"] == ({"overlap": 2} if action == "drop" else {})
    assert (lines[3] in kept(made)) == (action == "report")
    assert [each["too_short"] for each in made.manifest["evaluation_sets"]] == [1, 0]


def test_a_mixture_repeats_and_thins_out_by_weight():
    rows = [{"text": text} for text in texts(400)]
    mixed = Mixture([(rows[:10], 2.0), (rows[10:], 0.5)])
    counts = Counter(row["text"] for row in mixed)
    assert [counts[row["text"]] for row in rows[:10]] == [2] * 10
    assert 150 < sum(counts[row["text"]] for row in rows[10:]) < 240
    assert list(mixed) == list(mixed)
    assert list(mixed) != list(Mixture([(rows[:10], 2.0), (rows[10:], 0.5)], seed=1))


def test_what_is_there_is_used_again_and_another_folder_is_left_alone(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", texts(30))
    made = prepare([path], tmp_path / "p")
    monkeypatch.setattr(pipeline, "judge_all", lambda *a: pytest.fail("worked again"))
    assert prepare([WeightedSource(source=path, weight=3.0)], tmp_path / "p").manifest == made.manifest
    with pytest.raises(ValueError, match="other sources or in another way"):
        prepare([path], tmp_path / "p", Clean(filter=Filter(min_length=20)))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="something else than prepared text"):
        prepare([path], tmp_path / "thesis")
    (tmp_path / "p" / made.manifest["sources"][0]["files"][0]["name"]).write_text("")
    with pytest.raises(ValueError, match="cut short"):
        Cleaned.open(tmp_path / "p")
    (tmp_path / "p/manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="not a manifest"):
        Cleaned.open(tmp_path / "p")


@pytest.mark.parametrize(
    ("rows", "clean", "says"),
    [
        ([{"text": "短"}], Clean(), r"none of 1 documents is left \(too short 1\)"),
        ([{"body": "短"}], Clean(), "line 1: no text in the column 'text', but 'body'"),
        ([{"text": 3}], Clean(), "no text in the column 'text'"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, rows, clean, says):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        prepare([str(path)], tmp_path / "p", clean)
    assert "\n" not in str(caught.value)


def test_several_columns_are_judged_together(tmp_path):
    path = tmp_path / "a.jsonl"
    pairs = [{"source": "Ａ" * 6, "target": text, "n": 1} for text in ("甲乙丙丁戊己", "甲乙丙丁戊己", "庚")]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")
    made = prepare([str(path)], tmp_path / "p", Clean(columns=("source", "target"), normalize=Normalize(half_width=True)))
    assert list(made.parts()[0]) == [{"source": "A" * 6, "target": "甲乙丙丁戊己", "n": 1}]
    assert made.manifest["dropped"] == {"duplicate": 1, "too short": 1}


# Killed and started again

WORK = """
import sys
from triform.data import pipeline, prepare, Clean, Deduplicate
pipeline.FILE_CHARACTERS, pipeline.BATCH_ROWS = 2000, 16
if __name__ == "__main__":
    prepare([sys.argv[1], sys.argv[2]], sys.argv[3], Clean(deduplicate=Deduplicate(near=0.8)), workers=int(sys.argv[4]))
"""
DIES = """
import os, signal
from triform.config import files
from triform.data import pipeline
left = [int(sys.argv[5])]
def dying(name, function):
    def called(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called
pipeline.sync = dying("sync", pipeline.sync)
pipeline._File.add = dying("add", pipeline._File.add)
pipeline._Preparation._finish = dying("finish", pipeline._Preparation._finish)
"""


def work(tmp_path, sources, folder, workers=1, dies=None):
    script = tmp_path / "work.py"
    script.write_text(WORK.replace("if __name__", DIES + "if __name__") if dies else WORK, "utf-8")
    arguments = [sys.executable, str(script), *sources, str(folder), str(workers)] + ([str(dies)] if dies else [])
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    base = texts(120)
    again = [*base[:9], *(changed(text, 0.004) for text in base[:9])]
    sources = [write(folder / "a.jsonl", base + again), write(folder / "b.jsonl", texts(60, seed=3))]
    done = work(folder, sources, folder / "p")
    assert done.returncode == 0, done.stderr
    made = contents(folder / "p")
    assert sum(name.startswith("text/") for name in made) > 6
    return sources, made


@pytest.mark.parametrize("dies", [1, 30, 33, 34, 35, 36, 90, 150, 170, 190, 220])
def test_a_killed_process_is_gone_on_from_to_the_same_bytes(tmp_path, undisturbed, monkeypatch, dies):
    sources, expected = undisturbed
    killed = work(tmp_path, sources, tmp_path / "p", dies=dies)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "p/manifest.json").exists()
    assert contents(tmp_path / "p") != expected
    monkeypatch.setattr(pipeline, "FILE_CHARACTERS", 2000)
    monkeypatch.setattr(pipeline, "BATCH_ROWS", 16)
    prepare(sources, tmp_path / "p", Clean(deduplicate=Deduplicate(near=0.8)))
    assert contents(tmp_path / "p") == expected


def test_several_processes_make_the_same(tmp_path, undisturbed):
    sources, expected = undisturbed
    done = work(tmp_path, sources, tmp_path / "p", workers=2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "p") == expected


def encode(batch):
    return [{"text": [ord(c) for c in row["text"]]} for row in batch]


@pytest.mark.parametrize("stops", [3, 40, 71])
def test_shards_are_gone_on_with_after_their_last_commit(tmp_path, monkeypatch, stops):
    monkeypatch.setattr(shards, "COMMIT_TOKENS", 500)
    rows = [{"text": text} for text in texts(80)]

    def run(name, code):
        return shards.prepare(rows, code, tmp_path / name, {"a": 1}, vocab_size=2**16, batch_size=4)

    whole = run("whole", encode)
    seen = []

    def dying(batch):
        if len(seen) * 4 >= stops:
            raise KeyboardInterrupt
        seen.append(batch)
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        run("cut", dying)
    after = []

    def counting(batch):
        after.extend(batch)
        return encode(batch)

    again = run("cut", counting)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == {p.name: p.read_bytes() for p in whole.folder.iterdir()}
    assert Shards.open(again.folder, verify=True).manifest == whole.manifest
    assert (len(after) < 80) == (stops > 3 * 4)
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("harm", ["altered", "cut", "other"])
def test_a_harmed_or_foreign_beginning_is_not_gone_on_with(tmp_path, monkeypatch, harm):
    monkeypatch.setattr(shards, "COMMIT_TOKENS", 500)
    rows = [{"text": text} for text in texts(80)]

    def dying(batch):
        if batch[0] is rows[60]:
            raise KeyboardInterrupt
        return encode(batch)

    with pytest.raises(KeyboardInterrupt):
        shards.prepare(rows, dying, tmp_path / "s", {"a": 1}, vocab_size=2**16, batch_size=4)
    file = tmp_path / "s.partial/text.tokens"
    data = file.read_bytes()
    if harm != "other":
        file.write_bytes(data[:9] if harm == "cut" else bytes([data[0] ^ 1]) + data[1:])
    made = shards.prepare(rows, encode, tmp_path / "s", {"a": 2 if harm == "other" else 1}, vocab_size=2**16, batch_size=4)
    assert made[0]["text"].tolist() == [ord(c) for c in rows[0]["text"]]
    assert len(made) == 80


# Memory

MEASURE = r"""
import json, re, sys
from triform.data import pipeline, prepare, shards, Clean, Deduplicate
pipeline.CACHE_KIB = 4096
pipeline.FILE_CHARACTERS = 400_000
shards.COMMIT_TOKENS = 400_000
made = prepare([sys.argv[1]], sys.argv[2] + "/p", Clean(deduplicate=Deduplicate(near=0.8)))
encode = lambda batch: [{"text": [ord(c) for c in row["text"]]} for row in batch]
shards.prepare(made.parts()[0], encode, sys.argv[2] + "/s", {}, vocab_size=2**17)
rows = list(made.parts()[0]) if sys.argv[3] == "held" else []
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
print(json.dumps([made.manifest["kept"], peak * 1024]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    def peak(thousands, held=""):
        path = write(tmp_path / "some.jsonl", texts(thousands * 1000, seed=thousands, size=(300, 400)))
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            run = [sys.executable, "-c", MEASURE, path, folder, held]
            count, found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
        assert count > 990 * thousands
        return found

    small, large = peak(4), peak(40)
    assert (tmp_path / "some.jsonl").stat().st_size > 40e6
    assert large - small < 12e6
    assert peak(40, "held") - small > 24e6
