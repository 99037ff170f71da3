"""Which stage needs which, by what they read and leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_longpo.evolution.stages import Stage
from megatron_longpo.utils.errors import UserError


def feeders(stages: Sequence[Stage], name: str) -> set[str]:
    """Names of the stages that a stage needs: what makes its inputs, what makes theirs, and every decision before it."""
    place = next(place for place, stage in enumerate(stages) if stage.name == name)
    wanted = {artifact.path for artifact in stages[place].inputs}
    found = set()
    for stage in reversed(stages[:place]):
        if stage.gate or wanted & {artifact.path for artifact in stage.outputs}:
            found.add(stage.name)
            wanted |= {artifact.path for artifact in stage.inputs}
    return found


def absent_inputs(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """What is needed, made by no stage, and not there: stage and path."""
    made = {artifact.path for stage in stages for artifact in stage.outputs}
    return [
        (stage.name, str(artifact.path))
        for stage in stages
        for artifact in stage.inputs
        if artifact.path not in made and not artifact.path.exists()
    ]


def in_order(stages: list[Stage]) -> Iterator[Stage]:
    """Yield each stage after those that make its inputs, otherwise in the order given."""
    makers = {artifact.path: stage for stage in stages for artifact in stage.outputs}
    done: dict[str, bool] = {}

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.name in done:
            if not done[stage.name]:
                raise UserError(f"stage {stage.name} needs its own output")
            return
        done[stage.name] = False
        for artifact in stage.inputs:
            if artifact.path in makers:
                yield from visit(makers[artifact.path])
        done[stage.name] = True
        yield stage

    for stage in stages:
        yield from visit(stage)
