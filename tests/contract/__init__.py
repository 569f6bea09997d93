"""What every implementation of a port has to keep, as suites that run on any of them.

`directory.check_directory(maker)` and `wire.check_wire(maker)` take a maker and raise AssertionError for the first
promise that is broken. A backend of one's own is tested with three lines; see the `test_` files beside.
"""
