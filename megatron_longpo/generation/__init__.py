"""Documents to preference pairs, by the model itself: chunks, questions, answers. Start with `pipeline.Generator.make_records`.

Nothing here knows a rank. The models that are asked are engines of `megatron_longpo.inference`.
"""
