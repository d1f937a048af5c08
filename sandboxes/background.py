"""How the rings above start asyncio tasks: kept alive, and never silent when they fail."""

from vm.background import spawn

__all__ = ["spawn"]
