"""Configuration: frozen typed settings, and the only reader of the environment and of ``sive.toml``."""

from sive.config.load import Loaded, keys_in_environment, load, process_environment, sdk_names_a_host
from sive.config.sections import (
    BackendSettings,
    CompatSettings,
    EngineSettings,
    EnvironmentSettings,
    FunctionSettings,
    GatewaySettings,
    LocalSettings,
    ModelSettings,
    RungSettings,
    Settings,
)

__all__ = [
    "BackendSettings",
    "CompatSettings",
    "EngineSettings",
    "EnvironmentSettings",
    "FunctionSettings",
    "GatewaySettings",
    "Loaded",
    "LocalSettings",
    "ModelSettings",
    "RungSettings",
    "Settings",
    "keys_in_environment",
    "load",
    "process_environment",
    "sdk_names_a_host",
]
