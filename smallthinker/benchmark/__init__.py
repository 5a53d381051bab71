"""Measures a store over budgets, storage profiles and prompt lengths, and says what was found.

From a run to its report: matrix.py (what is asked), series.py (one run after another), measure.py (a run, in a process
of its own), results.py (the file), summary.py (medians), then table.py, plots.py and report.py, each a view of those.
"""
