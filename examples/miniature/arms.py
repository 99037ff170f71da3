"""What the miniature compares: conditions, arms, learning rates, sizes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from language import Kind

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
"""The same for every arm; each arm's is chosen on the validation seed, in the first condition, by `study.choose_rate`."""
MOST_SHORT_LOSS = 1.0
"""Points of short accuracy that a chosen learning rate may cost."""
VALIDATION_SEED = 100
SEEDS = (0, 1, 2)
LEAST_SHORT = 90.0
"""Percent of the questions on one chunk that the base model of a seed must answer, or the study refuses the seed."""

SEQ_LENGTH = 1024
"""Eight chunks and four turns of the longest answer need a little more: pairs hold the first seven chunks."""
NUM_DOCUMENTS = 320
ITERATIONS = 40
GLOBAL_BATCH_SIZE = 8
QUESTIONS = 200
"""Questions of each group in an evaluation."""
SHORT_QUESTIONS = 1000
"""The same about documents of one chunk, in an evaluation of their own: short accuracy is judged to a point."""
QUESTIONS_IN_TRAINING, INTERVAL = 60, 10
"""The same while an arm is trained, and iterations between them."""

LONG_CHUNKS = 8
"""Length of a long document."""
EVALUATED_CHUNKS = (1, 2, 4, LONG_CHUNKS)
RAISED_ROTARY_BASES = (1e5, 5e4, 2e4)
"""Candidates, ten times the model's own first, as in the paper."""
MOST_AFTER_RAISING = 40.0
"""The rule by which a seed's raised base is chosen: the first candidate with which the untrained model answers at most this share
of the long questions of the first condition. A base that mends everything by itself leaves nothing to compare."""


@dataclasses.dataclass(frozen=True)
class Grade:
    """A part of a base model's schooling.

    Attributes:
        name: in the names of its files.
        words: lengths of its lessons' documents.
        lessons: how many.
        iterations: of 48 lessons.
        nll_scope: what is learned.
        lr: peak learning rate.
        min_lr: at the end.
        lists: share of its longer lessons that are about lists.
        scopes: share of its lessons in which only the scope tells what is meant.
    """

    name: str
    words: tuple[int, ...]
    lessons: int
    iterations: int
    nll_scope: str
    lr: float
    min_lr: float
    lists: float = 0.0
    scopes: float = 0.0


SCHOOL = (
    Grade("0", (20, 24, 32), 12000, 1600, "answers", 2e-3, 2e-3),
    Grade("1", (24, 36, 48, 64, 80, 112), 16000, 1000, "all", 2e-3, 1e-4),
)
"""Looking up emerges on short documents, after 500 to 1,000 iterations or later; then they grow, and their text is learned."""
LISTS = (Grade("lists", (36, 48, 64, 80, 112), 8000, 800, "answers", 1e-3, 1e-4, lists=0.7),)
"""After the school, for the condition that asks for lists."""
SCOPES = (
    Grade("scopes-short", (8, 12, 16, 24, 32), 16000, 3000, "answers", 2e-3, 1e-3, scopes=1.0),
    Grade("scopes-text", (12, 24, 36, 48, 64, 80, 112), 16000, 1000, "all", 1e-3, 1e-4, scopes=0.7),
)
"""For the condition in which only the scope tells what is meant; that emerges after some 2,000 iterations on short documents."""
ERRING_ITERATIONS = (10, 20, 30, 40, 50)
ERRING_TARGET = 85.0
"""The model that errs is the checkpoint, of these of the last grade, that answers nearest to this share of short questions."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """Documents, and the model that reads them.

    Attributes:
        name: in the results.
        title: for a reader.
        kind: what is asked for.
        shared_keys: a document's scopes share their keys.
        errs: the base is an earlier checkpoint, which errs on short documents too.
        grades: what its base is taught after the school.
        max_new_tokens: longest answer.
    """

    name: str
    title: str
    kind: Kind = "facts"
    shared_keys: bool = False
    errs: bool = False
    grades: tuple[Grade, ...] = ()
    max_new_tokens: int = 16


CONDITIONS = (
    Condition("right", "labels always right"),
    Condition("noisy", "a short-context model that errs", errs=True),
    Condition("scopes", "systematic long-context errors: the same key in several scopes", shared_keys=True, grades=SCOPES),
    Condition("lists", "longer answers", kind="lists", grades=LISTS),
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train on the same pairs.

    Attributes:
        name: in the results.
        flags: of pretrain_longpo.py.
        reference: the cache that it reads, if any.
        lr_of: the arm whose learning rate it takes; else the rule chooses its own.
    """

    name: str
    flags: tuple[str, ...]
    reference: Literal["short", "long", "both", "none"] = "short"
    lr_of: str = ""


def _of_margin(loss_type: str) -> tuple[str, ...]:
    return ("--preset", "paper", "--loss-type", loss_type)


ARMS = (
    Arm("sft", ("--preset", "sft"), "none"),
    Arm("nll", ("--preset", "paper", "--preference-weight", "0"), "none"),
    Arm("dpo", ("--preset", "dpo"), "long"),
    Arm("dpo-same-lr", ("--preset", "dpo"), "long", lr_of="longpo"),
    Arm("longpo-no-s2l", ("--preset", "longpo-no-s2l"), "long"),
    Arm("longpo-no-nll", ("--preset", "longpo-no-nll", "--preference-weight", "1")),
    Arm("longpo", ("--preset", "paper")),
    Arm("hinge", _of_margin("hinge")),
    Arm("ipo", _of_margin("ipo")),
    Arm("simpo", ("--preset", "simpo"), "none"),
    Arm("solo-dpo", ("--preset", "solo-dpo"), "both"),
    Arm("solo-simpo", ("--preset", "solo-simpo"), "none"),
    Arm("solo-orpo", ("--preset", "solo-orpo"), "none"),
    Arm("sft-s2l", ("--preset", "sft-s2l"), "none"),
)
"""``base`` and ``raised``, which are not trained, stand beside them."""
