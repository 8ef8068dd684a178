"""The contract between workers and the nowcast server: wiring, messages, framing, errors. See WIRE.md."""
