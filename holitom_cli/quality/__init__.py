"""Measuring what compression costs: questions with known answers, scoring, and the small world of the demo model."""
