"""Verdicts as judges write them; the official column is what the published script does with them."""

import pytest

from prefopt.judge.verdict import Reading, parse_verdict

F = "Final Decision\n"


@pytest.mark.parametrize(
    ("text", "official", "corrected"),
    [
        # The rows of the method sheet (P1).
        ("Step 1: correct; Step 2: incorrect", (2, "found"), (2, "found")),
        ("Step 1: correct; Step 2: neutral; Step 3: incorrect", (2, "found"), (3, "found")),
        ("Step 1: correct; Step 2: correct", (None, "count0"), (None, "none")),
        ("Step 1: correct, Step 2: incorrect", (None, "count1"), (2, "found")),
        ("The sum is off.\nStep 4: incorrect", (4, "found"), (4, "found")),
        ("**Final Decision**\n**step 3:** incorrect", (3, "found"), (3, "found")),
        (F + "Summary Decision: Step 2: incorrect", (2, "found"), (2, "found")),
        # Lists in other forms.
        (F + "Step 1: correct\nStep 2: incorrect", (2, "found"), (2, "found")),
        (F + "Step 1: correct; Step 2:\nincorrect", (None, "count2"), (2, "found")),
        (F + "| Step 1 | correct |\n| Step 2 | incorrect |", (None, "count2"), (2, "found")),
        (F + "Step 1: Correct. Step 2: **Incorrect**.", (None, "count1"), (2, "found")),
        (F + "1. Step 1: `correct`\n2. Step 2: `incorrect`", (2, "found"), (2, "found")),
        (F + "Steps 1-3: correct; Step 4: incorrect", (4, "found"), (4, "found")),
        (F + "Step 1: correct; Steps 2 and 3: incorrect", (None, "count2"), (2, "found")),
        (F + "Step 1: correct; Step 2: not correct", (None, "count0"), (2, "found")),
        (F + "Step 1: correct; Step 2: neutral", (2, "found"), (None, "none")),
        # Tables, marks and titles.
        (
            F + "| Step | Verdict |\n|---|---|\n| 1 | correct |\n| 2 | incorrect |",
            (None, "count2"),
            (2, "found"),
        ),
        (
            "| Step | Verdict |\n| :-: | --- |\n| 1 | correct |\n| 2 | correct |\n",
            (None, "count0"),
            (None, "none"),
        ),
        (
            F
            + "| # | Step | Text | Correctness |\n|-|-|-|-|\n| a | **1** | 2 + 3 = 5 | correct |\n"
            "| b | **2** | 5 = 6 | **incorrect** |",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F + "Step No. | Verdict\n--|--\n1-2 | correct\n3 | incorrect (sign)",
            (None, "count2"),
            (3, "found"),
        ),
        (
            F + "| Step | Verdict |\n|--|--|\n| 1 | correct |\n| 2 | unsure |\n| 3 | incorrect |",
            (None, "count2"),
            (None, "unclear"),
        ),
        (
            F + "| Part | Verdict |\n|--|--|\n| 1 | correct |\n| 2 | incorrect |",
            (None, "count2"),
            (None, "no verdict"),
        ),
        (F + "Step 1: ✅ correct; Step 2: ❌ incorrect", (2, "found"), (2, "found")),
        (F + "Step 1: correct ✅; Step 2: incorrect ❌", (2, "found"), (2, "found")),
        ("✔️ Step 1: correct\n❌ Step 2: incorrect ❌\n", (2, "found"), (2, "found")),
        (F + "Step 1 (setup): correct; Step 2 (solve): incorrect", (None, "count2"), (2, "found")),
        (
            F + "**Step 1** (set up f(x)): correct; **Step 2** (solve): incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F + "Step 1 (correct): see below; Step 2 (incorrect): see below",
            (None, "count2"),
            (2, "found"),
        ),
        (F + "Step 1 (not correct)", (None, "count0"), (1, "found")),
        (
            F + "Step 1 (an incorrect sign is no matter): correct; Step 2: incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F + "Step 1 (set up): correct; Step 2 (correct the sign): incorrect; Step 3: incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F + "Step 1 (not correct order): correct; Step 2 (wrong answers counted): correct",
            (None, "count0"),
            (None, "none"),
        ),
        (
            F
            + "Step 1 (wrong answers counted): correct\nStep 2 (correct): incorrect numbers are gone",
            (None, "count2"),
            (None, "unclear"),
        ),
        (F + "Step 1 (incorrect): correct is 5", (None, "count2"), (1, "found")),
        (F + "Step 1 (incorrect sign): correct would be 5", (None, "count2"), (1, "found")),
        (
            F + "Step 1 [setup]: correct; Step 2 [solve]: incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        (F + "Step 1 [correct]; Step 2 [incorrect]", (None, "count2"), (2, "found")),
        (
            F + "Step 1 - setup: correct; Step 2 - solve: incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F + "Step 1 – correct: yes; Step 2 – correct the sign: incorrect",
            (None, "count2"),
            (2, "found"),
        ),
        # Marks alone.
        (F + "Step 1: ✅; Step 2: ❌", (None, "count0"), (2, "found")),
        (F + "Step 1: ✓\nStep 2: ✗", (None, "count0"), (2, "found")),
        (F + "**Step 1** ✔️ **Step 2** ✔️", (None, "count0"), (None, "none")),
        (F + "Step 1: ✅ Step 2: ❌", (None, "count0"), (2, "found")),
        (F + "✅ Step 1 ❌ Step 2", (None, "count0"), (None, "no verdict")),
        (F + "Step 1: ✅ partially; Step 2: ❌", (None, "count0"), (None, "unclear")),
        (F + "Step 1: ✅; Step 2: ⚠", (None, "count0"), (None, "unclear")),
        (
            F + "| Step | Verdict |\n|---|---|\n| 1 | ✅ |\n| 2 | ❌ |",
            (None, "count0"),
            (2, "found"),
        ),
        # Tables whose numbers stand elsewhere.
        (
            F + "| # | Verdict |\n|---|---|\n| 1 | correct |\n| 2 | incorrect |",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F
            + "| # | Step | Verdict |\n|-|-|-|\n| 1 | add | correct |\n| 2 | correct the sign | incorrect |",
            (None, "count2"),
            (2, "found"),
        ),
        (
            F
            + "| Step | Text | Verdict |\n|-|-|-|\n| Step 1 | add | correct |\n| Step 2 | sign | incorrect |",
            (None, "count2"),
            (2, "found"),
        ),
        (F + "| # | Price |\n|-|-|\n| 1 | wrong |", (None, "count0"), (None, "no verdict")),
        # The header in other places.
        ("Final decision soon.\n" + F + "Step 5: incorrect", (5, "found"), (5, "found")),
        (F + "Step 2: incorrect\nThat is my final decision.", (None, "count0"), (2, "found")),
        ("Step 2 is incorrect.\n" + F + "Step 3: incorrect", (3, "found"), (3, "found")),
        # Remarks that speak of steps.
        (
            F + "Step 1: correct (as step 2 is wrong); Step 2: incorrect",
            (2, "found"),
            (2, "found"),
        ),
        (F + "Step 1: correct -> Step 2: incorrect (see step 1)", (None, "count1"), (2, "found")),
        # Beyond the first incorrect step nothing counts.
        (F + "Step 2: incorrect; Step 3: correct", (2, "found"), (2, "found")),
        (F + "Step 2: incorrect; Step 3: incorrect", (2, "found"), (2, "found")),
        # What cannot be read.
        (F + "Step 1: correct; Step 1: incorrect", (1, "found"), (None, "contradiction")),
        (F + "Step 1: correct; Step 2: partially correct", (None, "count0"), (None, "unclear")),
        (F + "Step 1: unsure; Step 2: incorrect", (2, "found"), (None, "unclear")),
        ("Step 1: incorrectly added; Step 2: correct", (1, "found"), (None, "unclear")),
        ("Something in step 2 is incorrect.", (None, "count2"), (None, "no verdict")),
        (F + "Step two: incorrect", (None, "count2"), (None, "no verdict")),
        (F + f"Step {'9' * 5000}: incorrect", (None, "count2"), (None, "no verdict")),
        ("", (None, "count0"), (None, "no verdict")),
    ],
)
def test_verdicts(text, official, corrected):
    assert parse_verdict(text, rules="official") == Reading(*official)
    assert parse_verdict(text, rules="corrected") == Reading(*corrected)


@pytest.mark.parametrize(
    "text",
    [
        "step " * 20000,
        "Step 1, " * 20000,
        "1 " * 40000,
        "* " * 40000,
        "Step 1 (" * 20000,
        "Step 1 (a" + "(b)" * 30000,
        "| step | 1 " * 20000,
        "|step|a|\n" + "|1|" * 30000,
        "Step 1 ✅ " * 20000,
        "Step 1 " + "✅ " * 40000,
        "Step 1 " + "✅" * 40000,
        "Step 1 " + "*" * 40000,
        "| 1 " * 40000,
        "Step 1 [a" * 20000,
        "Step 1 - a " * 20000,
        "Step 1 - " + "a" * 40000 + ":",
        "Step 1 (correct a): correct a " * 10000,
        "| # | verdict |\n" * 20000,
    ],
)
@pytest.mark.timeout(20)
def test_long_nonsense_is_read_in_linear_time(text):
    assert parse_verdict(text).number is None
    assert parse_verdict(F + text).number is None
