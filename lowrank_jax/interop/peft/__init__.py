"""Adapters in other people's files, in and out: PEFT, loralib, the MoRA authors' fork."""
