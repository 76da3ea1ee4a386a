"""The page and files of token credit."""

import json
import re

import numpy as np
import pytest

from prefopt.analysis.credit import ResponseCredit, credit_numbers, credit_texts
from prefopt.analysis.heatmap import _pieces, write_credit
from prefopt.errors import StorageError
from prefopt.records import Message, Pair, Preference, Response
from tests.tiny import make_tokenizer

RIGHT = "Step 1: 1 + 1 = 2."
WRONG = "Step 1: 1 + 1 = 3. </script><b>é 猫\nStep 2: 3 + 1 = 4."


@pytest.fixture(scope="module")
def policies():
    record = Preference(
        "r<1>", (Message("user", "q"),), (Response(RIGHT), Response(WRONG)), (Pair(0, 1),),
        meta={"step": 1},
    )  # fmt: skip
    texts = credit_texts([record], make_tokenizer(), which="all")
    rng = np.random.default_rng(0)
    reference = [rng.normal(size=len(t.offsets)) - 2 for t in texts]
    return {
        name: [
            ResponseCredit(t, b + rng.normal(size=len(b)), b, 0.1)
            for t, b in zip(texts, reference, strict=True)
        ]
        for name in ("DPO", "SC & DPO")
    }


def test_files(tmp_path, policies):
    files = write_credit(tmp_path / "deep" / "credit", policies, reference="sft", source="a<b>")
    page = files.page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page
    assert page.count("</script>") == 2 and "a&lt;b&gt;" in page
    (embedded,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(embedded)
    assert data["names"] == ["DPO", "SC & DPO"]
    assert ["".join(map("".join, item["pieces"])) for item in data["items"]] == [
        RIGHT + "<|im_end|>",
        WRONG + "<|im_end|>",
    ]
    rows = [json.loads(line) for line in files.rows.read_text().splitlines()]
    assert [row["role"] for row in rows] == ["chosen", "rejected"]
    row, credit = rows[1], policies["DPO"][1]
    assert row["policies"]["DPO"]["r"] == pytest.approx(credit.rewards, rel=1e-5)
    assert row["logp_reference"] == pytest.approx(credit.reference, rel=1e-5)
    assert [s["number"] for s in row["policies"]["DPO"]["steps"]] == [1, 2]
    assert sum(s["sum"] for s in row["policies"]["DPO"]["steps"]) == pytest.approx(credit.total)
    assert WRONG[slice(*row["error_span"])] == " 1 + 1 = 3. </script><b>é 猫"
    facts = json.loads(files.numbers.read_text())
    assert facts == files.facts
    auroc = credit_numbers(policies["DPO"]).auroc
    assert auroc is not None
    assert facts["policies"]["DPO"]["auroc"] == auroc._asdict()
    assert facts["comparisons"][0]["second"] == "SC & DPO"
    assert list(facts["responses_without_span"].values()) == [1]


def test_pieces_cover_the_text(policies):
    for credit in policies["DPO"]:
        text = credit.text
        assert "".join(map("".join, _pieces(text))) == text.text
        assert len(_pieces(text)) == len(text.offsets)


def test_a_folder_that_cannot_be(tmp_path, policies):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another --output"):
        write_credit(tmp_path / "file" / "x", policies, reference="sft", source="a")
