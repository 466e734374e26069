"""Op rules, a file a family. Importing the package fills `RULES`."""

from planner.rules import fused, norms, pointwise, products, random, reductions, views
from planner.rules.signature import RULES, Call, Local, OpCost, Rule, Signature

__all__ = [
    "RULES",
    "Call",
    "Local",
    "OpCost",
    "Rule",
    "Signature",
    "fused",
    "norms",
    "pointwise",
    "products",
    "random",
    "reductions",
    "views",
]
