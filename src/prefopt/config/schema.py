"""`RunConfig`: the keys that every recipe may have, their defaults, ranges and mutual exclusions.

The text under a field is what `prefopt methods` prints about it. Methods subclass `RunConfig` and add
their own parameters in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from prefopt.config.rules import contradictions_of
from prefopt.records import JsonValue

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Section(BaseModel):
    """Keys that belong together, checked and immutable. Unknown keys, wrong types and contradictions are errors.

    Types are strict: `"8"` is no number and `yes` is no truth value.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class RunConfig(Section):
    """Settings of one run. Paths are relative to the current directory and may begin with `~`."""

    method: Text
    """What to train with; `prefopt methods` lists them."""

    model_name_or_path: Text
    """Folder of a Hugging Face causal language model or PEFT adapter, or a hub id."""
    model_revision: Text | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer_name_or_path: Text | None = None
    """Folder or hub id of the tokenizer; null: the model's own."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the stored weights; auto: as saved."""
    bf16: bool | None = None
    """Compute in bfloat16 over float32 weights; null: on GPUs that support it."""
    attn_implementation: Text | None = None
    """Attention of transformers (eager, sdpa, flex_attention, ...); null: chosen for the device."""
    layout: Literal["auto", "tree", "packed", "rows"] = "auto"
    """How responses lie in a batch: shared prefixes stored once (tree, packed) or plain rows."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    disable_dropout: bool = True
    """Set every dropout probability of the model to 0."""
    use_peft: bool = False
    """Train a LoRA adapter and leave the model's weights as they are."""
    lora_r: Count = 16
    """Rank of the LoRA matrices."""
    lora_alpha: Positive = 32
    """LoRA scaling: the update is multiplied by lora_alpha / lora_r."""
    lora_dropout: ProperFraction = 0.0
    """Dropout probability on the input of the LoRA matrices."""
    lora_target_modules: Text | list[Text] = "all-linear"
    """Names of the modules that get an adapter; all-linear: every linear layer but the output head."""

    train_file: Text | list[Text] | None = None
    """Training data: .jsonl, .json, .csv, .parquet, or a folder saved by `datasets`; one or several."""
    eval_file: Text | list[Text] | None = None
    """Evaluation data in the same forms."""
    dataset_name: Text | None = None
    """Hub id of a data set, instead of train_file."""
    dataset_split: Text = "train"
    """Split of dataset_name to train on."""
    eval_dataset_split: Text | None = None
    """Split of dataset_name to evaluate on."""
    columns: dict[str, Text] = {}
    """Which column plays which role, `role: column`, where the names are not recognised."""
    pairing: Literal["best_vs_rest", "best_worst", "all", "adjacent"] = "best_vs_rest"
    """Pairs made of ranked or scored lists."""
    prompt_format: Literal["auto", "chat", "text"] = "auto"
    """How prompts become text; auto: conversations use the chat template, strings stay as they are."""
    chat_template: Text | None = None
    """File with a Jinja chat template; null: the tokenizer's own."""
    response_separator: str = ""
    """Text between a string prompt and its response."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens of prompt and response together."""
    max_prompt_length: Count | None = None
    """Tokens of the prompt; null: only max_length counts."""
    overlong_prompt: Literal["drop", "keep_end", "error"] = "drop"
    """What happens to a record whose prompt is too long."""
    overlong_response: Literal["cut", "drop", "error"] = "cut"
    """What happens to a response that does not fit into max_length."""
    strict: bool = False
    """Stop when any row would be cut or dropped."""
    max_train_samples: Count | None = None
    """Use only the first so many training records."""

    learning_rate: Positive = 1e-6
    """Peak learning rate of AdamW."""
    per_device_train_batch_size: Count = 8
    """Records per device and micro-batch."""
    per_device_eval_batch_size: Count = 8
    """Records per device and evaluation batch."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches per optimiser step."""
    num_train_epochs: Positive = 1.0
    """Passes over the data; max_steps, where given, counts instead."""
    max_steps: Count | None = None
    """Optimiser steps; null: as many as num_train_epochs make."""
    pack_tokens: Count | None = None
    """Positions per micro-batch, padding included, instead of per_device_train_batch_size records; for
    layout packed the length of its row. null: room for per_device_train_batch_size of the longest."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "one_cycle"] = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_ratio: Fraction = 0.0
    """Part of all steps in which the learning rate rises."""
    warmup_steps: Natural | None = None
    """Steps in which the learning rate rises, instead of warmup_ratio."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    adam_beta1: ProperFraction = 0.9
    """Decay of the gradient average."""
    adam_beta2: ProperFraction = 0.999
    """Decay of the squared-gradient average."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator of the update."""
    max_grad_norm: Positive | None = 1.0
    """Gradients of a larger norm are scaled down to it; null: never."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Source of all randomness of the run."""

    reference_model: Text | None = None
    """Folder or hub id of the reference policy; null: the policy as it is before training."""
    reference: Literal["auto", "cached", "live", "adapter_off", "moving"] = "auto"
    """Scored once and stored, kept in memory, the model with its adapter switched off, or moving after the policy."""
    reference_mixup_alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the policy's weights in a moving reference at each move (TR-DPO); 1: it becomes the policy."""
    reference_sync_steps: Count = 512
    """Optimiser steps between two moves of a moving reference."""
    cache_dir: Text | None = None
    """Folder of reference scores and built models; null: $PREFOPT_HOME or ~/.cache/prefopt."""
    head_chunk_bytes: Count = 64 * 2**20
    """Memory, in bytes, for one chunk of logits; less saves memory, more saves time."""

    output_dir: Text = "runs/{method}"
    """Folder of the run; {method} stands for the method's name."""
    overwrite_output_dir: bool = False
    """Delete what an earlier run left in output_dir."""
    resume_from_checkpoint: bool | Text = False
    """true: go on from the newest checkpoint of output_dir; or the folder of a checkpoint."""
    run_name: Text | None = None
    """Name of the run in reports and trackers; null: the name of output_dir."""
    logging_steps: Count = 10
    """Steps between two lines of metrics."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate."""
    eval_steps: Count | None = None
    """Steps between two evaluations."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to save a checkpoint."""
    save_steps: Count = 500
    """Steps between two checkpoints."""
    save_total_limit: Count | None = None
    """Keep only the newest so many checkpoints; null: all."""
    report_to: list[Tracker] = []
    """Trackers besides metrics.jsonl: tensorboard, wandb, mlflow, trackio, or none."""
    push_to_hub: bool = False
    """Upload the trained model as hub_model_id."""
    hub_model_id: Text | None = None
    """Repository on the hub, `owner/name`."""
    hub_private_repo: bool = True
    """Create that repository as private."""

    @field_validator(
        "model_name_or_path",
        "tokenizer_name_or_path",
        "train_file",
        "eval_file",
        "chat_template",
        "reference_model",
        "cache_dir",
        "output_dir",
        "resume_from_checkpoint",
    )
    @classmethod
    def _expand_home(
        cls,
        value: str | list[str] | bool | None,  # noqa: FBT001 - resume_from_checkpoint may be a truth value
    ) -> str | list[str] | bool | None:
        if isinstance(value, list):
            return [_home(entry) for entry in value]
        return _home(value) if isinstance(value, str) else value

    @field_validator("output_dir")
    @classmethod
    def _fill_method(cls, value: str, info: ValidationInfo) -> str:
        return value.replace("{method}", str(info.data.get("method", "{method}")))

    @field_validator("report_to", mode="before")
    @classmethod
    def _list_trackers(cls, value: JsonValue) -> JsonValue:
        if value in (None, "none", ["none"]):
            return []
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        broken = self.contradictions()
        if broken:
            raise ValueError("\n".join(broken))
        return self

    @property
    def built_file(self) -> str | None:
        """The training data that the recipe makes itself (`prefopt build`); None where it makes none."""
        return None

    @property
    def further_models(self) -> list[str]:
        """Models that the run reads beside those of the shared keys: folders or hub ids."""
        return []

    def changed_since_built(self) -> list[str]:
        """How the recipe differs from the one that `built_file` was made with."""
        return []

    def contradictions(self) -> list[str]:
        """Every broken rule about several keys at once, as one sentence each that names the keys.

        A method whose own keys have such rules extends the list of `super()`.
        """
        return list(contradictions_of(self))


class Key(NamedTuple):
    """One key of a recipe, for people."""

    name: str
    default: JsonValue
    """None where there is none; see `required`."""
    required: bool
    description: str


def keys_of(schema: type[RunConfig], *, own: bool) -> list[Key]:
    """The keys of a schema in order: its own parameters (`own`), or those that all methods share."""
    return [key for key in _keys(schema) if (key.name not in RunConfig.model_fields) is own]


class KeysOfSection(NamedTuple):
    """A key of a recipe that holds keys of its own."""

    name: str
    """With the sections it lies in: `build.judge`."""
    schema: type[BaseModel]
    keys: list[Key]


def sections_of(schema: type[BaseModel], prefix: str = "") -> list[KeysOfSection]:
    """The sections of a schema, the outer before the inner ones."""
    found: list[KeysOfSection] = []
    for name in schema.model_fields:
        section = section_of(schema, name)
        if section is not None:
            path = f"{prefix}{name}"
            found.append(KeysOfSection(path, section, _keys(section)))
            found += sections_of(section, f"{path}.")
    return found


def section_of(schema: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The schema of a key that is a section of keys of its own; None for all others."""
    field = schema.model_fields.get(key)
    if field is None:
        return None
    options = get_args(field.annotation) or (field.annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _keys(section: type[BaseModel]) -> list[Key]:
    return [
        Key(
            name,
            None if field.is_required() else _plain(field.get_default(call_default_factory=True)),
            field.is_required(),
            " ".join((field.description or "").split()),
        )
        for name, field in section.model_fields.items()
    ]


def _plain(value: JsonValue | BaseModel) -> JsonValue:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path
