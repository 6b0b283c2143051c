"""Commands whose help shows ``PATH`` instead of ``{PATH}``, and no type for a switch."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Group"]


class _Plain:
    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in found:
            # An option that takes no value would have the type <bool>, which looks like a value.
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        found: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [piece[1:-1] if piece.startswith("{") else piece for piece in found]


class Command(_Plain, TyperCommand):
    """A command."""


class Group(_Plain, TyperGroup):
    """A group of commands."""
