"""Environments, one module each; every module exposes its suite as `SUITE` (see `prefopt.agents.suites`)."""
