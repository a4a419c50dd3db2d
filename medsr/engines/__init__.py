"""How a network is run: torch, compiled, OpenVINO; same numbers, different speed."""

from medsr.engines.choice import REFERENCE, EngineChoice, EngineFor, EngineName, Precision
from medsr.engines.measuring import ENGINES, available, choose_engine
from medsr.engines.running import Engine, build_engine

__all__ = [
    "ENGINES",
    "REFERENCE",
    "Engine",
    "EngineChoice",
    "EngineFor",
    "EngineName",
    "Precision",
    "available",
    "build_engine",
    "choose_engine",
]
