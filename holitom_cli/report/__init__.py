"""Answers as people read them (terminal) and as programs do (record)."""
