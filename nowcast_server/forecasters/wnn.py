"""`wnn`: an MLP for each parameter alone."""

from collections.abc import Mapping
from typing import ClassVar

from nowcast_server.forecasters.learned import EngineType, LearnedForecaster, streaming_engines


class Wnn(LearnedForecaster):
    """Forecasts with WNN or WNN+: every weight from its own past (Jang et al., ICML 2023)."""

    name: ClassVar[str] = "wnn"
    graph: ClassVar[bool] = False

    @classmethod
    def engines(cls) -> Mapping[str, EngineType]:
        from nowcast_server.nino.reference import WnnReference

        return {**streaming_engines(), "reference": WnnReference}
