"""`python -m nowcast_server`."""

from nowcast_server.cli import app

app(prog_name="nowcast-server")
