"""Thirty answers to tiny published rows of each benchmark, and where lmms-eval judges otherwise."""

from itertools import product

from benchmark_files import CHOICE, HALLUSION, MMMU, NUMBER, STEP, VERSE, picture

# Published rows, each with an answer to it.
Cases = list[tuple[dict, str]]
RANDOM = "picked at random"


def numbered(column: str, form: str, questions: list[tuple[dict, list[str]]]) -> Cases:
    """Return each question once per answer, with a name of its own in `column`."""
    pairs = [(row, answer) for row, answers in questions for answer in answers]
    return [
        ({**row, column: form.format(number)}, answer) for number, (row, answer) in enumerate(pairs)
    ]


LETTER_HINT = (
    "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, "
    "at the end."
)
INTEGER_HINT = (
    "Hint: Please answer the question requiring an integer answer and provide the final value, "
    "e.g., 1, 2, 3, at the end."
)
FLOAT_HINT = (
    "Hint: Please answer the question requiring a floating-point number with one decimal place "
    "and provide the final value, e.g., 1.2, 1.3, 1.4, at the end."
)
LIST_HINT = (
    "Hint: Please answer the question requiring a Python list as an answer and provide the final "
    "list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end."
)
VISTA_METADATA = {**CHOICE["metadata"], "split": "testmini", "context": "scene", "source": "own"}
VISTA_CHOICE = {
    **CHOICE,
    "question": "Which?",
    "query": f"{LETTER_HINT}\nQuestion: Which?\nChoices:\n(A) 4\n(B) 5",
    "metadata": VISTA_METADATA,
}
VISTA_WORDS = {
    **VISTA_CHOICE,
    "question": "Is it?",
    "choices": ["Yes", "No"],
    "answer": "Yes",
    "query": f"{LETTER_HINT}\nQuestion: Is it?\nChoices:\n(A) Yes\n(B) No",
}
VISTA_FLOAT = {
    **NUMBER,
    "question": "How long?",
    "unit": "cm",
    "precision": 1.0,
    "query": f"{FLOAT_HINT}\nQuestion: How long? (Unit: cm)",
    "metadata": {**VISTA_METADATA, "skills": ["logical"]},
}
VISTA_INTEGER = {
    **VISTA_FLOAT,
    "question": "How many?",
    "unit": None,
    "precision": None,
    "answer_type": "integer",
    "answer": "7",
    "query": f"{INTEGER_HINT}\nQuestion: How many?",
}
VISTA_LIST = {
    **VISTA_INTEGER,
    "question": "Between which years?",
    "answer_type": "list",
    "answer": "[2007, 2008]",
    "query": f"{LIST_HINT}\nQuestion: Between which years?",
}
MATHVISTA = numbered(
    "pid",
    "{}",
    [
        (VISTA_CHOICE, ["B", "(B)", "(B) 5", "B. 5", "5", "A", "4", "C", "The answer is (B)."]),
        (VISTA_WORDS, ["A", "Yes", "yes", "No", "(A) No", "Yess", "both"]),
        (VISTA_FLOAT, ["1.2", "1.20", "1.24", "1.3", "1.2 cm"]),
        (VISTA_INTEGER, ["7", "7.0", "7.9", "seven", "8"]),
        (VISTA_LIST, ["[2007, 2008]", "2007, 2008", "[2007]", "2007-2008"]),
    ],
)

VERSIONS = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
VERSE_CHOICE = {**VERSE, "query_cot": "", "question": "", "question_for_eval": ""}
VERSE_FREE = {**VERSE_CHOICE, "question_type": "free-form", "metadata": {**VERSE["metadata"]}}
VERSE_FREE["metadata"]["subfield"] = "Area"
VERSE_ANGLE = {**VERSE_FREE, "answer": "30°", "query_wo": "Find the angle."}
VERSE_ROOT = {**VERSE_FREE, "answer": "2√3", "query_wo": "Find the area."}
VERSE_LINE = {**VERSE_FREE, "answer": "y=2x+1", "query_wo": "Which line is it?"}
MATHVERSE = numbered(
    "sample_index",
    "{}",
    [
        (VERSE_CHOICE, ["C", "A", "B", "D", "(C)", "C. 60°", "c", "The answer is C.", "60°"]),
        (VERSE_ANGLE, ["30°", "30 degrees", "60°", "30", r"30^\circ", "1/6", "π/6"]),
        (VERSE_ROOT, ["2√3", r"2\sqrt{3}", "√12", "3.46", "2√2", "3√2", "12"]),
        (VERSE_LINE, ["y=2x+1", "y = 2x + 1", "y = 1 + 2x", "2x - y + 1 = 0", "y=2x-1", "x", "1"]),
    ],
)
for number, (row, _) in enumerate(MATHVERSE):
    row["problem_version"] = VERSIONS[number % len(VERSIONS)]

VISION = {"decoded_image": picture(8), "subject": "algebra", "level": 3}
VISION_CHOICE = {
    **VISION,
    "question": "Which? <image1>",
    "options": ["10", "20", "30", "40", "50"],
    "answer": "B",
}
VISION_FREE = {**VISION, "question": "How many?", "options": [], "answer": "12", "level": 4}
VISION_HALF = {**VISION_FREE, "question": "Which share?", "answer": "0.5", "subject": "counting"}
MATHVISION = numbered(
    "id",
    "{}",
    [
        (
            VISION_CHOICE,
            ["B", "(B)", "B.", "20", "B. 20", "(B) 20", "The answer is B.", "A", "30", "D", "E."],
        ),
        (
            VISION_FREE,
            [
                "12",
                "12.0",
                "12.",
                "The answer is 12.",
                "n = 12",
                "12 apples",
                "twelve",
                "24/2",
                "13",
            ],
        ),
        (
            VISION_HALF,
            ["0.5", "1/2", r"\frac{1}{2}", ".5", "50%", "0.502", "0.51", "2", "one half", "0"],
        ),
    ],
)

WEMATH_ANSWERS = [
    *["B", "B", "B"],  # all right
    *["B.", "A", "C"],
    *["(B)", "B. 60", "D"],
    *["b", "60", "B"],
    *["A", "C", "The answer is B"],
    *["A", "D", "A. 30"],
    *["B", "(B) 60", "B)", "B"],
    *["C", "option B", "B or C", "B"],
    *["E", "no", "A", "The answer is (B)."],
]
WEMATH_STEPS = [2, 2, 2, 2, 2, 2, 3, 3, 3]


def wemath_rows() -> list[dict]:
    rows = []
    for problem, steps in enumerate(WEMATH_STEPS):
        for part in [*range(1, steps + 1), "multi"]:
            name = f"{steps}steps_{problem}"
            rows.append({**STEP, "ID": name, "key": f"{steps}steps_{part}"})
    return rows


WEMATH = list(zip(wemath_rows(), WEMATH_ANSWERS, strict=True))

CHOICE_ANSWERS = [
    *["B", "(B)", "B. it's 4", "B.", "it's 4", "The answer is B.", "A", "(C) none", "C", "I see"],
    *["A or B", "After all, it's 4 that I see there", "b", "neither", "Option B"],
]
MMMU_OPEN = {**MMMU, "question_type": "open", "options": "[]", "question": "See <image 1>."}
MMMU_24 = {**MMMU_OPEN, "answer": "24"}
MMMU_LIST = {**MMMU_OPEN, "answer": "['24/7', '3.429']"}
MMMU_WORD = {**MMMU_OPEN, "answer": "Baroque"}
SUBJECTS = ["Art_Theory", "Math", "Physics"]
MMMU_CASES = numbered(
    "id",
    "{}",
    [
        (MMMU, CHOICE_ANSWERS),
        (MMMU_24, ["24", "24.0", "24 cm", "25", "x = 24", "twenty-four"]),
        (MMMU_LIST, ["24/7", "3.429", "3.43", "3.4", "about 3.43"]),
        (MMMU_WORD, ["Baroque", "baroque", "the Baroque style", "Rococo"]),
    ],
)
for number, (row, _) in enumerate(MMMU_CASES):
    row["id"] = f"validation_{SUBJECTS[number % 3]}_{number}"

TEN = [f"option {number}" for number in range(7)] + ["it's 4", "<image 2>", "45 N"]
PRO = {"options": repr(TEN)}
PRO_STANDARD = {
    **PRO,
    "question": "Compare <image 1> and <image 2>.",
    "image_1": picture(1),
    "image_2": picture(2),
}
PRO_VISION = {**PRO, "image": picture(3)}
PRO_ANSWERS = {
    "B": ["B", "(B)", "B. option 1", "B.", "option 1", "The answer is B.", "A", "J", "I see", "b"],
    "H": [
        "H",
        "H. it's 4",
        "it's 4",
        "(H)",
        "I",
        "A. it's 4",
        "neither",
        "The answer is (H)",
        "G",
        "Z",
    ],
    "J": ["J", "(J)", "J. 45 N", "45 N", "J.", "I", "A. 45 N", "The answer is J.", "B", "45"],
}


def pro_cases(base: dict) -> Cases:
    questions = [({**base, "answer": gold}, answers) for gold, answers in PRO_ANSWERS.items()]
    cases = numbered("id", "test_{}", questions)
    for number, (row, _) in enumerate(cases):
        row["subject"] = SUBJECTS[number % 3]
    return cases


HALLUSION_ANSWERS = [
    *["Yes", "No", "Yes.", "No.", "yes", "no"],
    *["Yes, it is.", "No, it is not.", "True", "False", "Yes", "Yes"],
    *["Correct", "Incorrect", "It is red.", "No", "yes and no", "Right"],
    *["Yes", "No", "The answer is yes.", "The answer is no.", "Yes", "not yes"],
    *["Yes", "No", "Yes", "No", "I do not know", "Unclear"],
]


def hallusion_cases() -> Cases:
    """Five sets of three figures, each with two questions; the gold answers are yes and no."""
    rows = []
    for group, figure, question in product(range(5), range(3), range(2)):
        names = {"set_id": str(group), "figure_id": str(figure), "question_id": str(question)}
        category = {"category": "VS" if group > 2 else "VD", "gt_answer": str(1 - question)}
        rows.append({**HALLUSION, **names, **category})
    return list(zip(rows, HALLUSION_ANSWERS, strict=True))


CASES: dict[str, Cases] = {
    "mathvista": MATHVISTA,
    "mathverse": MATHVERSE,
    "mathvision": MATHVISION,
    "wemath": WEMATH,
    "mmmu": MMMU_CASES,
    "mmmu_pro_standard": pro_cases(PRO_STANDARD),
    "mmmu_pro_vision": pro_cases(PRO_VISION),
    "hallusion_bench": hallusion_cases(),
}


# Where lmms-eval judges otherwise than we do: its verdict on each such answer, by the reason.
DIFFERENCES: dict[str, dict[str, dict[str, bool | str]]] = {
    "mathvista": {
        "it takes the option with the most similar text": {"Yess": True},
        "it rounds to `precision` decimals, which fails if `precision` is published as 1.0": {
            "1.2": False,
            "1.20": False,
            "1.2 cm": False,
        },
        "it cuts a number at the point": {"7.9": True},
        "it reads an integer only from digits": {"seven": False},
        "it compares lists as texts": {"2007, 2008": False},
    },
    "mathverse": {
        "its only rule is equality of texts; all else is its judge's": dict.fromkeys(
            [
                *["(C)", "C. 60°", "c", "The answer is C.", "30 degrees", "30", r"30^\circ", "π/6"],
                *[r"2\sqrt{3}", "√12", "y = 2x + 1", "y = 1 + 2x", "2x - y + 1 = 0"],
            ],
            False,
        ),
    },
    "mathvision": {
        "it reads a letter or the text of an option, not both": {"B. 20": False, "(B) 20": False},
        "it knows no words after a number and no numbers in words": {
            "12 apples": False,
            "twelve": False,
            "one half": False,
            "50%": False,
        },
        "it rounds to two decimals": {"0.502": True},
    },
    "wemath": {
        "it knows only capital letters": {"b": False},
        "it takes the first of several letters": {"B or C": True},
    },
    "mmmu": {
        "it finds no option and picks one": dict.fromkeys(
            ["it's 4", "I see", "b", "neither"], RANDOM
        ),
        "it takes the last of several letters": {"A or B": True},
        "it takes an option that a sentence contains": {"After all, it's 4 that I see there": True},
        "it knows no numbers in words": {"twenty-four": False},
        "it compares with the text of a list of gold answers": {"24/7": False, "3.429": False},
        "it takes a sentence that contains the gold answer": {"the Baroque style": True},
    },
    "mmmu_pro_standard": {
        "it finds no option and picks one": dict.fromkeys(
            ["option 1", "b", "it's 4", "neither", "Z", "45 N", "45"], RANDOM
        ),
    },
    "mmmu_pro_vision": {
        "it compares the whole response with the letter": dict.fromkeys(
            [
                *["(B)", "B. option 1", "B.", "option 1", "The answer is B.", "b", "H. it's 4"],
                *["it's 4", "(H)", "The answer is (H)", "(J)", "J. 45 N", "J.", "The answer is J."],
            ],
            False,
        ),
    },
    "hallusion_bench": {
        "its rule finds yes anywhere, and no otherwise": {
            "True": False,
            "Correct": False,
            "yes and no": True,
            "Right": True,
        },
        "the response is not in our format": {"Unclear": True},
    },
}
