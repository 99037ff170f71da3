"""How good a model is: long context on tasks made here and on InfiniteBench, short context through lm-eval.

`samples` -> `answering` -> `scores` -> `summary` -> tables, plots and the page.
"""
