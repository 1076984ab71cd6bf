"""Benchmark suites: data sets × backbones × blocks × methods × label budgets × seeds."""

from featx.suite.config import SuiteConfig, parse_config, read_config
from featx.suite.folder import ResultsFolder
from featx.suite.methods import METHODS, Method
from featx.suite.runner import Suite, SuitePlan

__all__ = [
    "METHODS",
    "Method",
    "ResultsFolder",
    "Suite",
    "SuiteConfig",
    "SuitePlan",
    "parse_config",
    "read_config",
]
