"""Tasks: what is trained (classification, steps, optical flow), and what serves their time loops.

Names load from their own files (or, the public ones, from :mod:`lightning_modules`), since callbacks and data use some
of these files without a task.
"""
