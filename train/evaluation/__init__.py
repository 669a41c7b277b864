"""Evaluation: test sets, metrics, protocols, scores, statistics, reports."""
