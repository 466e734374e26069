"""Op rules, one file per family. Importing the package fills `RULES`; `signature_of` and
`local_call` take any op, with a rule or without (then the rule is discovered)."""

from planner.rules import (
    attention,
    cross_entropy,
    joining,
    lookups,
    microbatch,
    norms,
    pointwise,
    products,
    random,
    recurrent,
    reductions,
    slicing,
    stages,
    viewing,
)
from planner.rules.signature import RULES, Call, Local, LocalCall, OpCost, Rule, Signature

__all__ = [
    "RULES", "Call", "Local", "OpCost", "Rule", "Signature", "attention", "cross_entropy", "joining",
    "local_call", "lookups", "microbatch", "norms", "pointwise", "products", "random", "recurrent", "reductions",
    "signature_of", "slicing", "stages", "viewing",
]  # fmt: skip


def signature_of(call: Call, dtypes: tuple[str, ...]) -> Signature:
    """The signature of a call on operands of the given dtypes: by its rule, or discovered."""
    rule = RULES.get(call.op)
    if rule is not None:
        return rule.signature(call)
    from planner.rules import discovered

    return discovered.signature_of(call, dtypes)


def local_call(signature: Signature, call: Call, local: Local) -> LocalCall:
    """The call on one shard."""
    rule = RULES.get(call.op)
    if rule is not None:
        return rule.localize(call, local)
    from planner.rules import discovered

    return discovered.localized(signature, call, local)
