"""The rooms world: its corpus, its tokenizer and its model."""

import re
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest

from prefopt.agents.environment import Move
from prefopt.agents.environments.rooms import RoomsSuite, all_actions
from prefopt.agents.formats import format_names
from prefopt.errors import ConfigError
from prefopt.text.render import RenderSettings, render, tokenize
from prefopt.worlds.rooms import RoomsSettings, RoomsWorld

SMALL = RoomsSettings(corpus_size=60)


@pytest.fixture(scope="module")
def world():
    return RoomsWorld(SMALL)


@pytest.fixture(scope="module")
def corpus(world):
    return list(world.corpus())


def first_observation(record):
    return record.prompt[-1].content


def said_by(record, role):
    return [message.content for message in record.responses[0].turns if message.role == role]


def test_the_corpus_plays_to_the_end_with_a_reward_of_1(world, corpus):
    game = world.suite.open()
    tasks = world.suite.tasks("train", 60)
    assert [record.id for record in corpus] == [task.id for task in tasks]
    for task, record in zip(tasks, corpus, strict=True):
        assert first_observation(record) == game.reset(task).observation
        outcomes = [
            game.step(world.format.read(message)) for message in said_by(record, "assistant")
        ]
        seen = [world.format.observe(outcome.observation).content for outcome in outcomes]
        assert said_by(record, "user") == seen[:-1]
        assert outcomes[-1].success and outcomes[-1].reward == 1.0
        assert not any(outcome.done for outcome in outcomes[:-1])
        assert len(outcomes) == task.max_turns - 6


def test_the_first_trajectory(corpus):
    start, answer, task = corpus[0].prompt
    assert start.content.startswith("You are in a house of rooms on a grid. Find the treasure.")
    assert start.content.endswith("Reply with one action.")
    assert (answer.content, answer.train) == ("OK", False)
    assert task.content.startswith("The treasure is in A3. It is behind a purple door. The green")
    said = [(turn.role, turn.content) for turn in corpus[0].responses[0].turns[:3]]
    assert said == [
        ("assistant", "go west"),
        ("user", "You are in B2. North: open. South: open. East: open. West: white door. Here: white key."),
        ("assistant", "take white key"),
    ]  # fmt: skip
    with_thoughts = next(RoomsWorld(replace(SMALL, format="react")).corpus())
    assert with_thoughts.responses[0].turns[0].content == (
        "Thought: I need the white key in B2.\nAction: go west"
    )


def test_only_what_the_agent_writes_is_trained(world, corpus):
    tokenizer = world.tokenizer()
    for record in corpus[:10]:
        (rendered,) = render(record, tokenizer, RenderSettings())
        tokens, scored, turns = tokenize(rendered, tokenizer)
        trained = [token for token, counts in zip(tokens, scored, strict=True) if counts]
        assert tokenizer.decode(trained) == "".join(f"{t}<eos>" for t in said_by(record, "assistant"))  # fmt: skip
        assert max(turns) + 1 == len(said_by(record, "assistant"))


@pytest.mark.parametrize("name", format_names())
def test_every_text_is_made_of_its_tokens(name):
    world = RoomsWorld(replace(SMALL, format=name))
    tokenizer = world.tokenizer()
    assert len(tokenizer) < 256
    written = world.format
    others = [written.complaint, written.observe(written.complaint).content]
    others += [written.observe("You cannot do that. You are in A1. South: open.").content]
    others += [written.write(Move(action)).content for action in all_actions()]
    others += [*all_actions(), "You are in A1. South: open.", "The door is locked. You are in A1."]
    for text in others:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text, text
    longest = 0
    for record in world.corpus():
        (rendered,) = render(record, tokenizer, RenderSettings())
        tokens = tokenize(rendered, tokenizer).tokens
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(list(tokens)) == rendered.text
        longest = max(longest, len(tokens))
    assert longest < 256


def test_turns_are_short():
    bare = RoomsWorld(SMALL).tokenizer()
    assert bare.tokenize("take red key<eos>") == ["take red key", "<eos>"]
    seen = "You are in A3. North: red door. Here: blue key."
    assert bare.tokenize(seen) == ["You are in", " A3.", " North: red door.", " Here: blue key."]
    react = RoomsWorld(replace(SMALL, format="react")).tokenizer()
    assert react.tokenize("Thought: I need the red key in B2.\nAction: take red key") == [
        *("Thought: I need the red key in", " B2.", "\nAction: take red key"),
    ]
    assert react.tokenize(f"Observation: {seen}")[:2] == ["Observation: You are in", " A3."]


def test_larger_games_and_games_without_a_note_have_their_own_words():
    suite = RoomsSuite(width=5, height=4, min_doors=3, doors=3, walls=3, note=False)
    world = RoomsWorld(RoomsSettings(suite=suite, corpus_size=5))
    tokenizer = world.tokenizer()
    for record in world.corpus():
        assert first_observation(record).startswith("You are in ")
        (rendered,) = render(record, tokenizer, RenderSettings())
        assert tokenizer.unk_token_id not in tokenize(rendered, tokenizer).tokens


def test_a_model_has_room_for_the_longest_task_and_as_much_junk(world, corpus):
    tokenizer = world.tokenizer()
    lengths = []
    for record in corpus:
        (rendered,) = render(record, tokenizer, RenderSettings())
        tokens = tokenize(rendered, tokenizer).tokens
        lengths.append(len(tokens) / len(said_by(record, "assistant")))
    most = max(task.max_turns for task in world.suite.tasks("train", 60))
    assert 2 * most * max(lengths) < world.blank_model().config.max_position_embeddings


def test_equal_settings_make_equal_worlds(world, corpus):
    again = RoomsWorld(replace(SMALL))
    assert again.digest() == world.digest()
    assert list(islice(again.corpus(), 10)) == corpus[:10]
    for change in ({"suite": RoomsSuite(seed=1)}, {"epochs": 1.5}, {"format": "react"}):
        assert RoomsWorld(replace(SMALL, **change)).digest() != world.digest()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"corpus_size": 0}, "corpus_size is 0; use 1 to 3000"),
        ({"corpus_size": 3001}, "corpus_size is 3001; use 1 to 3000"),
        ({"epochs": 0.0}, "epochs is 0.0; use more than 0"),
        ({"hidden_size": 100}, "hidden_size is 100; use a multiple of 8"),
        ({"layers": 0}, "layers is 0; use 1 or more"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=f"rooms world: {message}"):
        RoomsSettings(**setting)


def test_the_tables_of_settings_are_those_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")
    section = page.partition("\n## Rooms\n")[2].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", section, re.MULTILINE))
    settings = {k: v for k, v in asdict(RoomsSettings()).items() if k != "suite"}
    expected = {**asdict(RoomsSuite()), **settings}
    assert rows == {
        name: str(value).lower() if isinstance(value, bool) else f"{value}".removesuffix(".0")
        for name, value in expected.items()
    }
