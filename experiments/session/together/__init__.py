"""Runs of several processes: how these start, agree on what to do, notice a lost one, and end together."""
