"""The nowcast server: bounded histories, forecasters, the NiNo engine, and the HTTP API in front of them."""
