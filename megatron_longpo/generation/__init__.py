"""Documents to preference pairs, by the model itself: chunks, questions, answers. Start with `pipeline.Generator.make_records`.

Nothing here knows a rank. An engine answers user messages (`engine.Engine`); `transformers_engine` is the one in the process.
"""
