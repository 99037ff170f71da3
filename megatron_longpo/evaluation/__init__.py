"""How good a model is: long context on tasks made here and on InfiniteBench, short context through lm-eval.

`plan.Plan` says what is asked, `run.evaluate` asks one model and scores its answers, `report.write_reports` compares models.
"""
