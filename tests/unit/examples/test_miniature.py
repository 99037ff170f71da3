"""The language of the miniature, and the commands of its study."""

import contextlib
import importlib.util
import json
import random
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.evolution.config import read_config
from megatron_longpo.utils.errors import UserError
from tests.e2e.test_examples import assert_flags_are_taken
from tests.support.recorded_commands import ROOT, read_command

MINIATURE = ROOT / "examples" / "miniature"
NAMES = ("language", "make_model", "make_data", "arms", "tasks", "study", "compare_rounds", "report")


@pytest.fixture(scope="module")
def parts():
    """The example's scripts, imported as running them would."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(MINIATURE))
    modules: dict[str, ModuleType] = {}
    for name in NAMES:
        specification = importlib.util.spec_from_file_location(name, MINIATURE / f"{name}.py")
        modules[name] = importlib.util.module_from_spec(specification)
        patch.setitem(sys.modules, name, modules[name])
        specification.loader.exec_module(modules[name])
    yield modules
    patch.undo()


NAMED_ROUNDS = ("4x", "8x", "at-once")
KINDS = st.sampled_from(("facts", "lists", "notes"))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), KINDS, st.booleans())
def test_reading_a_chunk_finds_the_questions_that_it_was_written_for(parts, seed, num_chunks, kind, shared_keys):
    language = parts["language"]
    document = language.make_document(random.Random(seed), num_chunks, kind=kind, shared_keys=shared_keys)
    assert [len(chunk.split()) for chunk in document.chunks] == [language.CHUNK_WORDS] * num_chunks
    for number, chunk in enumerate(document.chunks):
        assert sorted(language.find_questions(chunk)) == sorted(q.text for q in document.questions if q.chunk == number)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), KINDS, st.booleans())
def test_a_document_has_one_answer_to_each_question(parts, seed, num_chunks, kind, shared_keys):
    document = parts["language"].make_document(random.Random(seed), num_chunks, kind=kind, shared_keys=shared_keys)
    text = " ".join(document.text.split())
    for question in document.questions:
        _, scope, key = question.text.split()
        assert text.count(f" {scope} {key} ") + text.startswith(f"{scope} {key} ") == 1
        assert f"{scope} {key} {question.answer}" in text
    keys = [question.text.split()[2] for question in document.questions]
    assert len(set(keys)) <= 8 if shared_keys else len(set(keys)) == len(keys)


def test_a_document_and_its_questions_depend_on_the_seed_alone(parts):
    make = parts["language"].make_document
    assert make(random.Random(3), 4) == make(random.Random(3), 4) != make(random.Random(4), 4)
    asked = [parts["language"].ask(make(random.Random(3), 1).text, 2, seed) for seed in (5, 5)]
    assert asked[0] == asked[1]
    assert len(asked[0]) == 2


def test_the_tokenizer_knows_every_word_and_an_answer_follows_its_question_at_once(parts):
    tokenizer = parts["make_model"].make_tokenizer()
    document = parts["language"].make_document(random.Random(0), 2, kind="notes")
    question = document.questions[0]
    chat = [
        {"role": "user", "content": f"{document.text}\n\n{question.text}"},
        {"role": "assistant", "content": question.answer},
    ]
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (asked, whole)]
    assert tokenizer.unk_token_id not in ids[1]
    assert tokenizer.decode(ids[1][len(ids[0]) :]).split() == [*question.answer.split(), "<end>"]


def test_lessons_are_right_and_their_two_sides_differ_in_the_last_answer_alone(parts):
    for lesson in parts["make_data"].lessons(random.Random(1), 60, (24, 64, 112), lists=0.3, scopes=0.3):
        told, turns = f" {' '.join(lesson['long_context'].split())} ", lesson["turns"]
        assert [turn["chosen"] == turn["rejected"] for turn in turns] == [True] * (len(turns) - 1) + [False]
        for turn in turns:
            kind, *asked = turn["instruction"].split()
            if kind in ("Q", "N"):
                assert f" {' '.join(asked)} {turn['chosen']} " in told
            elif kind == "REV":
                assert [*turn["chosen"].split()[::-1], "?"] == asked


def test_no_document_has_the_mark_that_ends_a_chats_question_about_a_skill(parts):
    language = parts["language"]
    text = language.make_document(random.Random(3), 4).text
    for question in (language.ask_to_reverse(random.Random(0)), language.ask_about("e7")):
        assert question.text.endswith(language.WHAT)
        assert question.text.split()[0] in text.split()
    assert language.WHAT not in text.split()
    assert text.split().count(language.IS) == 2 * 4


def test_questions_come_from_as_many_chunks_as_there_are(parts):
    make_data = parts["make_data"]
    document = parts["language"].make_document(random.Random(2), 8)
    assert len({question.chunk for question in make_data._spread(random.Random(0), document, 4)}) == 4
    assert len(make_data._spread(random.Random(0), parts["language"].make_document(random.Random(2), 1), 4)) == 4


def test_every_command_of_the_study_takes_its_flags(parts):
    study, arms = parts["study"], parts["arms"]
    seed, lists = study.Seed(0), arms.CONDITIONS[3]
    tasks = (*seed.school(), *seed.teach(lists), *seed.pairs(lists, arms.ARMS, 1e5), seed.write_questions(lists))
    kinds = {task.name: task for task in tasks}
    once = {tuple(task.command[:2]): task for task in kinds.values() if not task.command[1].startswith(study.HERE)}
    trained = [seed.train(lists, arm, 1e-4, 1e5) for arm in arms.ARMS]
    models = {"longpo": seed.trained(lists, arms.ARMS[0], 1e-4)}
    asked = [seed.evaluate(lists, models, short=short) for short in (False, True)]
    asked += [seed.evaluate_raised(lists, 1e5, short=short) for short in (False, True)]
    for task in (*once.values(), *trained, *asked):
        assert_flags_are_taken(read_command(list(task.command)))


@pytest.mark.slow
def test_the_scripts_of_the_example_take_the_flags_that_the_study_gives_them(parts, tmp_path, monkeypatch):
    """They run: each is over at once."""
    study, arms = parts["study"], parts["arms"]
    monkeypatch.setattr(study, "BUILD", tmp_path)
    monkeypatch.setattr(arms, "NUM_DOCUMENTS", 3)
    monkeypatch.setattr(arms, "QUESTIONS", 4)
    monkeypatch.setattr(arms, "SHORT_QUESTIONS", 8)
    seed, scopes = study.Seed(0), arms.CONDITIONS[2]
    written = [seed.write_questions(scopes), seed.write_short_questions(scopes)]
    wanted = [*seed.school(), *written, *seed.pairs(scopes, arms.ARMS, 1e5)]
    own = [task for task in wanted if task.command[1].startswith(study.HERE) and "lessons" not in task.name]
    assert len(own) == 4
    parts["tasks"].Pool(tmp_path, 1).run("test", [own])
    many, short = ({"1x": 4, "2x": 4, "4x": 4, "8x": 4, "reverse": 4, "recall": 48}, {"1x": 8, "reverse": 8, "recall": 48})
    for path, wanted_groups in ((seed.questions(scopes), many), (seed.questions(scopes, short=True), short)):
        groups = [json.loads(line)["group"] for line in path.read_text().splitlines()]
        assert {name: groups.count(name) for name in groups} == wanted_groups


def test_a_task_is_done_once_and_again_with_what_follows_when_it_changes(parts, tmp_path):
    tasks, log = parts["tasks"], tmp_path / "log"

    def chain(word: str) -> list:
        code = f"import sys; open({str(log)!r}, 'a').write(sys.argv[1])"
        return [tasks.Task(name, ("python", "-c", code, text)) for name, text in (("a", "a"), ("b", word), ("c", "c"))]

    for word in ("b", "b", "B"):
        tasks.Pool(tmp_path, 2).run("test", [chain(word)])
    assert log.read_text() == "abc" + "Bc"


def test_a_task_whose_sources_have_changed_is_done_again_from_nothing(parts, tmp_path):
    tasks, log, source, progress = parts["tasks"], tmp_path / "log", tmp_path / "source.py", tmp_path / "progress"
    code = """
import os, sys
log, progress, fail = sys.argv[1:]
os.makedirs(progress, exist_ok=True)
open(log, "a").write(str(len(os.listdir(progress))))
open(f"{progress}/saved", "w")
sys.exit(os.path.exists(fail))
"""
    task = tasks.Task("a", ("python", "-c", code, str(log), str(progress), str(tmp_path / "fail")), (source,), progress)
    for text, fails in (("1", True), ("1", False), ("1", False), ("2", False)):
        source.write_text(text)
        (tmp_path / "fail").touch() if fails else (tmp_path / "fail").unlink(missing_ok=True)
        with pytest.raises(UserError) if fails else contextlib.nullcontext():
            tasks.Pool(tmp_path, 1).run("test", [[task]])
    assert log.read_text() == "01" + "0"  # it goes on after the failure, is done, and begins anew


def test_what_a_script_of_the_example_makes_depends_on_it_and_on_the_language(parts):
    seed = parts["study"].Seed(0)
    for task in (*seed.school(), *seed.pairs(parts["arms"].CONDITIONS[0], parts["arms"].ARMS, 1e5)):
        own = task.command[1].startswith("examples/miniature/")
        assert [path.name for path in task.sources] == ([Path(task.command[1]).name, "language.py"] if own else [])
        assert all(path.exists() for path in task.sources)


def test_a_failed_task_is_named_with_its_last_line_and_tried_again(parts, tmp_path):
    tasks = parts["tasks"]
    failing = tasks.Task("broken", ("python", "-c", "print('no such thing'); raise SystemExit(2)"))
    for _ in range(2):
        with pytest.raises(UserError, match="broken failed: no such thing"):
            tasks.Pool(tmp_path, 1).run("test", [[failing]])


def write_results(folder, model, **groups):
    place = folder / model
    place.mkdir(parents=True)
    found = {name: {"score": score} for name, score in groups.items()}
    (place / "results.json").write_text(json.dumps({"questions": {"miniature": {"groups": found}}}))
    answers = (("reverse", "l1 l2 f3"), ("reverse", "l2"), ("recall", "l1 l2"), ("recall", "l1 l2"))
    samples = [{"group": group, "answer": answer, "expected": ["l1 l2"]} for group, answer in answers]
    (place / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def test_rows_are_means_and_spreads_over_seeds(parts, tmp_path, monkeypatch):
    study, report, right = parts["study"], parts["report"], parts["arms"].CONDITIONS[0]
    monkeypatch.setattr(study, "BUILD", tmp_path)
    for seed, long in ((0, 60.0), (1, 70.0), (2, 80.0)):
        place = study.Seed(seed).place(right)
        same = {"1x": 99.0, "2x": 98.0, "4x": 90.0, "reverse": 50.0, "recall": 100.0}
        short = {"1x": 97.0}
        for model in ("base", "longpo"):
            write_results(place / "evaluation", model, **same, **{"8x": long if model == "longpo" else 2.0})
            write_results(place / "evaluation-short", model, **short)
        write_results(place / "evaluation-raised", "raised", **same, **{"8x": 10.0})
        write_results(place / "evaluation-raised-short", "raised", **short)
    rates = {"longpo": 3e-4, "sft": 1e-4}
    measured = report.measure_all(right, [study.Seed(seed) for seed in (0, 1, 2)], rates)
    rows = {row["method"]: row for row in report.rows_of(right, measured, rates)}
    assert set(rows) == {"base", "raised", "longpo"}
    found = rows["longpo"]
    assert (found["long"], found["long_sd"], found["skills"], found["lr"], found["seeds"]) == (70.0, 10.0, 75.0, 3e-4, 3)
    assert (found["short"], found["1x"]) == (97.0, 97.0)  # of the many questions, not of those asked at every length
    assert found["skills_begun"] == 75.0  # half of the reversals begin right, all recollections do
    assert (rows["raised"]["long"], rows["raised"]["lr"], rows["raised"]["steps"]) == (10.0, None, 0)
    assert "| `longpo` | 0.0003 | 70.0 ± 10.0 |" in "\n".join(report.table(list(rows.values())))


def test_a_learning_rate_wins_by_long_accuracy_among_those_that_keep_short_accuracy(parts):
    choose = parts["study"].choose_rate
    found = {1e-4: {"1x": 98.5, "8x": 20.0}, 3e-4: {"1x": 97.5, "8x": 40.0}, 1e-3: {"1x": 93.0, "8x": 60.0}}
    assert choose(found, 98.5, "8x") == 3e-4  # a loss of one point is within the bound
    assert choose(found, 99.0, "8x") == 1e-4
    assert choose(found, 94.0, "8x") == 1e-3
    assert choose(found, 100.0, "8x") == 1e-4  # none keeps it: the one that loses least


def test_a_seed_whose_base_cannot_look_up_is_refused(parts, tmp_path, monkeypatch):
    study, arms = parts["study"], parts["arms"]
    monkeypatch.setattr(study, "BUILD", tmp_path)
    monkeypatch.setattr(study.Pool, "run", lambda *_: None)
    seed, last = study.Seed(7), arms.SCHOOL[-1].iterations
    for stop in (*arms.ERRING_ITERATIONS, last):
        groups = {"1x": 34.0, "8x": 1.0}
        write_results(seed.folder / "evaluation-stops", str(stop), **groups)
    for base in arms.RAISED_ROTARY_BASES:
        write_results(seed.folder / f"evaluation-rotary-{base:g}", "raised", **groups)
    with pytest.raises(UserError, match=r"seed 7: the base model answers 34% of the questions on one chunk, below 90%"):
        study.choose_bases([seed], study.Pool(tmp_path, 1))


def test_a_seed_whose_further_taught_base_cannot_look_up_is_refused(parts, tmp_path, monkeypatch):
    study, lists = parts["study"], parts["arms"].CONDITIONS[3]
    monkeypatch.setattr(study, "BUILD", tmp_path)
    monkeypatch.setattr(study.Pool, "run", lambda *_: None)
    seed = study.Seed(7)
    write_results(seed.taught(lists), "base", **{"1x": 60.0})
    with pytest.raises(UserError, match=r"seed 7: the base model of `lists` answers 60% of the questions on one chunk"):
        study.teach_more([seed], [lists], study.Pool(tmp_path, 1))


def test_only_a_condition_with_a_grade_of_its_own_has_another_base(parts):
    seed = parts["study"].Seed(0)
    bases = {condition.name: seed.native(condition).as_posix() for condition in parts["arms"].CONDITIONS}
    start = "build/miniature/seed0"
    assert bases == {
        "right": f"{start}/base",
        "noisy": f"{start}/erring",
        "scopes": f"{start}/scopes/base",
        "lists": f"{start}/lists/base",
    }
    school = parts["arms"].SCHOOL
    for condition in parts["arms"].CONDITIONS:
        trainings = (
            [task.command for task in seed.teach(condition) if "pretrain_longpo.py" in task.command] if condition.grades else []
        )
        starts = [command[command.index("--pretrained-checkpoint") + 1] for command in trainings]
        wanted = (school[-1], *condition.grades)[: len(condition.grades)]
        assert starts == [seed.graduate(grade).as_posix() for grade in wanted]


def test_early_checkpoints_are_kept_where_one_of_them_is_the_base_that_errs(parts):
    kept = [task.command for task in parts["study"].Seed(0).school() if "pretrain_longpo.py" in task.command]
    assert ["--keep-checkpoints" in command for command in kept] == [True, False]
    assert kept[1][kept[1].index("--save-interval") + 1] == str(parts["arms"].ERRING_ITERATIONS[0])


def test_in_a_lesson_about_scopes_every_scope_says_something_of_every_key(parts):
    for lesson in parts["make_data"].lessons(random.Random(5), 40, (8, 24, 112), scopes=1.0):
        asked = [turn["instruction"].split() for turn in lesson["turns"]]
        if asked[0][0] == "Q":
            words = lesson["long_context"].split()
            scopes = {word for word in words if word in parts["language"].SCOPES}
            assert len(scopes) >= 2
            assert all(words.count(key) == len(scopes) for _, _, key in asked)


def test_lessons_about_lists_are_of_their_share_and_change_no_lesson_without_them(parts):
    make_data = parts["make_data"]
    words = (36, 112)
    listed = list(make_data.lessons(random.Random(4), 400, words, lists=0.7))
    lengths = [len(lesson["turns"][0]["chosen"].split()) for lesson in listed]
    assert 0.5 < lengths.count(parts["language"].VALUE_WORDS["lists"]) / len(lengths) < 0.7  # of the lessons that have a document
    without = list(make_data.lessons(random.Random(4), 400, words))
    assert not any(len(turn["chosen"].split()) == 8 for lesson in without for turn in lesson["turns"])


def test_an_answer_is_right_or_what_another_scope_says_or_wrong(parts):
    kind_of = parts["report"].kind_of
    document = "f1 s1 k1 v1 v2 f2\n\ns2 k1 v3 v4 s3 k2 v1 v9"
    answers = {"v1 v2": "right", "v3 v4": "other scope", "v1 v9": "wrong", "v1": "wrong", "": "wrong"}
    assert {answer: kind_of(answer, "Q s1 k1", document) for answer in answers} == answers
    document = "s1 k1 v1 v2 v3 v4 v5 v6 v7 v8 f1"
    answers = {"v1 v2 v3 v4 v5 v6 v7 v8": "right", "v1 v2": "wrong", "v1 v2 v3 v4 v5 v6 v7 v9": "wrong"}
    assert {answer: kind_of(answer, "Q s1 k1", document, "lists") for answer in answers} == answers


def test_two_rounds_and_one_at_once_start_from_the_same_base_and_read_as_many_tokens(parts, tmp_path, monkeypatch):
    compare = parts["compare_rounds"]
    monkeypatch.setattr(compare, "BUILD", tmp_path)
    monkeypatch.chdir(ROOT)
    path = compare.write_plan(3, 1e-3)
    assert compare.learning_rate(3) == 1e-3
    config = read_config(path)
    plan_of = runpy.run_path(str(ROOT / "tools" / "self_evolve.py"))["plan_of"]
    commands = {stage.name: " ".join(stage.command) for stage in plan_of(config).stages}

    def flag(stage: str, name: str) -> str:
        return commands[stage].split(f"--{name} ")[1].split()[0]

    tokens = {name: int(flag(f"{name}/train", "train-iters")) * int(flag(f"{name}/train", "seq-length")) for name in NAMED_ROUNDS}
    assert tokens["at-once"] == tokens["4x"] + tokens["8x"]
    assert len({flag(f"{name}/documents", "seed") for name in NAMED_ROUNDS}) == 3
    assert [flag(f"{name}/documents", "number") for name in NAMED_ROUNDS] == ["960", "640", "480"]
    for name in NAMED_ROUNDS:  # a turn: template, lead-in, question of 8 and answer of 16 at most, a margin
        whole = int(flag(f"{name}/documents", "chunks")) * parts["language"].CHUNK_WORDS
        assert whole + 4 * 48 <= int(flag(f"{name}/generate", "seq-length"))
    assert (flag("model", "seed"), flag("4x/train", "seed"), flag("at-once/train", "lr")) == ("3", "3", "0.001")
    assert flag("at-once/generate", "max-chunk-tokens") == flag("4x/generate", "max-chunk-tokens") == "128"
    bases = [flag(f"{name}/train", "pretrained-checkpoint") for name in NAMED_ROUNDS]
    assert bases[0] == bases[2] != bases[1]
    assert "miniature-rounds" not in path.read_text()


def test_generation_has_the_same_flags_in_the_study_and_in_its_rounds(parts):
    tasks = parts["study"].Seed(0).pairs(parts["arms"].CONDITIONS[0], (), 1e5)
    (command,) = [task.command for task in tasks if task.command[1] == "tools/generate_preference_data.py"]
    for name, value in parts["compare_rounds"].make_plan(0, 1e-3)["defaults"]["generate"].items():
        values = value if isinstance(value, list) else [value]
        place = command.index(f"--{name}") + 1
        assert list(command[place : place + len(values)]) == values


def test_rows_of_rounds_stand_only_when_all_seeds_have_run(parts, tmp_path, monkeypatch):
    compare, report = parts["compare_rounds"], parts["report"]
    monkeypatch.setattr(compare, "BUILD", tmp_path)
    monkeypatch.chdir(ROOT)
    same = {"1x": 99.0, "2x": 98.0, "4x": 90.0, "reverse": 50.0, "recall": 100.0}
    for seed, long in ((0, 40.0), (1, 60.0)):
        assert report.rows_of_rounds([0, 1]) == []
        compare.write_plan(seed, 1e-3)
        for model, _ in report.ROUNDS.values():
            write_results(compare.folder_of(seed) / "evaluation", model, **same, **{"8x": long if model == "8x" else 2.0})
    rows = {row["method"]: row for row in report.rows_of_rounds([0, 1])}
    second = rows["second round, 8x"]
    assert (second["long"], second["long_by_seed"], second["skills"], second["lr"]) == (50.0, [40.0, 60.0], 75.0, 1e-3)
    assert (rows["base"]["long"], rows["base"]["lr"], rows["8x at once"]["steps"]) == (2.0, None, 60)
    assert "| second round, 8x | 80 | 50.0 ± 14.1 | 40.0, 60.0 |" in "\n".join(report.table_of_rounds(list(rows.values())))


def test_answers_are_counted_by_the_scope_whose_value_they_are(parts, tmp_path, monkeypatch):
    study, scopes = parts["study"], parts["arms"].CONDITIONS[2]
    monkeypatch.setattr(study, "BUILD", tmp_path)
    seed = study.Seed(0)
    document = "s1 k1 v1 v2 f2\n\ns2 k1 v3 v4\n\ns3 k2 v5 v6\n\ns4 k1 v7 v8"
    asked = [("8x", "s1", "v1 v2"), ("8x", "s2", "v3 v4"), ("8x", "s4", "v7 v8"), ("4x", "s1", "v1 v2")]
    answers = ("v1 v2", "v7 v8", "v9", "v1 v2")
    written = [{"group": g, "context": document, "question": f"Q {s} k1", "answers": [right]} for g, s, right in asked]
    seed.place(scopes).mkdir(parents=True)
    seed.questions(scopes).write_text("".join(json.dumps(record) + "\n" for record in written))
    samples = [{"group": group, "answer": answer} for (group, _, _), answer in zip(asked, answers, strict=True)]
    for folder, method in (("evaluation", "longpo"), ("evaluation-raised", "raised")):
        place = seed.place(scopes) / folder / method
        place.mkdir(parents=True)
        (place / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    text = parts["report"].scopes_of_answers(scopes, [seed], ["raised", "longpo"])
    assert "`raised` 67 and 50%, `longpo` 67 and 50%" in text
    assert text.endswith("would have 33%.")
    text = parts["report"].lengths_of_answers(scopes, [seed], ["longpo"])
    assert text == "Answers at 8 chunks that have 2 words, right or wrong: `longpo` 67%."
