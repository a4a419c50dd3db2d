"""One file = one method of the literature, network and inference together; names are imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsr.methods.consistent import Consistent, FindsDegradation, KnowsDegradation
    from medsr.methods.detail import EdgesWithDetail
    from medsr.methods.dfcan import DFCAN
    from medsr.methods.discriminators import PatchDiscriminator, SrganDiscriminator
    from medsr.methods.edges import Edges
    from medsr.methods.ensemble import Ensemble
    from medsr.methods.espcn import EspcnNetwork
    from medsr.methods.exemplars import Exemplars, SelfExemplars
    from medsr.methods.fast import FastNetwork
    from medsr.methods.foreign import is_foreign, load_foreign
    from medsr.methods.fsrcnn import FsrcnnNetwork
    from medsr.methods.ikc import IkcNetwork
    from medsr.methods.interpolation import INTERPOLATIONS, Cubic, Lanczos, Linear, interpolate
    from medsr.methods.leveled import Leveled
    from medsr.methods.named import UNTRAINED
    from medsr.methods.profile_map import NATURAL, SCANS, ProfileMap, learn_profiles
    from medsr.methods.rcan import RCAN
    from medsr.methods.rrdb import RRDBNet
    from medsr.methods.scn import ScnNetwork
    from medsr.methods.sftmd import SFTMD
    from medsr.methods.srresnet import SRResNet
    from medsr.methods.unet_discriminator import UnetDiscriminator

__all__ = [
    "DFCAN",
    "INTERPOLATIONS",
    "Consistent",
    "load_foreign",
    "UNTRAINED",
    "Cubic",
    "Edges",
    "EdgesWithDetail",
    "Ensemble",
    "EspcnNetwork",
    "Exemplars",
    "FastNetwork",
    "FsrcnnNetwork",
    "IkcNetwork",
    "FindsDegradation",
    "KnowsDegradation",
    "Lanczos",
    "Leveled",
    "Linear",
    "NATURAL",
    "PatchDiscriminator",
    "ProfileMap",
    "RRDBNet",
    "RCAN",
    "SCANS",
    "SFTMD",
    "SRResNet",
    "ScnNetwork",
    "SelfExemplars",
    "SrganDiscriminator",
    "UnetDiscriminator",
    "interpolate",
    "is_foreign",
    "learn_profiles",
]

_ROOMS = {
    "is_foreign": "foreign",
    "NATURAL": "profile_map",
    "ProfileMap": "profile_map",
    "SCANS": "profile_map",
    "learn_profiles": "profile_map",
    "load_foreign": "foreign",
    "UNTRAINED": "named",
    "EdgesWithDetail": "detail",
    "Edges": "edges",
    "Exemplars": "exemplars",
    "SelfExemplars": "exemplars",
    "Consistent": "consistent",
    "FindsDegradation": "consistent",
    "KnowsDegradation": "consistent",
    "Ensemble": "ensemble",
    "DFCAN": "dfcan",
    "RCAN": "rcan",
    "INTERPOLATIONS": "interpolation",
    "Cubic": "interpolation",
    "Lanczos": "interpolation",
    "Linear": "interpolation",
    "interpolate": "interpolation",
    "RRDBNet": "rrdb",
    "EspcnNetwork": "espcn",
    "FastNetwork": "fast",
    "FsrcnnNetwork": "fsrcnn",
    "IkcNetwork": "ikc",
    "SFTMD": "sftmd",
    "SRResNet": "srresnet",
    "Leveled": "leveled",
    "ScnNetwork": "scn",
    "UnetDiscriminator": "unet_discriminator",
    "PatchDiscriminator": "discriminators",
    "SrganDiscriminator": "discriminators",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
