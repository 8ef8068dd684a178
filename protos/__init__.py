"""The contract between workers and the nowcast server: wiring, messages, framing, errors. See WIRE.md."""

from typing import Final

DISTRIBUTION: Final = "nowcast-train"  # what this project is installed as; `nowcast` is another project's name on the package index
