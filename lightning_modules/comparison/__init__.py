"""``stllr compare`` and ``stllr ablate``: several ways of training on the same data, measured and written up.

``experiment`` turns a configuration and its variants into runs, ``training`` trains one, ``store`` keeps what is done
so that nothing is done twice, ``measure`` and ``counting`` look at time, memory and spikes, ``costs`` has the formulas,
``document`` and ``charts`` make the report.
"""
