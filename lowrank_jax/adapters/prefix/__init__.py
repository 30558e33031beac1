"""Prefix methods: trainable vectors at virtual tokens, whose ids follow the base's own (families, places, call)."""
