"""Which samples to ask about next, from what models say of a pool."""

from limbeck.selection.base import PoolSignals, Selector, build_selector, selectors
from limbeck.selection.ledger import Ledger

__all__ = ["Ledger", "PoolSignals", "Selector", "build_selector", "selectors"]
