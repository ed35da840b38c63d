"""The passes that bring every model into one form, by name and in their order.

Known without the compiler: they are stages that a server shows, and part of every plan's key, so that no plan that
other passes have made is taken for one of these.
"""

__all__ = ["CANONICAL_PASSES"]

CANONICAL_PASSES = (
    "binary floats",
    "inline functions",
    "store constants",
    "couple gates",
    "opset 21",
    "store shapes",
    "name nodes",
    "fold batch norm",
)
