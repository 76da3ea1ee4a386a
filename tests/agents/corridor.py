"""A text environment in the manner of Gymnasium, registered on import: a corridor with a cake at its end."""

from typing import Any

import gymnasium


class Corridor(gymnasium.Env[str, str]):
    """Text in, text out; `length` fields from a start that the seed decides; a pit to the left of the first one."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 # as Gymnasium has it

    def __init__(self, length: int = 4, render_mode: str | None = None) -> None:
        self.observation_space = gymnasium.spaces.Text(200)
        self.action_space = gymnasium.spaces.Text(20)
        self.render_mode = render_mode
        self.length = length
        self.place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed, options=options)
        self.place = int(self.np_random.integers(0, self.length - 1))
        return f"You are on field {self.place} of {self.length}.", {}

    def step(self, action: str) -> Any:
        if action not in {"go left", "go right"}:
            return "You wave your arms.", -0.25, False, False, {}
        self.place += 1 if action == "go right" else -1
        if self.place < 0:
            return "You fall into a pit.", -1.0, True, False, {}
        cake = self.place == self.length - 1
        return f"You are on field {self.place}.", 1.0 if cake else 0.0, cake, False, {"won": cake}


gymnasium.register("Corridor-v0", entry_point="tests.agents.corridor:Corridor")
