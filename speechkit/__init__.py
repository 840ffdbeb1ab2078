"""speechkit: an end-to-end speech toolkit on PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "save"]

if TYPE_CHECKING:
    from speechkit.pretrained import load, save


def __getattr__(name: str) -> Any:
    """Resolve ``load`` and ``save`` on first use, so that ``import speechkit`` stays cheap."""
    if name in ("load", "save"):
        from speechkit import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'speechkit' has no attribute {name!r}")
