"""MetaWorld's environments and experts, imported without a GL library."""

from __future__ import annotations

from .physics import without_gl

with without_gl():
    from metaworld.env_dict import ENV_CLS_MAP as ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP as ENV_POLICY_MAP
