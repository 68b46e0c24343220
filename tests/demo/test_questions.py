"""Questions about facts: right answers, other answers where they are wrong, compositions that are held out."""

import numpy as np
import pytest

from coincide.demo import questions
from coincide.demo.drawings import COLOURS, SHAPES, Bar, Shape, Word
from coincide.demo.questions import HELD_OUT_EVERY, Question, is_held_out, wrong_answer

SHAPES_OF_SCENE = [Shape("red", "circle", 0, 0), Shape("blue", "square", 0, 1), Shape("black", "circle", 1, 1)]
BARS = [Bar("red", 2), Bar("blue", 5), Bar("black", 1)]


def answers_of(ask, *facts):
    """Text -> answer of the questions that a function returns, one or a list at a time."""
    rng = np.random.default_rng(0)
    answers = {}
    for _ in range(300):
        returned = ask(rng, *facts)
        for question in [returned] if isinstance(returned, Question) else returned:
            answers[question.text] = question.answer
    return answers


@pytest.mark.parametrize(
    ("ask", "facts", "expected"),
    [
        (questions.ask_which_digit, [7], {"which digit is this?": "7"}),
        (questions.ask_for_sum, [7, 5], {"add the digits.": "12"}),
        (questions.ask_to_reason, [7, 5], {"add the digits step by step.": "7 plus 5 is 12"}),
        (questions.ask_how_many_digits, [7, 5, 5], {"count the digits.": "3"}),
        (questions.ask_about_word, Word("moon", "red"), {"read the word.": "moon", "which colour is the text?": "red"}),
        (
            questions.ask_about_chart,
            BARS,
            {
                "which bar is the tallest?": "blue",
                "which bar is the shortest?": "black",
                "read the red bar.": "2",
                "read the black bar.": "1",
            },
        ),
        (
            questions.ask_for_count,
            SHAPES_OF_SCENE,
            {"count the objects.": "3", "count the circles.": "2", "count the triangles.": "0"},
        ),
        (
            questions.ask_about_relation,
            SHAPES_OF_SCENE[:2],
            {
                "is the red circle left of the blue square?": "yes",
                "is the red circle right of the blue square?": "no",
                "what is left of the blue square?": "red circle",
            },
        ),
        (
            questions.ask_about_relation,
            SHAPES_OF_SCENE[1:],
            {"is the blue square above the black circle?": "yes", "what is above the black circle?": "blue square"},
        ),
        (
            questions.ask_about_scene,
            SHAPES_OF_SCENE,
            {
                "how many shapes are there in all?": "3",
                "where is the blue square?": "top right",
                "what colour is the square?": "blue",
                "is there a triangle in the picture?": "no",
                "do you see a circle?": "yes",
            },
        ),
        (
            questions.ask_for_caption,
            SHAPES_OF_SCENE[:2],
            {
                "describe the image.": "the image shows 2 shapes. there is a red circle in the top left. there is a "
                "blue square in the top right."
            },
        ),
    ],
)  # fmt: skip
def test_answers(ask, facts, expected):
    answers = answers_of(ask, facts)
    assert {text: answers.get(text) for text in expected} == expected


def test_an_ambiguous_colour_is_not_asked():
    assert "what colour is the circle?" not in answers_of(questions.ask_about_scene, SHAPES_OF_SCENE)


def test_answers_without_an_image():
    answers = answers_of(questions.ask_without_image)
    assert answers["what is the opposite of hot?"] == "cold"
    assert all(
        answer == text.split()[-1][0]
        for text, answer in answers.items()
        if "begin with" not in text and "letter of" in text
    )
    sums = {text: answer for text, answer in answers.items() if "plus" in text}
    assert sums
    for text, answer in sums.items():
        first, second = (int(word) for word in text.rstrip("?").split() if word.isdigit())
        assert int(answer) == first + second


def test_a_fifth_of_the_compositions_of_each_skill_is_held_out():
    skills = {
        "sum": [("sum", a, b) for a in range(10) for b in range(a, 10)],
        "bar": [("bar", colour, value) for colour in COLOURS for value in range(1, 6)],
        "count": [("count", kind, count) for kind in SHAPES for count in range(5)],
        "relation": [(r, c, k) for r in questions.REVERSED for c in COLOURS for k in SHAPES],
    }
    for skill, compositions in skills.items():
        held_out = [is_held_out(Question("", "", composition)) for composition in compositions]
        assert 0.5 / HELD_OUT_EVERY < np.mean(held_out) < 2 / HELD_OUT_EVERY, skill
    assert not is_held_out(Question("", ""))


def test_a_wrong_answer_is_another_answer_of_the_same_kind():
    rng = np.random.default_rng(0)
    for answers in questions.SIMILAR_ANSWERS:
        for answer in answers:
            wrong = {wrong_answer(rng, answer) for _ in range(50)}
            assert answer not in wrong
            assert any(wrong <= set(others) for others in questions.SIMILAR_ANSWERS if answer in others)
    assert {wrong_answer(rng, "0") for _ in range(20)} == {"1"}
    assert {wrong_answer(rng, "4") for _ in range(20)} == {"3", "5"}
