"""The papers' tables from recorded results."""
