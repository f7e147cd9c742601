"""What to learn from next: samples, documents, domains or tokens, by what models say of them."""

from limbeck.selection.base import Choice, PoolSignals, Selector, build_selector, selectors
from limbeck.selection.ledger import Ledger

__all__ = ["Choice", "Ledger", "PoolSignals", "Selector", "build_selector", "selectors"]
