"""Actions as text, and the runs of like ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.pipelining.schedules import _Action

from cost_models.errors import BadValue
from planner.program.actions import Action, few, parse_actions, runs, show_actions

#: Torch's names of what a stage does in a pipeline, and ours of a step in microbatches.
BODIES = ("F", "B", "I", "W", "FIRST", "MIDDLE", "LAST")

actions = st.lists(
    st.builds(Action, st.sampled_from(BODIES), st.integers(0, 200), st.integers(0, 30)), max_size=12
)


@given(actions)
def test_reading_gives_back_what_was_written(some: list[Action]) -> None:
    assert parse_actions(show_actions(some)) == tuple(some)


@given(st.sampled_from("FBIW"), st.integers(0, 200), st.integers(0, 30))
def test_a_stages_actions_are_written_as_torch_writes_them(
    body: str, microbatch: int, stage: int
) -> None:
    text = str(Action(body, microbatch, stage))
    assert str(_Action.from_str(text)) == text


@pytest.mark.parametrize("word", ["F0", "2F", "2f0", "2F0,", "-1F0", "2 F0"])
def test_what_is_no_action_is_refused(word: str) -> None:
    with pytest.raises(BadValue, match="is no action"):
        parse_actions(f"0FIRST0 {word}")


def test_runs_of_like_actions() -> None:
    step = parse_actions("0FIRST0 0MIDDLE1 0MIDDLE2 0MIDDLE3 0LAST4")
    assert list(map(show_actions, runs(step))) == [
        "0FIRST0",
        "0MIDDLE1 0MIDDLE2 0MIDDLE3",
        "0LAST4",
    ]
    assert show_actions(few(step)) == "0FIRST0 0MIDDLE1 0MIDDLE2 0LAST4"
