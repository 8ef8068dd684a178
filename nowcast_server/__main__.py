"""`python -m nowcast_server`."""

from nowcast_server.cli import main

main()
