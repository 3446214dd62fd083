"""Prepared: where a benchmark of unlike devices keeps what it made before it measures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llmpq.hardware.cluster import Cluster

SHARES_FILE = "shares.json"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model, its sensitivity, a profile of it, and what shares of a core are worth to it, in one folder."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def sensitivity(self) -> Path:
        return self.folder / "sensitivity.json"

    @property
    def profile(self) -> Path:
        return self.folder / "profile.json"

    def shares(self) -> dict[float, float]:
        """Share of a core -> what a CPU second of it is worth; empty where that was not measured."""
        path = self.folder / SHARES_FILE
        found: dict[str, float] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return {float(share): worth for share, worth in found.items()}

    def keep_shares(self, worth: dict[float, float]) -> list[str]:
        """Written for `shares`, and told in a line each."""
        (self.folder / SHARES_FILE).write_text(json.dumps(worth, indent=1) + "\n", "utf-8")
        return [f"{share:g} of a core: a CPU second is worth {each:.2f}" for share, each in worth.items()]

    def as_measured(self, cluster: Cluster) -> Cluster:
        """The cluster with the speeds that its shares of a core are worth: what is planned for."""
        worth = self.shares()
        devices = (replace(device, speed=device.speed * worth.get(device.speed, 1.0)) for device in cluster.devices)
        return replace(cluster, devices=tuple(devices))
