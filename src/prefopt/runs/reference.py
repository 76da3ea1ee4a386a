"""The reference of a run: none, cached, live, the adapter switched off, or moving."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel

from prefopt.config import RunConfig
from prefopt.errors import ConfigError
from prefopt.models.digest import model_digest
from prefopt.models.load import CausalModel, attention_name, disable_dropout
from prefopt.models.moving import MovingReference
from prefopt.models.reference import (
    AdapterOffReference,
    CachedReference,
    LiveReference,
    LogpStore,
    NoReference,
    Reference,
)
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Example
from prefopt.progress import say
from prefopt.runs.setup import Policy, cache_folder, load_with, mixed_precision
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import Packing, fill_store
from prefopt.train.terms import Demands


def build_reference(
    config: RunConfig,
    demands: Demands,
    policy: Policy,
    *,
    examples: Sequence[Example],
    packing: Packing,
    runtime: Runtime,
) -> Reference:
    """The reference that the objectives need, scored ahead where it can be."""
    if not _has_reference(config, demands):
        return NoReference()
    kind = _kind(config, demands, policy)
    states = "kl" in demands.extras
    if kind == "adapter_off":
        shared = _scorer(config, policy.model, demands)
        digest = model_digest(policy.model, adapter=False)
        return AdapterOffReference(shared, digest=digest, with_states=states)
    if config.reference_model is None and kind == "cached":
        # A fresh adapter adds nothing yet, so the base weights identify what is scored, whatever the seed.
        model, digest = policy.model, model_digest(policy.model, adapter=not policy.fresh_adapter)
    else:
        name = config.reference_model or config.model_name_or_path
        model = load_with(config, name, runtime.device).model
        disable_dropout(model)
        digest = model_digest(model)
    source = _scorer(config, model, demands)
    if kind == "live":
        return LiveReference(source, digest=digest, with_states=states)
    if kind == "moving":
        return MovingReference(
            source,
            digest=digest,
            mixup_alpha=config.reference_mixup_alpha,
            every=config.reference_sync_steps,
            with_states=states,
        )
    return _cached(config, source, digest, examples=examples, packing=packing, runtime=runtime)


def _cached(
    config: RunConfig,
    source: Scorer,
    digest: str,
    *,
    examples: Sequence[Example],
    packing: Packing,
    runtime: Runtime,
) -> CachedReference:
    precision = "/".join(
        [
            mixed_precision(config),
            str(source.model.dtype),
            packing.layout,
            runtime.device.type,
            attention_name(source.model),
        ]
    )
    folder = cache_folder(config) / "reference"
    stores = [
        LogpStore(folder, weights=digest, precision=precision, quantity=quantity)
        for quantity in ("logp", *source.statistics)
    ]
    for store in stores:
        scored = fill_store(store, source, examples, packing=packing, runtime=runtime)
        if runtime.is_main:
            say(
                f"reference{'' if store is stores[0] else f' {store.quantity}'}: {len(examples) - scored} examples "
                f"from the cache, {scored} scored; {store.path.name}"
            )
    return CachedReference(stores[0], digest=digest, entropy=stores[1] if stores[1:] else None)


def loads_model(config: RunConfig, demands: Demands, policy: Policy) -> bool:
    """Whether the reference is a second model that stays in memory."""
    return _has_reference(config, demands) and _kind(config, demands, policy) in {"live", "moving"}


def _has_reference(config: RunConfig, demands: Demands) -> bool:
    """Whether the objectives have a reference; one that is named for nothing is refused."""
    if not demands.reference and (config.reference != "auto" or config.reference_model is not None):
        raise ConfigError(
            f"method {config.method} has no reference with these objectives: remove reference and reference_model "
            "from the recipe"
        )
    return demands.reference


def _scorer(config: RunConfig, model: CausalModel, demands: Demands) -> Scorer:
    statistics = ("entropy",) if "dispersion" in demands.extras else ()
    return Scorer(model, chunk_bytes=config.head_chunk_bytes, statistics=statistics)


def _kind(config: RunConfig, demands: Demands, policy: Policy) -> str:
    """Where the reference comes from; `auto` is the cache, or a model in memory where distributions are compared."""
    kind = config.reference
    if kind == "auto" and "kl" in demands.extras:
        return "adapter_off" if policy.fresh_adapter and config.reference_model is None else "live"
    if kind == "cached" and "kl" in demands.extras:
        raise ConfigError(
            "reference: cached keeps log-probabilities, and this objective compares whole distributions: set "
            "reference: live (or adapter_off with a fresh adapter), or remove the key"
        )
    if kind == "adapter_off" and not policy.fresh_adapter:
        raise ConfigError(
            "reference: adapter_off needs an adapter that starts in this run (use_peft: true on a plain model): "
            "only then is the model without it the policy's starting point; use reference: cached"
        )
    if kind == "moving" and isinstance(policy.model, PeftModel):
        raise ConfigError(
            "reference: moving mixes whole models, and this policy is an adapter: merge it, or use full fine-tuning"
        )
    return "cached" if kind == "auto" else kind
