"""Mutated configs, data, bases, adapters and records: a program ends with success, or with one line and status 2."""
