"""The simulator's tasks of a program's actions.

Program, actions -> tasks, one for each instruction and one for each copy around a message. The id
of a task is that of its instruction; if the step has several actions, after the action's own text.
"""

from __future__ import annotations

from cost_models.collectives import collective_model
from cost_models.machine import Cluster
from cost_models.roofline import host_time
from cost_models.task import Task
from planner.program.actions import WHOLE_STEP, Action
from planner.program.program import Communicate, Instruction, Program, waits_for, writes

__all__ = ["PACKED", "UNPACKED", "Tasks", "instruction_of", "prefix_of"]

#: Endings of the ids of events that are copies before and after a collective.
PACKED, UNPACKED = ".packed", ".unpacked"


def instruction_of(event: str) -> str:
    """The id of the instruction that an event belongs to."""
    return event.removesuffix(PACKED).removesuffix(UNPACKED)


def prefix_of(action: Action, program: Program) -> str:
    """The beginning of the ids of an action's tasks."""
    return "" if program.actions == WHOLE_STEP else f"{action} "


class Tasks:
    """Makes the simulator's tasks, action by action."""

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program, self.cluster = program, cluster
        self.prefix = ""  # of the ids of the action's tasks
        self.writer: dict[int, str] = {}
        self.line = ""  # the last of the tasks that follow each other
        self.blocking = False  # whether it is a collective
        # What an asynchronous collective writes that nothing has waited for.
        self.under_way: dict[int, Communicate] = {}
        self.channels: dict[tuple[int, ...], tuple[str, str]] = {}
        self.out: list[Task] = []

    def of(self, action: Action) -> list[Task]:
        """The tasks of the next action, which ends when its last message does."""
        self.prefix, self.out = prefix_of(action, self.program), []
        for instruction in self.program.bodies[action.body]:
            self.add(instruction)
        self.wait(list(self.under_way))
        return self.out

    def add(self, instruction: Instruction) -> None:
        """Adds the tasks of the next instruction."""
        used = waits_for(instruction)
        self.wait([value for value in used if value in self.under_way])
        talks = isinstance(instruction, Communicate) and instruction.kind != "slice"
        if talks and instruction.packing:  # type: ignore[union-attr]
            self._copy(instruction, PACKED, instruction.packing, used)  # type: ignore[union-attr]
        channel, link = self._channel(instruction.axes) if talks else ("", "")  # type: ignore[union-attr]
        made = writes(instruction)
        self.out.append(
            Task(
                id=self.prefix + instruction.id,
                kind=instruction.kind,
                phase=instruction.phase,
                path=instruction.path,
                device=0,
                stream="communication" if talks else "compute",
                duration=instruction.time,
                channel=channel,
                link=link,
                host_duration=self._dispatch(instruction),
                deps=self._deps(used, talks),
            )
        )
        self.writer.update(dict.fromkeys(made, self.prefix + instruction.id))
        if talks and instruction.asynchronous:  # type: ignore[union-attr]
            self.under_way.update(dict.fromkeys(made, instruction))  # type: ignore[arg-type]
            return
        self.line, self.blocking = self.prefix + instruction.id, talks
        if talks:
            self._unpack(instruction)  # type: ignore[arg-type]

    def wait(self, values: list[int]) -> None:
        """Adds the tasks that follow the end of the collectives that write `values`."""
        for value in values:
            if value in self.under_way:
                found = self.under_way[value]
                for result in found.results:
                    del self.under_way[result]
                self._unpack(found)

    def _unpack(self, instruction: Communicate) -> None:
        if instruction.unpacking:
            self._copy(instruction, UNPACKED, instruction.unpacking, instruction.results)
            self.writer.update(dict.fromkeys(instruction.results, self.line))

    def _copy(
        self, instruction: Instruction, suffix: str, seconds: float, used: tuple[int, ...]
    ) -> None:
        self.out.append(
            Task(
                id=self.prefix + instruction.id + suffix,
                kind="copy",
                phase=instruction.phase,
                path=instruction.path,
                device=0,
                stream="compute",
                duration=seconds,
                host_duration=host_time(self.cluster.device, "copy"),
                deps=self._deps(used, talks=False),
            )
        )
        self.line, self.blocking = self.prefix + instruction.id + suffix, False

    def _dispatch(self, instruction: Instruction) -> float:
        """Seconds of the host to dispatch an instruction; 0 for a view."""
        looks = instruction.kind == "view" or (instruction.kind == "slice" and not instruction.time)
        kind = "copy" if isinstance(instruction, Communicate) else instruction.kind
        return 0.0 if looks else host_time(self.cluster.device, kind)

    def _deps(self, used: tuple[int, ...], talks: bool) -> tuple[str, ...]:
        deps = [self.writer[v] for v in used if v in self.writer]
        if (talks or self.blocking) and self.line:
            deps.append(self.line)
        return tuple(dict.fromkeys(deps))

    def _channel(self, axes: tuple[int, ...]) -> tuple[str, str]:
        """The name of the communicator of `axes`, and the class of the links that it crosses."""
        if axes not in self.channels:
            mesh = self.program.mesh
            link = collective_model(self.cluster, mesh.sizes, axes).link_class
            self.channels[axes] = (",".join(mesh.names[axis] for axis in axes), link)
        return self.channels[axes]
