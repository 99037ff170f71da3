"""Models that answer, in this process or on servers, and the journal that keeps what they said.

Making pairs and evaluating both ask through `engine.Engine`; nothing here knows why. `transformers_engine` is the engine in the
process, `server_engine` that of OpenAI-compatible servers, `vllm_engine` vLLM's.
"""
