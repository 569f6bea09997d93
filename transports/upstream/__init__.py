"""Wires to servers: each implements the `Connector` port of the multiplexer."""
