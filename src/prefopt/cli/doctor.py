"""`prefopt doctor`: versions, devices, extras, settings, and a check of the numerics on this machine."""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from prefopt.cli._machine import Device
    from prefopt.models.selfcheck import SelfCheck

NAME = "doctor"
HELP = """\
Check the installation, the machine and the numerics.

Prints versions, devices, the attention backend, extras and settings; then runs a tiny random model and
compares token trees with separate rows and the chunked head with a full softmax. Exit code 1 if anything fails."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare nothing: the verb takes no arguments."""
    del parser


def run(arguments: argparse.Namespace) -> int:
    """Print what is there and what is wrong; returns 0 if nothing is wrong, else 1."""
    del arguments
    from rich.console import Console

    from prefopt.cli import _machine as machine

    console = Console(highlight=False, soft_wrap=True)
    print_installation(console)
    problems = print_packages(console)
    print_extras(console)
    if all(package.version for package in machine.packages()):
        devices = machine.devices()
        problems += print_machine(console, devices)
        print_isolation(console)
        problems += print_self_checks(console, devices)
    console.print()
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    if not problems:
        console.print("Everything is in order.")
    return 1 if problems else 0


def print_installation(console: Console) -> None:
    """Print the versions of prefopt, Python and the system."""
    from importlib.metadata import version

    console.print(
        f"prefopt {version('prefopt')}, Python {platform.python_version()}, {platform.platform()}",
        markup=False,
    )


def print_packages(console: Console) -> list[str]:
    """Print the required packages; returns the problems with them."""
    from prefopt.cli import _machine as machine

    console.print("\nPackages")
    problems: list[str] = []
    for package in machine.packages():
        console.print(f"  {package.name:<14}{package.version or 'missing'}", markup=False)
        if not package.fits:
            problems.append(
                f"{package.name} {package.version or 'is missing'}: prefopt needs "
                f"{package.name}{package.wanted}; pip install '{package.name}{package.wanted}'"
            )
    return problems


def print_machine(console: Console, devices: list[Device]) -> list[str]:
    """Print devices, memory and settings; returns the problems with them."""
    from prefopt.cli import _machine as machine

    cores = machine.cores()
    console.print("\nMachine")
    for device in devices:
        memory = f", {device.memory / 2**30:.1f} GiB" if device.memory else ""
        count = f", {cores} cores" if device.name == "cpu" else ""
        precision = "bfloat16" if device.bf16 else "float32"
        console.print(
            f"  {device.name:<14}{device.description}{count}{memory}; computes in {precision}; "
            f"attention: {device.attention}",
            markup=False,
        )
    folder = machine.cache_folder(os.environ)
    existing = machine.nearest_existing(folder)
    free = shutil.disk_usage(existing).free / 2**30
    console.print(f"  {'cache':<14}{folder}, {free:.1f} GiB free", markup=False)
    for remark in machine.remarks(os.environ, cores=cores):
        console.print(f"  {'remark':<14}{remark}", markup=False)
    if not os.access(existing, os.W_OK):
        return [f"the cache folder {folder} cannot be written: set PREFOPT_HOME to one that can"]
    return []


def print_isolation(console: Console) -> None:
    """Print whether model-written code can be isolated; only methods that run such code need it."""
    from prefopt.sandbox.isolation import isolation

    found = isolation()
    state = f"works ({found.version})" if found.works else f"not available: {found.reason}"
    console.print(f"  {'sandbox':<14}{state}", markup=False)


def print_extras(console: Console) -> None:
    """Print which optional features are usable, and how to get the others."""
    from prefopt.cli import _machine as machine

    console.print("\nExtras")
    for extra in machine.extras():
        state = f"missing: {extra.command}" if extra.missing else "installed"
        console.print(f"  {extra.name:<14}{state}", markup=False)


def print_self_checks(console: Console, devices: list[Device]) -> list[str]:
    """Check head and trees on the CPU and the first accelerator; returns the problems found."""
    console.print("\nSelf-check of a tiny random Llama (differences in nats per token)")
    problems: list[str] = []
    for device in devices[:2]:
        check = check_device(device)
        for name, difference, fine, meaning in (
            ("head", check.head, check.head_ok, "chunked head against the model's own logits"),
            ("tree", check.tree, check.tree_ok, "token tree against separate rows"),
        ):
            verdict = "ok" if fine else "FAILED"
            line = f"{verdict}: {meaning}: {difference:.2g} (bound {check.tolerance:g})"
            console.print(f"  {device.name:<8}{name:<6}{line}", markup=False)
            if not fine:
                reason = f"; {check.reason}" if name == "tree" and check.reason else ""
                problems.append(f"self-check on {device.name}: {meaning}: {difference:.2g}{reason}")
    return problems


def check_device(device: Device) -> SelfCheck:
    """The self-check of a small Llama with fixed random weights on a device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from prefopt.models.selfcheck import check_model

    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    attention = "flex_attention" if device.name.startswith("cuda") else "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return check_model(model.to(torch.device(device.name)))
