"""Comparisons: recipes from one start per seed at an equal budget, with what is claimed written down before they run.

::

    FOLDER/comparison.json   the plan, written before any seed runs; behind it, at the end, what the runs show
    FOLDER/comparison.html   the same as a page
    FOLDER/calibration/      short runs that say what an arm costs
    FOLDER/ARM-SEED/         a run folder each (see ``autotelic.sweep``)

Read ``study`` first: the plan, the runs, the document. ``budget`` makes a budget into rounds, ``contrasts`` is the
statistics, ``arms`` reads what the command line says.
"""
