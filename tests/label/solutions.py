"""Wrong solutions as a build writes them."""

import json

TEXT = "Let's see.\nStep 1: 2 + 3 = 5.\nStep 2: 5 * 2 = 11.\nStep 3: The answer is 11."


def rows(count=3, text=TEXT):
    return [
        {
            "id": f"p{n}/s0",
            "question": f"What is 2 + 3, times {n}?",
            "gold": "Step 1: 2 + 3 = 5. Step 2: 5 * 2 = 10.",
            "answer": "10",
            "text": text,
        }
        for n in range(1, count + 1)
    ]


def write(folder, found=None):
    path = folder / "errors.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in (rows() if found is None else found)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
