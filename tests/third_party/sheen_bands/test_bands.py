"""The whole contract of sheen, on this backbone."""

from sheen_cli.testing import contract

test_contract = contract("bands")
