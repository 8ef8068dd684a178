"""`wnn`: an MLP for each parameter alone."""

from typing import ClassVar

from nowcast_server.forecasters.learned import EngineType, LearnedForecaster


class Wnn(LearnedForecaster):
    """Forecasts with WNN or WNN+: every weight from its own past (Jang et al., ICML 2023)."""

    name: ClassVar[str] = "wnn"
    graph: ClassVar[bool] = False

    @classmethod
    def reference(cls) -> EngineType:
        from nowcast_server.nino.reference import WnnReference

        return WnnReference
