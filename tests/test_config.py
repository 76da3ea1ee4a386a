"""Recipes: what is read, what is refused with which words, what is written back."""

from pathlib import Path

import pytest
from pydantic import Field

from prefopt.config import RunConfig, keys_of, load_recipe, parse, unknown_name, write_recipe
from prefopt.errors import ConfigError, StorageError


class BetaConfig(RunConfig):
    """A method with a parameter of its own, and a rule about it."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the anchor
    to the reference."""
    margin: float | None = None
    """Margin."""

    def contradictions(self) -> list[str]:
        wrong = self.margin is not None and self.margin > self.beta
        own = [f"margin {self.margin} is above beta {self.beta}: lower it"] if wrong else []
        return [*super().contradictions(), *own]


class BuildingConfig(RunConfig):
    """A method that makes its own data."""

    @property
    def built_file(self) -> str:
        return "built.jsonl"


VALID = "method: dpo\nmodel_name_or_path: model\ntrain_file: pairs.jsonl\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str, *, name: str = "r.yaml") -> Path:
        Path(name).write_text(text, encoding="utf-8")
        return Path(name)

    return write


def read(recipe, text: str, *overrides: str) -> BetaConfig:
    return parse(load_recipe(recipe(VALID + text), overrides), BetaConfig)


def message(recipe, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(recipe, text, *overrides)
    return str(caught.value)


def test_values_are_read_as_yaml_1_2(recipe):
    config = read(recipe, "learning_rate: 1e-5\nrun_name: no\nbeta: 3\nreport_to: wandb\n")
    assert config.learning_rate == 1e-5
    assert config.run_name == "no"
    assert config.beta == 3.0
    assert config.report_to == ["wandb"]


def test_defaults_that_users_of_other_libraries_know(recipe):
    config = read(recipe, "")
    assert (config.learning_rate, config.max_length, config.seed) == (1e-6, 1024, 42)
    assert (config.per_device_train_batch_size, config.max_grad_norm) == (8, 1.0)
    assert config.output_dir == "runs/dpo"
    assert config.report_to == []


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=7", "seed", 7),
        ("learning_rate=5e-7", "learning_rate", 5e-7),
        ("use_peft=true", "use_peft", True),
        ("max_grad_norm=null", "max_grad_norm", None),
        ("train_file=[a.jsonl, b.jsonl]", "train_file", ["a.jsonl", "b.jsonl"]),
        ("columns.prompt=question", "columns", {"prompt": "question"}),
        ("columns={chosen: good}", "columns", {"chosen": "good"}),
        ("run_name=a=b", "run_name", "a=b"),
        ("run_name=a: b", "run_name", "a: b"),
        ("run_name=@home", "run_name", "@home"),
        ("response_separator= ", "response_separator", " "),
        ('response_separator="\\n"', "response_separator", "\n"),
        ("response_separator=''", "response_separator", ""),
        ("report_to=none", "report_to", []),
        ("output_dir=out/{method}", "output_dir", "out/dpo"),
    ],
)
def test_overrides(recipe, override, key, value):
    assert getattr(read(recipe, "", override), key) == value


def test_the_last_override_wins(recipe):
    assert read(recipe, "seed: 1\n", "seed=2", "seed=3").seed == 3


def test_home_is_expanded_everywhere_a_path_may_stand(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    config = read(recipe, "eval_file: [~/a, b]\nreference_model: ~/c\n", "output_dir=~/d")
    assert config.eval_file == ["/somewhere/a", "b"]
    assert (config.reference_model, config.output_dir) == ("/somewhere/c", "/somewhere/d")


ONE_MISTAKE = [
    ("lr: 1\n", "r.yaml:4: unknown key 'lr': here it is learning_rate"),
    ("batch_size: 1\n", "r.yaml:4: unknown key 'batch_size': here it is per_device_train_batch_size"),
    ("epochs: 1\n", "r.yaml:4: unknown key 'epochs': here it is num_train_epochs"),
    ("dataset: x\n", "r.yaml:4: unknown key 'dataset': here it is train_file or dataset_name"),
    ("loss_type: ipo\n", "r.yaml:4: unknown key 'loss_type': here it is method"),
    ("learning-rate: 1\n", "r.yaml:4: unknown key 'learning-rate': did you mean 'learning_rate'?"),
    ("lerning_rate: 1\n", "r.yaml:4: unknown key 'lerning_rate': did you mean 'learning_rate'?"),
    ("btea: 1\n", "r.yaml:4: unknown key 'btea': did you mean 'beta'?"),
    ("x_y_z: 1\n", "r.yaml:4: unknown key 'x_y_z': `prefopt methods dpo` lists the keys"),
    ("beta: 0\n", "r.yaml:4: beta is 0; expected a number > 0"),
    ("seed: -1\n", "r.yaml:4: seed is -1; expected a whole number >= 0 and < 4294967296"),
    ("warmup_ratio: 1.5\n", "r.yaml:4: warmup_ratio is 1.5; expected a number >= 0 and <= 1"),
    ("max_steps: 2.5\n", "r.yaml:4: max_steps is 2.5; expected a whole number >= 1 or null"),
    ("max_steps: true\n", "r.yaml:4: max_steps is true; expected a whole number >= 1 or null"),
    ("learning_rate: .nan\n", "r.yaml:4: learning_rate is NaN; expected a number > 0"),
    ("learning_rate: .inf\n", "r.yaml:4: learning_rate is Infinity; expected a number > 0"),
    ("seed: '7'\n", 'r.yaml:4: seed is "7"; expected a whole number >= 0 and < 4294967296: '
     "remove the quotes"),
    ("use_peft: yes\n", 'r.yaml:4: use_peft is "yes"; expected true or false '
     "(YAML 1.2 takes yes and no for text)"),
    ("run_name: 12\n", "r.yaml:4: run_name is 12; expected text or null: put it in quotes"),
    ("run_name: ''\n", 'r.yaml:4: run_name is ""; expected text or null: it must not be empty'),
    ("response_separator:\n", "r.yaml:4: response_separator is null; expected text "
     "(write '' for empty text)"),
    ("layout: trees\n", 'r.yaml:4: layout is "trees"; expected one of auto, tree, packed, rows: '
     "did you mean 'tree'?"),
    ("report_to: [wandbb]\n", 'r.yaml:4: report_to is ["wandbb"]; expected a list of one of '
     "tensorboard, wandb, mlflow, trackio: did you mean 'wandb'?"),
    ("report_to: all\n", 'r.yaml:4: report_to is "all"; expected a list of one of'),
    ("eval_file: [1]\n", "r.yaml:4: eval_file is [1]; expected text, a list of text or null"),
    ("columns: {prompt: 3}\n", 'r.yaml:4: columns is {"prompt": 3}; expected a mapping of names to text'),
    ("warmup_ratio: 0.1\nwarmup_steps: 3\n", "r.yaml:4: warmup_ratio 0.1 and warmup_steps 3 exclude "
     "each other: remove one"),
    ("dataset_name: a/b\n", "r.yaml:3: train_file 'pairs.jsonl' and dataset_name 'a/b' exclude each other"),
    ("max_prompt_length: 1024\n", "r.yaml:4: max_prompt_length 1024 leaves no room for a response"),
    ("eval_strategy: epoch\n", "r.yaml:4: eval_strategy 'epoch' needs data"),
    ("eval_file: e\neval_strategy: steps\n", "r.yaml:5: eval_strategy 'steps' needs eval_steps"),
    ("eval_steps: 5\n", "r.yaml:4: eval_steps 5 has no effect with eval_strategy 'no'"),
    ("eval_dataset_split: test\n", "r.yaml:4: eval_dataset_split 'test' is a split of dataset_name"),
    ("bf16: true\ndtype: float16\n", "r.yaml:4: bf16 true and dtype 'float16' exclude each other"),
    ("reference: adapter_off\nreference_model: m\n", "r.yaml:4: reference 'adapter_off' and "
     "reference_model 'm' exclude each other"),
    ("overwrite_output_dir: true\nresume_from_checkpoint: true\n", "r.yaml:4: overwrite_output_dir and "
     "resume_from_checkpoint exclude each other"),
    ("push_to_hub: true\n", "r.yaml:4: push_to_hub needs hub_model_id"),
    ("margin: 2\n", "r.yaml:4: margin 2.0 is above beta 0.1: lower it"),
    ("seed: 1\nseed: 2\n", "r.yaml:5: key 'seed' appears twice, first in line 4: remove one"),
    ("columns: {a: b, a: c}\n", "r.yaml:4: key 'columns.a' appears twice, first in line 4"),
    ("12: x\n", "r.yaml:4: a key must be text; got '12': put it in quotes"),
    ("run_name: 'abc\n", "r.yaml:5: not valid YAML: found unexpected end of stream"),
    ("run_name: !!python/object x\n", "r.yaml:4: not valid YAML: could not determine a constructor"),
    ("run_name: *other\n", "r.yaml:4: not valid YAML: found undefined alias"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ONE_MISTAKE, ids=[t[0].strip() for t in ONE_MISTAKE])
def test_each_mistake_is_one_line_with_its_place(recipe, text, expected):
    found = message(recipe, text)
    assert found.startswith(expected)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epochs=3", "command line: unknown key 'epochs': here it is num_train_epochs"),
        ("beta=x", 'command line: beta is "x"; expected a number > 0'),
        ("eval_steps=3", "command line: eval_steps 3 has no effect"),
        ("columns.prompt=3", 'command line: columns is {"prompt": 3}; expected a mapping'),
        ("beta", "command line: 'beta' is no override: write key=value or key.sub=value"),
        ("=3", "command line: '=3' is no override"),
        ("a..b=3", "command line: 'a..b=3' is no override"),
        (
            "train_file.x=3",
            "command line: 'train_file.x=3': train_file is 'pairs.jsonl', which has no keys",
        ),
    ],
)
def test_mistakes_in_overrides_are_located_there(recipe, override, expected):
    assert message(recipe, "", override).startswith(expected)


def test_all_mistakes_are_listed_in_the_order_of_the_file(recipe):
    path = recipe("seed: x\nmethod: dpo\nlr: 1\n")
    with pytest.raises(ConfigError) as caught:
        parse(load_recipe(path, ["beta=0"]), BetaConfig)
    assert str(caught.value).splitlines() == [
        "r.yaml: 4 mistakes",
        '  r.yaml:1: seed is "x"; expected a whole number >= 0 and < 4294967296',
        "  r.yaml:3: unknown key 'lr': here it is learning_rate",
        "  r.yaml: key 'model_name_or_path' is missing: Folder of a Hugging Face causal language model "
        "or PEFT adapter, or a hub id.",
        "  command line: beta is 0; expected a number > 0",
    ]


def test_no_data_is_a_mistake_unless_the_method_builds_its_own(recipe):
    path = recipe("method: dpo\nmodel_name_or_path: m\n")
    with pytest.raises(
        ConfigError, match=r"^r\.yaml: no training data: set train_file .* or dataset_name"
    ):
        parse(load_recipe(path), RunConfig)
    assert parse(load_recipe(path), BuildingConfig).train_file is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml: empty; a recipe needs"),
        ("# nothing\n", "r.yaml: empty; a recipe needs"),
        ("- a\n", "r.yaml:1: expected lines 'key: value' with a space after the colon"),
        ("\nmethod:dpo\n", "r.yaml:2: expected lines 'key: value' with a space after the colon"),
    ],
)
def test_files_that_are_no_recipe(recipe, text, expected):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(text))
    assert str(caught.value).startswith(expected)


def test_binary_file_is_no_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"method: \xff\xfe")
    with pytest.raises(ConfigError, match=r"not a UTF-8 text file \(byte 8\)"):
        load_recipe(path)


def test_missing_recipe_names_the_nearest_file(recipe):
    recipe(VALID, name="dpo.yaml")
    with pytest.raises(
        StorageError, match=r"^dpo\.yml: no such recipe; did you mean 'dpo\.yaml'\?$"
    ):
        load_recipe("dpo.yml")


def test_run_folder_as_recipe_names_the_file_inside(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    recipe(VALID, name="run/run.yaml")
    with pytest.raises(
        StorageError, match=r"^run: a folder, not a recipe; did you mean 'run/run\.yaml'\?$"
    ):
        load_recipe("run")


def test_plain_mappings_are_checked_too():
    with pytest.raises(ConfigError, match=r"^settings of the demo: unknown key 'lr'"):
        parse(
            {"method": "dpo", "model_name_or_path": "m", "train_file": "f", "lr": 1},
            RunConfig,
            origin="settings of the demo",
        )


def test_written_recipes_are_read_back_equal(recipe):
    config = read(
        recipe,
        "learning_rate: 1e-6\nrun_name: 'no'\ncolumns: {prompt: q, chosen: 'yes'}\nbeta: 0.25\n"
        "report_to: [wandb, mlflow]\neval_file: [a, 'b: c', '1e-5', 'null', '# x']\n",
        'response_separator="\\n\\t é"',
        "adam_epsilon=1.5e-12",
    )  # fmt: skip
    write_recipe(config, "out.yaml")
    assert parse(load_recipe("out.yaml"), BetaConfig) == config
    assert [p.name for p in Path().iterdir() if p.name.startswith(".")] == []


def test_written_recipes_mean_the_same_to_readers_of_yaml_1_1(recipe):
    yaml = pytest.importorskip("yaml")
    config = read(recipe, "eval_strategy: no\nlearning_rate: 1e-6\n")
    write_recipe(config, "out.yaml")
    assert yaml.safe_load(Path("out.yaml").read_text(encoding="utf-8")) == config.model_dump()


def test_unwritable_place_is_a_storage_error(recipe):
    config = read(recipe, "")
    with pytest.raises(
        StorageError, match=r"^missing/run\.yaml: cannot write the recipe: No such file"
    ):
        write_recipe(config, "missing/run.yaml")


def test_configs_are_immutable(recipe):
    config = read(recipe, "")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    assert config.model_copy(update={"seed": 1}).seed == 1


def test_every_key_is_described():
    keys = [*keys_of(BetaConfig, own=True), *keys_of(BetaConfig, own=False)]
    assert [key.name for key in keys if not key.description] == []
    assert [key.name for key in keys if key.required] == ["method", "model_name_or_path"]
    assert keys[0] == ("beta", 0.1, False, "Strength of the anchor to the reference.")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dop", "unknown method 'dop': did you mean 'dpo'? Known: dpo, sft"),
        ("DPO", "unknown method 'DPO': did you mean 'dpo'? Known: dpo, sft"),
        ("quux", "unknown method 'quux'. Known: dpo, sft"),
    ],
)
def test_unknown_names_come_with_the_nearest(name, expected):
    assert str(unknown_name("method", name, ["dpo", "sft"])) == expected
